use super::*;
use crate::sample;
use clap::Parser;
use weft_wire::control::DriveDescription;
use weft_wire::map::Protection;

const NODES: u16 = 6;

fn arguments(line: &str) -> Create {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }
    let line = format!("create --name weft1 --protection 4+2 --node h:1 {line}");
    Line::try_parse_from(line.split_whitespace()).unwrap().create
}

fn fresh(node: u16) -> Candidate {
    let address = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port + node));
    let drive = DriveDescription {
        path: format!("node{node}.drive"),
        uuid: Uuid(u128::from(node) + 100),
        core: 0,
        capacity_bytes: 4 << 30,
        zone_bytes: 1 << 20,
        zones: 3000,
        problem: None,
    };
    let mut status = sample::status(1);
    (status.cluster, status.phase) = (None, "unclaimed".into());
    Candidate {
        endpoint: Endpoint::Tcp(address(7100).to_string()),
        description: Description {
            name: format!("node{node}"),
            domain: None,
            cores: vec![address(7000)],
            control: address(7100),
            cluster: None,
            drives: vec![drive],
        },
        status,
    }
}

fn all_fresh() -> Vec<Candidate> {
    (1..=NODES).map(fresh).collect()
}

/// Makes the candidate a node of the cluster of `map`.
fn join(candidate: &mut Candidate, map: &Map) {
    candidate.description.cluster = Some(map.cluster);
    let mut status = sample::status(1);
    let cluster = status.cluster.as_mut().unwrap();
    let entry = cluster.nodes[0].clone();
    (cluster.id, cluster.buckets) = (map.cluster, map.buckets.len());
    cluster.nodes = map
        .nodes
        .values()
        .map(|node| weft_wire::control::NodeState { name: node.name.clone(), ..entry.clone() })
        .collect();
    candidate.status = status;
}

fn plan_file() -> PlanFile {
    PlanFile::new("weft1.forming".into())
}

fn decided(candidates: &[Candidate], line: &str, kept: Option<Map>) -> Result<Step> {
    decide(candidates, &arguments(line), kept, &plan_file())
}

#[track_caller]
fn refused<T>(result: Result<T>, part: &str) {
    let Err(error) = result else { panic!("not refused") };
    let said = format!("{error:#}");
    assert!(said.contains(part), "{said}");
}

#[test]
fn fresh_nodes_are_formed() {
    let candidates = all_fresh();
    assert!(matches!(decided(&candidates, "", None), Ok(Step::Form)));
    let map = new_map(&candidates, &arguments("--bucket-bits 3")).unwrap();
    assert_eq!((map.nodes.len(), map.drives.len(), map.buckets.len()), (6, 6, 8));
    assert_eq!(map.protection, Protection { data: 4, parity: 2 });
    let other = new_map(&candidates, &arguments("")).unwrap();
    assert_ne!(map.cluster, other.cluster);
    assert_ne!(map.secret, other.secret);
}

#[test]
fn a_refusal_shows_its_arithmetic() {
    let candidates: Vec<_> = all_fresh().into_iter().take(5).collect();
    refused(new_map(&candidates, &arguments("")), "max(4+2, 2*2+1) = 6 failure domains");
}

#[test]
fn unusable_drives_are_named() {
    let mut candidates = all_fresh();
    candidates[3].description.drives[0].problem = Some("it is smaller than 64 MiB".into());
    refused(new_map(&candidates, &arguments("")), "node4: node4.drive (4 GiB): it is smaller than 64 MiB");
}

#[test]
fn the_same_cluster_stands() {
    let mut candidates = all_fresh();
    let map = new_map(&candidates, &arguments("")).unwrap();
    candidates.iter_mut().for_each(|candidate| join(candidate, &map));
    assert!(matches!(decided(&candidates, "", None), Ok(Step::Stands(cluster)) if cluster == map.cluster));
    refused(decided(&candidates, "--bucket-bits 11", None), "buckets, not 2^11");
    let mut other = arguments("");
    other.name = "weft2".into();
    refused(decide(&candidates, &other, None, &plan_file()), "it is named weft1, not weft2");
    candidates.pop();
    refused(decided(&candidates, "", None), "has other nodes too: node6");
}

#[test]
fn nodes_of_other_clusters_are_refused_by_name() {
    let mut candidates = all_fresh();
    let map = new_map(&candidates, &arguments("")).unwrap();
    join(&mut candidates[1], &map);
    refused(decided(&candidates, "", None), "node2 (127.0.0.1:7102): weft1");
    let other = new_map(&candidates, &arguments("")).unwrap();
    join(&mut candidates[2], &other);
    refused(decided(&candidates, "", None), "Give only nodes that are in no cluster");
}

#[test]
fn an_interrupted_formation_goes_on_with_its_plan() {
    let mut candidates = all_fresh();
    let map = new_map(&candidates, &arguments("")).unwrap();
    let resumes = |step: Result<Step>| matches!(step, Ok(Step::Resume(plan)) if *plan == map);
    // The interrupted run's commands may still be on their way.
    assert!(resumes(decided(&candidates, "", Some(map.clone()))));
    join(&mut candidates[0], &map);
    assert!(resumes(decided(&candidates, "", Some(map.clone()))));
    refused(decided(&candidates, "", None), "its plan is needed, and weft1.forming is not it");

    candidates[4].description.drives[0].uuid = Uuid(999);
    refused(decided(&candidates, "", Some(map.clone())), "node5 was started anew or has other drives");
    candidates.pop();
    refused(decided(&candidates, "", Some(map)), "for exactly the nodes node1, node2");
}

#[test]
fn a_plan_of_other_drives_is_replaced() {
    let mut candidates = all_fresh();
    let map = new_map(&candidates, &arguments("")).unwrap();
    candidates[4].description.drives[0].uuid = Uuid(999);
    assert!(matches!(decided(&candidates, "", Some(map)), Ok(Step::Form)));
    let map = new_map(&candidates, &arguments("--bucket-bits 3")).unwrap();
    assert!(matches!(decided(&candidates, "--bucket-bits 4", Some(map)), Ok(Step::Form)));
}

#[test]
fn a_plan_outlives_an_interruption() {
    let directory = std::env::temp_dir().join(format!("weft-plan-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let plan = PlanFile::new(directory.join("weft1.forming"));
    assert!(plan.load().unwrap().is_none());
    let map = new_map(&all_fresh(), &arguments("")).unwrap();
    plan.store(&map).unwrap();
    assert_eq!(plan.load().unwrap(), Some(map));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(plan.path()).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(plan.path(), "{").unwrap();
    refused(plan.load(), "is no plan of this version");
    plan.remove().unwrap();
    plan.remove().unwrap();
    refused(
        PlanFile::new(directory.join("missing/plan")).store(&new_map(&all_fresh(), &arguments("")).unwrap()),
        "--plan",
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_is_awaited_is_told() {
    let mut answers = [Ok(sample::status(1)), Ok(sample::status(2)), Ok(sample::status(3))];
    let names = ["node1", "node2", "node3"];
    let told = |answers: &[Result<Status, CallError>]| awaited(&names.into_iter().zip(answers).collect::<Vec<_>>());
    assert!(told(&answers).is_empty());
    answers[0].as_mut().unwrap().buckets[0].serving = false;
    assert_eq!(told(&answers), ["5 of 6 buckets serve"]);
    answers[1].as_mut().unwrap().phase = "joining".into();
    answers[2] = Err(CallError::NoAnswer("nobody listens there".into()));
    assert_eq!(told(&answers), ["node2 is joining", "node3: nobody listens there"]);
}

#[test]
fn a_node_is_given_once() {
    let endpoint: Endpoint = "h:1".parse().unwrap();
    refused(check_endpoints(&[endpoint.clone(), endpoint]), "given twice");
}
