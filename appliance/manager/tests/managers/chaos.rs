//! Crashes, cuts and losses in any order: what was acknowledged stays, and no version of the map has two contents.

use crate::cluster::*;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_manager::Patience;
use weft_wire::manager::{ManagerReply, Proposal};
use weft_wire::map::Map;
use weft_wire::{ClientId, MapVersion, NodeId, encode};

/// What was seen of each version, anywhere.
#[derive(Default)]
struct Seen(BTreeMap<MapVersion, bytes::Bytes>);

impl Seen {
    fn look(&mut self, cluster: &Cluster) {
        for (number, manager) in cluster.running() {
            let Some(map) = manager.map() else { continue };
            let bytes = encode::<Map>(&map);
            let first = self.0.entry(map.version).or_insert_with(|| bytes.clone());
            assert!(*first == bytes, "node {number} has another {}", map.version);
        }
    }
}

/// Returns how often a manager lost its memory.
fn history(seed: u64) -> u32 {
    const NODES: u16 = 7;
    let mut cluster = Cluster::formed(NODES, seed);
    let handle = cluster.time.handle();
    let patience = Patience { total: Duration::from_secs(3), ..Patience::default() };
    let mut seen = Seen::default();
    let mut acknowledged: Vec<ClientId> = Vec::new();
    let mut down: Vec<u16> = Vec::new();
    let mut forgot = 0;
    for step in 0..40u64 {
        let pick = |below: u64| handle.random_below(below);
        match pick(9) {
            // One of five forgets; not another one before it has its vote back.
            8 if down.is_empty() && cluster.all_vote() => {
                let number = cluster.newest().managers[pick(5) as usize].0;
                cluster.crash(number);
                cluster.store(number).wipe(drive(number, pick(2) as u16));
                cluster.start(number);
                drop(handle.spawn("starting", cluster.starting(number)));
                forgot += 1;
            }
            0 | 1 if down.len() < 3 => {
                let number = pick(u64::from(NODES)) as u16 + 1;
                if !down.contains(&number) {
                    cluster.crash(number);
                    down.push(number);
                }
            }
            2 if pick(4) == 0 => {
                (1..=NODES).filter(|number| !down.contains(number)).collect::<Vec<_>>().into_iter().for_each(
                    |number| {
                        cluster.crash(number);
                    },
                );
                (1..=NODES).for_each(|number| cluster.start(number));
                down.clear();
            }
            3 => {
                let (from, to) = (pick(u64::from(NODES)) as u16 + 1, pick(u64::from(NODES)) as u16 + 1);
                cluster.net.cut(core(NodeId(from)), core(NodeId(to)));
            }
            4 => cluster.net.mend_all(),
            5 => cluster.net.set_loss(pick(200_000)),
            _ => {
                if !down.is_empty() {
                    let number = down.remove(pick(down.len() as u64) as usize);
                    cluster.start(number);
                    drop(handle.spawn("starting", cluster.starting(number)));
                }
            }
        }
        seen.look(&cluster);
        let numbers: Vec<u16> = cluster.running().map(|(number, _)| number).collect();
        let asked = numbers[pick(numbers.len() as u64) as usize];
        let manager = cluster.manager(asked);
        let proposal = Proposal::NewClient { host: format!("step{step}") };
        if let ManagerReply::Committed { client, .. } = cluster.time.block_on(manager.propose(proposal, patience)) {
            assert!(acknowledged.last().is_none_or(|last| *last < client), "an id was given twice or out of order");
            acknowledged.push(client);
        }
        cluster.time.run_for(Duration::from_millis(pick(1_500)));
        seen.look(&cluster);
    }
    cluster.net.mend_all();
    cluster.net.set_loss(0);
    cluster.start_all(down);
    let (_, any) = cluster.running().next().unwrap();
    let last = Proposal::NewClient { host: "last".into() };
    let reply = cluster.time.block_on(any.propose(last, Patience { total: Duration::from_secs(60), ..patience }));
    assert!(matches!(reply, ManagerReply::Committed { .. }), "healed, and still {reply:?}");
    let map = cluster.agreed();
    seen.look(&cluster);
    for client in acknowledged {
        assert!(map.clients.contains_key(&client), "{client} was acknowledged and is gone");
    }
    cluster.until("every manager votes", Cluster::all_vote);
    forgot
}

#[test]
fn acknowledged_changes_survive_whatever_happens() {
    let forgot: u32 = (0..24).map(|seed| history(1000 + seed)).sum();
    assert!(forgot > 10, "only {forgot} managers lost their memory");
}

#[test]
fn a_history_repeats_from_its_seed() {
    let run = |seed| {
        let mut cluster = Cluster::formed(6, seed);
        cluster.net.set_loss(50_000);
        cluster.crash(2);
        cluster.create(1, "one");
        cluster.start_all([2]);
        (cluster.time.handle().now(), encode::<Map>(&cluster.agreed()))
    };
    assert_eq!(run(7), run(7));
}
