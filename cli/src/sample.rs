//! Answers of nodes for tests.

use crate::connection::{CallError, Endpoint};
use crate::gather::{Answered, Gathered};
use weft_wire::control::{
    BucketState, BucketStats, ClusterStatus, DriveState, FilesystemEntry, Holding, ManagerState, NodeState, Status,
};
use weft_wire::map::Protection;
use weft_wire::{DriveId, Incarnation, MapVersion, NodeId, Uuid};

const NODES: u16 = 3;
const BUCKETS_EACH: u32 = 2;

/// The status of a node of a healthy cluster of three nodes with two buckets each.
pub fn status(node: u16) -> Status {
    Status {
        name: format!("node{node}"),
        node: Some(NodeId(node)),
        version: "0.1.0".into(),
        phase: "serving".into(),
        waiting: None,
        incarnation: Some(Incarnation(2)),
        cluster: Some(cluster()),
        manager: Some(ManagerState {
            role: if node == 1 { "leader".into() } else { "follower".into() },
            leader: Some(NodeId(1)),
            term: 4,
            voters: (1..=NODES).map(NodeId).collect(),
            waiting: None,
        }),
        drives: vec![DriveState {
            path: format!("node{node}.drive"),
            id: Some(DriveId(node.into())),
            state: "in use".into(),
            capacity_bytes: 4 << 30,
            zones: 100,
            zones_free: 75,
            ring_used_bytes: 1 << 20,
            errors: 0,
            trouble: None,
        }],
        buckets: (0..BUCKETS_EACH).map(|index| bucket(u32::from(node - 1) * BUCKETS_EACH + index)).collect(),
        unreached: Vec::new(),
    }
}

/// The counters of each bucket.
pub fn stats(gathered: &mut Gathered) -> impl Iterator<Item = &mut BucketStats> {
    let statuses = gathered.nodes.iter_mut().filter_map(|node| node.status.as_mut().ok());
    statuses.flat_map(|status| &mut status.buckets).filter_map(|bucket| bucket.stats.as_mut())
}

/// Changes the map that all nodes tell of.
pub fn map(gathered: &mut Gathered, change: impl Fn(&mut ClusterStatus)) {
    let nodes = gathered.nodes.iter_mut().filter_map(|node| node.status.as_mut().ok());
    for cluster in nodes.chain([&mut gathered.first]).filter_map(|status| status.cluster.as_mut()) {
        change(cluster);
    }
    if let Some(cluster) = &gathered.first.cluster {
        for node in &mut gathered.nodes {
            let known =
                cluster.nodes.iter().find(|entry| node.entry.as_ref().is_some_and(|own| own.node == entry.node));
            node.entry = known.cloned();
        }
    }
}

pub fn bucket(bucket: u32) -> BucketState {
    let stats = BucketStats { commits: 10, stripes: 3, ..BucketStats::default() };
    BucketState { bucket, epoch: 2, state: "serving".into(), serving: true, stats: Some(stats) }
}

fn cluster() -> ClusterStatus {
    ClusterStatus {
        name: "weft1".into(),
        id: Uuid(42),
        protection: Protection { data: 4, parity: 2 },
        map: MapVersion(7),
        buckets: usize::from(NODES) * BUCKETS_EACH as usize,
        nodes: (1..=NODES)
            .map(|node| NodeState {
                node: NodeId(node),
                name: format!("node{node}"),
                state: "up".into(),
                control: ([127, 0, 0, 1], 7100 + node).into(),
                leads: BUCKETS_EACH as usize,
                manager: true,
                domain: format!("node{node}"),
                holds: Holding { shards: 6, former: 0, journals: 4 },
            })
            .collect(),
        filesystems: vec![FilesystemEntry { name: "home".into(), id: 1, state: "ready".into(), size_bytes: 10 << 30 }],
        clients: 2,
        drives: Vec::new(),
        moves_under_way: 0,
        moves_waiting: 0,
        folded: 0,
        journals_lacking: 0,
        hot_spare: 0,
    }
}

/// All nodes answered.
pub fn gathered(nodes: u16) -> Gathered {
    let first = status(1);
    let answered = |node: u16| Answered {
        entry: first.cluster.as_ref().and_then(|cluster| cluster.nodes.get(usize::from(node) - 1).cloned()),
        endpoint: Endpoint::Tcp(format!("127.0.0.1:{}", 7100 + node)),
        status: Ok(status(node)),
    };
    let nodes = (1..=nodes).map(answered).collect();
    Gathered { first, nodes }
}

pub fn silence(gathered: &mut Gathered, index: usize) {
    gathered.nodes[index].status = Err(CallError::NoAnswer("nobody listens there".into()));
}
