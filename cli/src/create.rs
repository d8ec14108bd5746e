//! `weft cluster create`: looks at the nodes, decides what is to be done, and does it.

use crate::arguments::Create;
use crate::connection::{Access, CallError, Endpoint, unexpected};
use crate::gather::at_once;
use crate::output::{Output, progress};
use crate::plan::PlanFile;
use crate::size;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::{Duration, Instant};
use weft_placement::{FormRequest, NewDrive, NewNode};
use weft_wire::Uuid;
use weft_wire::control::{Answer, Command, Description, Status};
use weft_wire::hash::Secret;
use weft_wire::map::Map;

/// Formatting the drives of a node.
pub const FORM_MAX: Duration = Duration::from_secs(120);
const OPENING_MAX: Duration = Duration::from_secs(60);
pub const POLL: Duration = Duration::from_millis(250);

const OPENING: &str = "opening drives";
pub const SERVING: &str = "serving";

pub struct Candidate {
    pub endpoint: Endpoint,
    pub description: Description,
    pub status: Status,
}

/// What the nodes' state asks for.
#[derive(Debug)]
enum Step {
    /// None is in a cluster.
    Form,
    /// The plan of an interrupted formation fits; some may be in its cluster, the others are in none.
    Resume(Box<Map>),
    /// All are in this very cluster.
    Stands(Uuid),
}

pub fn create(
    access: &mut Access,
    output: Output,
    timeout: Duration,
    arguments: &Create,
    plan: &PlanFile,
) -> Result<()> {
    check_endpoints(&arguments.nodes)?;
    let mut candidates = look(access, timeout, &arguments.nodes);
    // Nodes with tokens of their own take the cluster's once they are in it.
    if candidates.is_err() && access.adopt_cluster_token(timeout) {
        candidates = look(access, timeout, &arguments.nodes);
    }
    let (access, candidates) = (&*access, candidates?);
    let step = decide(&candidates, arguments, plan.load()?, plan)?;
    let (cluster, created) = match step {
        Step::Stands(cluster) => {
            progress(&format!("cluster {} stands already: nothing is formatted", arguments.name));
            (cluster, false)
        }
        Step::Resume(map) => {
            progress(&format!("going on with the formation of {} that was interrupted", arguments.name));
            form(access, timeout, &candidates, &map)?;
            (map.cluster, true)
        }
        Step::Form => {
            let map = new_map(&candidates, arguments)?;
            plan.store(&map)?;
            describe_plan(&map);
            form(access, timeout, &candidates, &map)?;
            (map.cluster, true)
        }
    };
    plan.remove()?;
    let endpoints: Vec<_> = candidates.iter().map(|c| (c.description.name.clone(), c.endpoint.clone())).collect();
    wait_serving(access, timeout, &endpoints, arguments.wait)?;
    finish(output, arguments, cluster, created, &endpoints)
}

fn finish(
    output: Output,
    arguments: &Create,
    cluster: Uuid,
    created: bool,
    endpoints: &[(String, Endpoint)],
) -> Result<()> {
    #[derive(serde::Serialize)]
    struct Created<'a> {
        cluster: String,
        name: &'a str,
        protection: String,
        created: bool,
        nodes: Vec<&'a str>,
    }
    let protection = arguments.protection;
    let created = Created {
        cluster: cluster.to_string(),
        name: &arguments.name,
        protection: protection.to_string(),
        created,
        nodes: endpoints.iter().map(|(name, _)| name.as_str()).collect(),
    };
    output.show(&created, || {
        format!(
            "cluster {} serves: {} nodes, protection {protection} ({} failures lose nothing)\nNext: weft fs create NAME\n",
            arguments.name,
            endpoints.len(),
            protection.parity
        )
    })
}

fn check_endpoints(endpoints: &[Endpoint]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match endpoints.iter().find(|endpoint| !seen.insert(*endpoint)) {
        Some(twice) => bail!("--node {twice} is given twice; give each node once"),
        None => Ok(()),
    }
}

/// Asks all nodes who they are; all must answer.
fn look(access: &Access, timeout: Duration, endpoints: &[Endpoint]) -> Result<Vec<Candidate>> {
    let answers = at_once(endpoints, |endpoint| look_at(access, timeout, endpoint));
    let mut failures = String::new();
    let mut candidates = Vec::new();
    for (endpoint, answer) in endpoints.iter().zip(answers) {
        match answer {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => failures.push_str(&format!("\n  {endpoint}: {error}")),
        }
    }
    match failures.is_empty() {
        true => Ok(candidates),
        false => bail!(
            "nothing was changed: {} of {} nodes could not be asked; start weftd there, correct the address or the token, and run this again{failures}",
            endpoints.len() - candidates.len(),
            endpoints.len()
        ),
    }
}

pub fn look_at(access: &Access, timeout: Duration, endpoint: &Endpoint) -> Result<Candidate, CallError> {
    let deadline = Instant::now() + OPENING_MAX;
    loop {
        let status = access.status(endpoint, timeout)?;
        let description = describe(access, timeout, endpoint)?;
        // A node that is still opening its drives doesn't know yet whether it is in a cluster, and while it is being
        // formed it shows no drives.
        let busy = match status.phase.as_str() {
            OPENING => OPENING,
            _ if description.cluster.is_none() && description.drives.is_empty() => "being formed, or without drives",
            _ => return Ok(Candidate { endpoint: endpoint.clone(), description, status }),
        };
        if Instant::now() >= deadline {
            return Err(CallError::NoAnswer(format!("it is still {busy}; its log says why")));
        }
        std::thread::sleep(POLL);
    }
}

pub fn describe(access: &Access, timeout: Duration, endpoint: &Endpoint) -> Result<Description, CallError> {
    match access.call(endpoint, Command::Describe, timeout)? {
        Answer::Description(description) => Ok(description),
        _ => Err(unexpected(endpoint)),
    }
}

fn decide(candidates: &[Candidate], arguments: &Create, kept: Option<Map>, plan: &PlanFile) -> Result<Step> {
    let in_cluster = |c: &&Candidate| c.description.cluster.is_some();
    let clusters: BTreeSet<Uuid> = candidates.iter().filter_map(|c| c.description.cluster).collect();
    let mut clusters = clusters.iter();
    let (cluster, others) = match clusters.next() {
        // Nodes may still be at work on the plan of a run that was interrupted: the same map again does no harm.
        None => {
            let plan = kept.filter(|map| unlike(candidates, arguments, map).is_none());
            return Ok(plan.map_or(Step::Form, |map| Step::Resume(Box::new(map))));
        }
        Some(cluster) => (*cluster, clusters.len()),
    };
    let inside: Vec<String> = candidates.iter().filter(in_cluster).map(in_which).collect();
    let inside = format!("nothing was changed: in a cluster already:{}", inside.concat());
    if others > 0 {
        bail!(
            "{inside}\nGive only nodes that are in no cluster; a node leaves one when its drives are emptied while weftd is stopped"
        );
    }
    if let Some(reason) = differs(candidates, arguments) {
        bail!(
            "{inside}\nThat is not the cluster wanted: {reason}. Give only nodes that are in no cluster, or ask `weft status` about this one"
        );
    }
    if candidates.iter().all(|c| c.description.cluster.is_some()) {
        return match missing(candidates) {
            Some(missing) => bail!(
                "{inside}\nThat cluster has other nodes too: {missing}. If it is the one wanted, it stands: see `weft status`"
            ),
            None => Ok(Step::Stands(cluster)),
        };
    }
    let start_over = "To start over: stop weftd on the nodes above, empty their drives, start it, and run this again";
    let Some(map) = kept.filter(|map| map.cluster == cluster) else {
        bail!(
            "{inside}\nThe others are in none. If a formation was interrupted, its plan is needed, and {} is not it: name it with --plan. {start_over}",
            plan.path().display()
        );
    };
    if let Some(reason) = unlike(candidates, arguments, &map) {
        bail!("{inside}\nThis formation was interrupted and can't go on as asked: {reason}. {start_over}");
    }
    Ok(Step::Resume(Box::new(map)))
}

fn in_which(candidate: &Candidate) -> String {
    let Description { name, cluster, .. } = &candidate.description;
    let id = cluster.map(|id| id.to_string()).unwrap_or_default();
    match &candidate.status.cluster {
        Some(cluster) => format!("\n  {name} ({}): {}, {id}", candidate.endpoint, cluster.name),
        None => format!("\n  {name} ({}): {id}", candidate.endpoint),
    }
}

/// How the cluster of the nodes that are in one differs from the one asked for.
fn differs(candidates: &[Candidate], arguments: &Create) -> Option<String> {
    let present = candidates.iter().find_map(|c| c.status.cluster.as_ref())?;
    if present.name != arguments.name {
        return Some(format!("it is named {}, not {}", present.name, arguments.name));
    }
    if present.protection != arguments.protection {
        return Some(format!("its protection is {}, not {}", present.protection, arguments.protection));
    }
    let bits = arguments.bucket_bits.filter(|bits| Some(present.buckets) != 1usize.checked_shl((*bits).into()));
    bits.map(|bits| format!("it has {} buckets, not 2^{bits}", present.buckets))
}

/// Nodes of the cluster that were not given.
fn missing(candidates: &[Candidate]) -> Option<String> {
    let given: BTreeSet<&str> = candidates.iter().map(|c| c.description.name.as_str()).collect();
    let present = candidates.iter().find_map(|c| c.status.cluster.as_ref())?;
    let names: Vec<&str> =
        present.nodes.iter().map(|node| node.name.as_str()).filter(|name| !given.contains(name)).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Why the plan doesn't fit these nodes.
fn unlike(candidates: &[Candidate], arguments: &Create, map: &Map) -> Option<String> {
    let other_bits = arguments.bucket_bits.is_some_and(|bits| bits != map.bucket_bits);
    if map.name != arguments.name || map.protection != arguments.protection || other_bits {
        return Some(format!("its plan is for {} with {} and 2^{} buckets", map.name, map.protection, map.bucket_bits));
    }
    let planned: BTreeMap<&str, _> = map.nodes.values().map(|node| (node.name.as_str(), node.id)).collect();
    let given: BTreeSet<&str> = candidates.iter().map(|c| c.description.name.as_str()).collect();
    if !given.iter().eq(planned.keys()) {
        let names: Vec<&str> = planned.keys().copied().collect();
        return Some(format!("its plan is for exactly the nodes {}", names.join(", ")));
    }
    candidates.iter().filter(|c| c.description.cluster.is_none()).find_map(|candidate| {
        let node = planned.get(candidate.description.name.as_str())?;
        let known = |uuid| map.drives.values().any(|drive| drive.node == *node && drive.uuid == uuid);
        let foreign = candidate.description.drives.iter().find(|drive| !known(drive.uuid))?;
        Some(format!(
            "{} was started anew or has other drives, and the plan doesn't know {} as {}",
            candidate.description.name, foreign.path, foreign.uuid
        ))
    })
}

/// All drives must be good for something.
pub fn check_drives(candidates: &[Candidate]) -> Result<()> {
    let mut unusable = String::new();
    for candidate in candidates {
        let Description { name, drives, .. } = &candidate.description;
        for drive in drives {
            if let Some(problem) = &drive.problem {
                let (path, capacity) = (&drive.path, size::show(drive.capacity_bytes));
                unusable.push_str(&format!("\n  {name}: {path} ({capacity}): {problem}"));
            }
        }
    }
    match unusable.is_empty() {
        true => Ok(()),
        false => bail!(
            "nothing was changed: these drives can't be used:{unusable}\n\
             Empty or replace them, or take them out of the node's configuration, restart weftd there, and run this again"
        ),
    }
}

fn new_map(candidates: &[Candidate], arguments: &Create) -> Result<Map> {
    check_drives(candidates)?;
    let random = |what| random().with_context(|| format!("no random {what} for the cluster"));
    let request = FormRequest {
        cluster: Uuid(u128::from_le_bytes(random("id")?)),
        name: arguments.name.clone(),
        secret: Secret(random("secret")?),
        protection: arguments.protection,
        nodes: candidates.iter().map(|candidate| new_node(&candidate.description)).collect(),
        bucket_bits: arguments.bucket_bits,
    };
    weft_placement::form(&request).map_err(|refusal| anyhow::anyhow!("nothing was changed: {refusal}"))
}

pub fn new_node(description: &Description) -> NewNode {
    let drives = description.drives.iter().map(|drive| NewDrive {
        uuid: drive.uuid,
        core: drive.core,
        capacity_bytes: drive.capacity_bytes,
        zone_bytes: drive.zone_bytes,
        zones: drive.zones,
    });
    NewNode {
        name: description.name.clone(),
        domain: description.domain.clone(),
        cores: description.cores.clone(),
        control: description.control,
        drives: drives.collect(),
    }
}

fn random() -> std::io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn describe_plan(map: &Map) {
    let capacity: u64 = map.drives.values().map(|drive| drive.capacity_bytes).fold(0, u64::saturating_add);
    progress(&format!(
        "forming {} with {}: {} nodes, {} drives of {} together, {} buckets",
        map.name,
        map.protection,
        map.nodes.len(),
        map.drives.len(),
        size::show(capacity),
        map.buckets.len()
    ));
}

/// Gives the map to all nodes, also to those that have it: they say so.
fn form(access: &Access, timeout: Duration, candidates: &[Candidate], map: &Map) -> Result<()> {
    let failures = at_once(candidates, |candidate| {
        let command = Command::Form { map: Box::new(map.clone()) };
        let name = &candidate.description.name;
        let formed = access.call(&candidate.endpoint, command, FORM_MAX).map(drop).or_else(|error| {
            // An earlier run's command may have got there first.
            match describe(access, timeout, &candidate.endpoint) {
                Ok(description) if description.cluster == Some(map.cluster) => Ok(()),
                _ => Err(error),
            }
        });
        match formed {
            Ok(()) => {
                progress(&format!("{name}: drives formatted, in the cluster"));
                None
            }
            Err(error) => Some(format!("\n  {name} ({}): {error}", candidate.endpoint)),
        }
    });
    let failures: Vec<String> = failures.into_iter().flatten().collect();
    if !failures.is_empty() {
        bail!(
            "{} of {} nodes are not in the cluster yet:{}\nCorrect that and run this again: it goes on where it stopped",
            failures.len(),
            candidates.len(),
            failures.concat()
        );
    }
    Ok(())
}

/// Until all nodes serve, and with them all buckets.
fn wait_serving(access: &Access, timeout: Duration, endpoints: &[(String, Endpoint)], wait: Duration) -> Result<()> {
    let deadline = Instant::now() + wait;
    let mut shown = String::new();
    loop {
        let answers = at_once(endpoints, |(_, endpoint)| access.status(endpoint, timeout));
        let named: Vec<_> = endpoints.iter().map(|(name, _)| name.as_str()).zip(&answers).collect();
        let awaited = awaited(&named);
        if awaited.is_empty() {
            return Ok(());
        }
        let text = awaited.join("; ");
        if Instant::now() >= deadline {
            bail!(
                "the cluster was formed, but does not serve after {} s: {text}. See `weft status` and the nodes' logs",
                wait.as_secs()
            );
        }
        if text != shown {
            progress(&format!("waiting: {text}"));
            shown = text;
        }
        std::thread::sleep(POLL);
    }
}

/// What keeps the cluster from serving; empty if nothing does.
fn awaited(answers: &[(&str, &Result<Status, CallError>)]) -> Vec<String> {
    let mut awaited = Vec::new();
    let mut serving = BTreeSet::new();
    let mut buckets = 0;
    for (name, answer) in answers {
        match answer {
            Err(error) => awaited.push(format!("{name}: {error}")),
            Ok(status) => {
                if status.phase != SERVING {
                    let waiting = status.waiting.as_ref().map(|waiting| format!(" ({waiting})"));
                    awaited.push(format!("{name} is {}{}", status.phase, waiting.unwrap_or_default()));
                }
                buckets = buckets.max(status.cluster.as_ref().map_or(0, |cluster| cluster.buckets));
                serving.extend(status.buckets.iter().filter(|bucket| bucket.serving).map(|bucket| bucket.bucket));
            }
        }
    }
    if awaited.is_empty() && (buckets == 0 || serving.len() < buckets) {
        awaited.push(format!("{} of {buckets} buckets serve", serving.len()));
    }
    awaited
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
