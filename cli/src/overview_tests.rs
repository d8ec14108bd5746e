use super::*;
use crate::connection::CallError;
use crate::sample;
use weft_wire::{MapVersion, NodeId, Uuid};

fn overview(change: impl FnOnce(&mut Gathered)) -> Overview {
    let mut gathered = sample::gathered(3);
    change(&mut gathered);
    Overview::new(&gathered)
}

/// The status of the node at `index`.
fn at(gathered: &mut Gathered, index: usize) -> &mut Status {
    gathered.nodes[index].status.as_mut().unwrap()
}

#[track_caller]
fn unhealthy(overview: &Overview, part: &str) {
    assert_eq!(overview.health, Health::Unhealthy);
    assert!(overview.problems.iter().any(|problem| problem.contains(part)), "{:?}", overview.problems);
}

#[test]
fn all_is_well() {
    let overview = overview(|_| {});
    assert_eq!(overview.health, Health::Healthy);
    assert!(overview.notes.is_empty() && overview.unknown.is_empty() && overview.problems.is_empty());
    assert_eq!((overview.buckets.serving, overview.buckets.total), (6, 6));
    assert_eq!((overview.counters.commits, overview.counters.stripes), (60, 18));
    assert_eq!(overview.drives.len(), 3);
    assert_eq!(overview.drives[0].used_percent(), Some(25));
}

#[test]
fn a_silent_node_is_a_problem_with_its_buckets() {
    let overview = overview(|gathered| sample::silence(gathered, 1));
    unhealthy(&overview, "node2 does not answer: nobody listens there");
    unhealthy(&overview, "buckets 2, 3: led by node2 (no answer)");
    assert_eq!(overview.buckets.untold, [2, 3]);
    assert_eq!(overview.managers.as_ref().map(|managers| (managers.answered, managers.total)), Some((2, 3)));
}

#[test]
fn what_was_not_asked_is_unknown() {
    let overview = overview(|gathered| {
        gathered.nodes[2].status = Err(CallError::NotAsked("no token".into()));
    });
    assert_eq!(overview.health, Health::Unknown);
    assert_eq!(overview.health.exit_code(), 2);
    assert_eq!(overview.unknown.len(), 2, "{:?}", overview.unknown);
}

#[test]
fn a_known_problem_outweighs_the_unknown() {
    let overview = overview(|gathered| {
        gathered.nodes[2].status = Err(CallError::Refused("wrong token".into()));
        at(gathered, 1).phase = "joining".into();
        at(gathered, 1).waiting = Some("1 of 3 managers answer".into());
    });
    unhealthy(&overview, "node2 is joining (1 of 3 managers answer)");
}

#[test]
fn buckets_that_wait_are_listed_by_reason() {
    let overview = overview(|gathered| {
        for bucket in &mut at(gathered, 0).buckets {
            (bucket.serving, bucket.state) = (false, "waits for 2 drives of its ensemble".into());
        }
    });
    unhealthy(&overview, "buckets 0, 1 (node1): waits for 2 drives of its ensemble");
    assert_eq!(overview.buckets.serving, 4);
}

#[test]
fn of_two_leaders_the_newer_counts() {
    let overview = overview(|gathered| {
        let mut old = sample::bucket(5);
        (old.epoch, old.serving, old.state) = (1, false, "sealed".into());
        at(gathered, 0).buckets.push(old);
        let mut new = sample::bucket(3);
        new.epoch = 9;
        at(gathered, 2).buckets.push(new);
    });
    assert_eq!(overview.health, Health::Healthy, "{:?}", overview.problems);
    let leader = |bucket: u32| overview.buckets.told.iter().find(|told| told.state.bucket == bucket).unwrap();
    assert_eq!((leader(5).node.as_str(), leader(3).node.as_str()), ("node3", "node3"));
}

#[test]
fn troubled_buckets_drives_and_nodes_are_problems() {
    let overview = overview(|gathered| {
        at(gathered, 0).buckets[0].stats.as_mut().unwrap().trouble = Some("no room to clean".into());
        at(gathered, 1).drives[0].state = "the superblocks are damaged".into();
        gathered.nodes[2].entry.as_mut().unwrap().state = "away".into();
        at(gathered, 2).node = Some(NodeId(1));
    });
    unhealthy(&overview, "bucket 0 (node1): in trouble: no room to clean");
    unhealthy(&overview, "drive node2.drive of node2: the superblocks are damaged");
    unhealthy(&overview, "node3 is away in the map");
    unhealthy(&overview, "should be node3");
}

#[test]
fn nodes_that_do_not_reach_each_other_are_a_problem() {
    let overview = overview(|gathered| at(gathered, 1).unreached = vec![NodeId(3)]);
    unhealthy(&overview, "node2 does not reach node3 though the managers do");
}

#[test]
fn a_node_of_another_cluster_is_a_problem() {
    let overview = overview(|gathered| at(gathered, 1).cluster.as_mut().unwrap().id = Uuid(7));
    unhealthy(&overview, "should be node2 and is node2 of cluster");
}

#[test]
fn no_leader_of_the_managers_is_a_problem() {
    let overview = overview(|gathered| {
        for index in 0..3 {
            at(gathered, index).manager.as_mut().unwrap().leader = None;
        }
    });
    unhealthy(&overview, "the managers have no leader: 3 of 3 that vote answer, 2 are needed");
}

#[test]
fn who_votes_is_told_while_managers_are_replaced() {
    let overview = overview(|gathered| {
        for index in 0..3 {
            let manager = at(gathered, index).manager.as_mut().unwrap();
            // The leader has heard of it first.
            manager.voters = if index == 0 { vec![NodeId(1), NodeId(2), NodeId(9)] } else { manager.voters.clone() };
        }
    });
    assert_eq!(overview.health, Health::Healthy);
    let note = "managers are being replaced: node3 has no vote yet, node9 still has one";
    assert_eq!(overview.notes, [note]);
    let managers = overview.managers.unwrap();
    assert_eq!((managers.voters.len(), managers.voters_answered), (3, 2));
}

#[test]
fn the_newest_map_is_shown() {
    let overview = overview(|gathered| {
        let cluster = at(gathered, 2).cluster.as_mut().unwrap();
        (cluster.map, cluster.clients) = (MapVersion(8), 9);
    });
    assert_eq!((overview.cluster.as_ref().map(|cluster| cluster.map), overview.clients), (Some(8), 9));
}

#[test]
fn errors_are_notes() {
    let overview = overview(|gathered| {
        at(gathered, 0).drives[0].errors = 3;
        at(gathered, 0).buckets[0].stats.as_mut().unwrap().checksum_errors = 2;
        at(gathered, 0).version = "0.2.0".into();
    });
    assert_eq!(overview.health, Health::Healthy);
    assert_eq!(overview.notes.len(), 3, "{:?}", overview.notes);
}

#[test]
fn domains_that_ran_out_are_a_problem_and_blank_drives_a_note() {
    let folded = overview(|gathered| crate::sample::map(gathered, |cluster| cluster.folded = 3));
    unhealthy(&folded, "3 of 6 buckets have two shards in one failure domain, as protection 4+2 needs 6 domains");
    let short = overview(|gathered| crate::sample::map(gathered, |cluster| cluster.journals_lacking = 2));
    unhealthy(&short, "the journals of 2 of 6 buckets have fewer than 4 copies");
    let blank = overview(|gathered| at(gathered, 0).drives[0].state = "blank".into());
    assert_eq!(blank.health, Health::Healthy);
    assert!(blank.notes[0].contains("weft drive add node1"), "{:?}", blank.notes);
}

#[test]
fn a_node_without_cluster_says_what_to_do() {
    let overview = overview(|gathered| {
        gathered.nodes.truncate(1);
        gathered.nodes[0].entry = None;
        for status in [&mut gathered.first, gathered.nodes[0].status.as_mut().unwrap()] {
            (status.cluster, status.manager, status.phase) = (None, None, "unclaimed".into());
            status.drives[0].state = "blank".into();
        }
    });
    assert_eq!(overview.health, Health::Unknown);
    assert!(overview.unknown[0].contains("weft cluster create"), "{:?}", overview.unknown);
}

#[test]
fn programs_can_read_it() {
    let json = serde_json::to_string(&overview(|_| {})).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["health"], "healthy");
    assert_eq!(value["cluster"]["id"], "0000000000000000000000000000002a");
    assert_eq!(value["buckets"]["told"][0]["node"], "node1");
    assert_eq!(value["buckets"]["told"][0]["stats"]["commits"], 10);
    assert_eq!(value["drives"][1]["path"], "node2.drive");
}
