//! What the answers of all nodes say together.

use crate::gather::{Answered, Gathered, node_name};
use crate::health::Health;
use serde::Serialize;
use std::collections::BTreeMap;
use weft_wire::NodeId;
use weft_wire::control::{
    BucketState, BucketStats, ClusterStatus, DriveState, FilesystemEntry, Holding, ManagerState, NodeState, Status,
};

pub const SERVING: &str = "serving";
pub const BLANK: &str = "blank";

#[derive(Debug, Serialize)]
pub struct Overview {
    pub health: Health,
    /// What is wrong, and what to do about it.
    pub problems: Vec<String>,
    /// What could not be found out.
    pub unknown: Vec<String>,
    /// What is worth knowing and does not make the cluster unhealthy.
    pub notes: Vec<String>,
    pub cluster: Option<Cluster>,
    pub managers: Option<Managers>,
    pub nodes: Vec<Node>,
    pub buckets: Buckets,
    pub drives: Vec<Drive>,
    pub filesystems: Vec<FilesystemEntry>,
    pub clients: usize,
    /// The sums over all buckets that were told of.
    pub counters: BucketStats,
    pub moves: Option<Moves>,
    /// So many nodes' capacity is kept free.
    pub hot_spare: u16,
    /// About how long it takes until all is rebuilt that there is a place for, at the pace so far.
    pub rebuild_seconds_left: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct Cluster {
    pub name: String,
    pub id: String,
    pub protection: String,
    /// The newest version of the map that any node knows.
    pub map: u64,
}

/// Shards of buckets that go to other drives.
#[derive(Debug, Serialize)]
pub struct Moves {
    pub under_way: u64,
    pub waiting: u64,
    /// About.
    pub bytes_left: u64,
    /// About; nothing if nothing is copied just now.
    pub seconds_left: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct Managers {
    pub total: usize,
    pub answered: usize,
    /// The name of the node that leads them, as most of the newest term say.
    pub leader: Option<String>,
    pub term: u64,
    /// The names of those that vote, as the newest term has it. While managers are replaced these aren't those that the map names.
    pub voters: Vec<String>,
    /// How many of the voters answered.
    pub voters_answered: usize,
}

#[derive(Debug, Serialize)]
pub struct Node {
    pub node: Option<u16>,
    pub name: String,
    pub control: String,
    pub answered: bool,
    pub phase: Option<String>,
    pub waiting: Option<String>,
    /// What the managers believe of it.
    pub state: Option<String>,
    pub incarnation: Option<u64>,
    pub version: Option<String>,
    pub map: Option<u64>,
    pub leads: usize,
    pub serves: usize,
    /// Its failure domain.
    pub domain: Option<String>,
    /// What is on its drives, by the map.
    pub holds: Option<Holding>,
    pub manager: bool,
    pub manager_role: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct Buckets {
    pub total: usize,
    pub serving: usize,
    pub told: Vec<Bucket>,
    /// Buckets of which no node told.
    pub untold: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub struct Bucket {
    /// The node that leads it.
    pub node: String,
    #[serde(flatten)]
    pub state: BucketState,
}

#[derive(Debug, Serialize)]
pub struct Drive {
    pub node: String,
    /// What the cluster's map says of it: `up`, `failed`, `draining`, `drained`, `joining`; none if it is in no map.
    pub in_map: Option<String>,
    #[serde(flatten)]
    pub state: DriveState,
}

impl Drive {
    /// The word of the table: the map's, if a drive that its node can use has another part than to serve.
    pub fn word(&self) -> &str {
        let in_map = self.in_map.as_deref().filter(|word| self.state.state == DriveState::IN_USE && *word != "up");
        in_map.unwrap_or(&self.state.state)
    }

    /// How much is in use, in percent of the zones.
    pub fn used_percent(&self) -> Option<u64> {
        let used = self.state.zones.saturating_sub(self.state.zones_free);
        (u64::from(used) * 100).checked_div(self.state.zones.into())
    }
}

impl Overview {
    pub fn new(gathered: &Gathered) -> Self {
        let newest = newest(gathered);
        let buckets = newest.map(|cluster| buckets(cluster, &gathered.nodes)).unwrap_or_default();
        let nodes = gathered.nodes.iter().map(|answered| node(answered, &buckets)).collect();
        let managers = newest.map(|cluster| managers(cluster, &gathered.nodes));
        let counters = sum(&buckets);
        let rebuild_seconds_left = rebuild_seconds_left(&buckets);
        let mut overview = Self {
            health: Health::Unknown,
            problems: Vec::new(),
            unknown: Vec::new(),
            notes: Vec::new(),
            cluster: newest.map(|cluster| Cluster {
                name: cluster.name.clone(),
                id: cluster.id.to_string(),
                protection: cluster.protection.to_string(),
                map: cluster.map.0,
            }),
            managers,
            nodes,
            buckets,
            drives: drives(gathered),
            filesystems: newest.map(|cluster| cluster.filesystems.clone()).unwrap_or_default(),
            clients: newest.map_or(0, |cluster| cluster.clients),
            moves: newest.and_then(|cluster| moves(cluster, &gathered.nodes, &counters)),
            hot_spare: newest.map_or(0, |cluster| cluster.hot_spare),
            counters,
            rebuild_seconds_left,
        };
        crate::health::judge(&mut overview, gathered, newest);
        overview
    }
}

/// Shards on their way, with an estimate: the mean of what a shard takes, at the pace at which shards are made now.
fn moves(cluster: &ClusterStatus, nodes: &[Answered], counters: &BucketStats) -> Option<Moves> {
    let left = cluster.moves_under_way + cluster.moves_waiting;
    if left == 0 {
        return None;
    }
    let shards = cluster.buckets as u64 * cluster.protection.shards() as u64;
    let used = |state: &DriveState| {
        let zones = u64::from(state.zones.saturating_sub(state.zones_free));
        (zones * state.capacity_bytes).checked_div(u64::from(state.zones)).unwrap_or(0)
    };
    let used: u64 = statuses(nodes).flat_map(|(_, status)| &status.drives).map(used).sum();
    let bytes_left = (used / shards.max(1)).saturating_mul(left);
    let pace = counters.rebuild_bytes_per_second;
    Some(Moves {
        under_way: cluster.moves_under_way,
        waiting: cluster.moves_waiting,
        bytes_left,
        seconds_left: bytes_left.checked_div(pace),
    })
}

/// The cluster as the node with the newest map sees it.
fn newest(gathered: &Gathered) -> Option<&ClusterStatus> {
    let first = gathered.first.cluster.as_ref()?;
    let told = statuses(&gathered.nodes).filter_map(|(_, status)| status.cluster.as_ref());
    // Of equal versions the first node's.
    let newer = told.filter(|cluster| cluster.id == first.id && cluster.map > first.map);
    Some(newer.max_by_key(|cluster| cluster.map).unwrap_or(first))
}

fn statuses(nodes: &[Answered]) -> impl Iterator<Item = (&Answered, &Status)> {
    nodes.iter().filter_map(|answered| Some((answered, answered.status.as_ref().ok()?)))
}

fn name(answered: &Answered) -> String {
    match (&answered.entry, &answered.status) {
        (Some(entry), _) => entry.name.clone(),
        (None, Ok(status)) => status.name.clone(),
        (None, Err(_)) => answered.endpoint.to_string(),
    }
}

fn node(answered: &Answered, buckets: &Buckets) -> Node {
    let (entry, status) = (answered.entry.as_ref(), answered.status.as_ref().ok());
    let name = name(answered);
    Node {
        node: entry.map(|entry| entry.node.0),
        control: entry.map_or_else(|| answered.endpoint.to_string(), |entry| entry.control.to_string()),
        answered: status.is_some(),
        phase: status.map(|status| status.phase.clone()),
        waiting: status.and_then(|status| status.waiting.clone()),
        state: entry.map(|entry| entry.state.clone()),
        incarnation: status.and_then(|status| status.incarnation).map(|incarnation| incarnation.0),
        version: status.map(|status| status.version.clone()),
        map: status.and_then(|status| status.cluster.as_ref()).map(|cluster| cluster.map.0),
        leads: entry.map_or(0, |entry| entry.leads),
        serves: buckets.told.iter().filter(|bucket| bucket.node == name && bucket.state.serving).count(),
        domain: entry.map(|entry| entry.domain.clone()),
        holds: entry.map(|entry| entry.holds),
        manager: entry.is_some_and(|entry| entry.manager),
        manager_role: status.and_then(|status| status.manager.as_ref()).map(|manager| manager.role.clone()),
        name,
    }
}

/// Each bucket once: of two nodes that tell of it, the one with the higher epoch leads it.
fn buckets(cluster: &ClusterStatus, nodes: &[Answered]) -> Buckets {
    let mut told: BTreeMap<u32, Bucket> = BTreeMap::new();
    for (answered, status) in statuses(nodes) {
        for state in status.buckets.iter().filter(|state| (state.bucket as usize) < cluster.buckets) {
            match told.get(&state.bucket) {
                Some(known) if known.state.epoch >= state.epoch => {}
                _ => drop(told.insert(state.bucket, Bucket { node: name(answered), state: state.clone() })),
            }
        }
    }
    Buckets {
        total: cluster.buckets,
        serving: told.values().filter(|bucket| bucket.state.serving).count(),
        untold: (0..cluster.buckets as u32).filter(|bucket| !told.contains_key(bucket)).collect(),
        told: told.into_values().collect(),
    }
}

fn managers(cluster: &ClusterStatus, nodes: &[Answered]) -> Managers {
    // Who was replaced may have been away since, and believe what was true then.
    let states = || statuses(nodes).filter_map(|(answered, status)| Some((answered, status.manager.as_ref()?)));
    let term = states().map(|(_, manager)| manager.term).max().unwrap_or(0);
    let newest = || states().filter(|(_, manager)| manager.term == term).map(|(_, manager)| manager);
    let leader = newest().find_map(|manager| manager.leader);
    // The leader knows first.
    let voters = newest().filter(|manager| !manager.voters.is_empty());
    let voters = voters.max_by_key(|manager| manager.role == ManagerState::LEADER);
    let voters = voters.map(|manager| manager.voters.as_slice()).unwrap_or_default();
    let answered = |node: &&NodeId| {
        states().any(|(answered, _)| answered.entry.as_ref().is_some_and(|entry| entry.node == **node))
    };
    let is_manager = |answered: &Answered| answered.entry.as_ref().is_some_and(|entry| entry.manager);
    Managers {
        total: cluster.nodes.iter().filter(|node: &&NodeState| node.manager).count(),
        answered: states().filter(|(answered, _)| is_manager(answered)).count(),
        leader: leader.map(|leader| node_name(&cluster.nodes, leader)),
        term,
        voters: voters.iter().map(|voter| node_name(&cluster.nodes, *voter)).collect(),
        voters_answered: voters.iter().filter(answered).count(),
    }
}

/// The nodes' drives, as their nodes see them and as the map does.
pub fn drives(gathered: &Gathered) -> Vec<Drive> {
    let entries = newest(gathered).map(|cluster| cluster.drives.as_slice()).unwrap_or_default();
    let in_map = |state: &DriveState| entries.iter().find(|entry| Some(entry.drive) == state.id);
    let drive = |node: &str, state: &DriveState| Drive {
        node: node.into(),
        in_map: in_map(state).map(|entry| entry.state.clone()),
        state: state.clone(),
    };
    let of_node = |(answered, status): (&Answered, &Status)| {
        let name = name(answered);
        status.drives.iter().map(|state| drive(&name, state)).collect::<Vec<_>>()
    };
    statuses(&gathered.nodes).flat_map(of_node).collect()
}

/// The time of the bucket that takes longest. `None`: nothing is left, or nothing is done yet to judge by.
fn rebuild_seconds_left(buckets: &Buckets) -> Option<u64> {
    let stats = buckets.told.iter().filter_map(|bucket| bucket.state.stats.as_ref());
    let left = stats.filter(|stats| stats.rebuild_bytes_left > 0);
    left.map(|stats| stats.rebuild_bytes_left.checked_div(stats.rebuild_bytes_per_second)).max().flatten()
}

fn sum(buckets: &Buckets) -> BucketStats {
    let mut sum = BucketStats::default();
    for stats in buckets.told.iter().filter_map(|bucket| bucket.state.stats.as_ref()) {
        let pairs = [
            (&mut sum.commits, stats.commits),
            (&mut sum.destaged_blocks, stats.destaged_blocks),
            (&mut sum.checkpoints, stats.checkpoints),
            (&mut sum.merges, stats.merges),
            (&mut sum.cleaned_sets, stats.cleaned_sets),
            (&mut sum.page_splits, stats.page_splits),
            (&mut sum.freed_sets, stats.freed_sets),
            (&mut sum.repaired_stripes, stats.repaired_stripes),
            (&mut sum.checksum_errors, stats.checksum_errors),
            (&mut sum.reconstructions, stats.reconstructions),
            (&mut sum.stripes, stats.stripes),
            (&mut sum.zone_sets, stats.zone_sets),
            (&mut sum.runs, stats.runs),
            (&mut sum.held_bytes, stats.held_bytes),
            (&mut sum.index_resident_bytes, stats.index_resident_bytes),
            (&mut sum.journal_bytes, stats.journal_bytes),
            (&mut sum.rebuild_bytes_done, stats.rebuild_bytes_done),
            (&mut sum.rebuild_bytes_left, stats.rebuild_bytes_left),
            (&mut sum.rebuilt_bytes, stats.rebuilt_bytes),
            (&mut sum.rebuild_bytes_per_second, stats.rebuild_bytes_per_second),
            (&mut sum.hedged_reads, stats.hedged_reads),
            (&mut sum.lost_stripes, stats.lost_stripes),
        ];
        for (total, value) in pairs {
            *total = total.saturating_add(value);
        }
        sum.slow_drives.extend(&stats.slow_drives);
        for (missing, stripes) in stats.stripes_by_missing.iter().enumerate() {
            if sum.stripes_by_missing.len() <= missing {
                sum.stripes_by_missing.resize(missing + 1, 0);
            }
            sum.stripes_by_missing[missing] = sum.stripes_by_missing[missing].saturating_add(*stripes);
        }
    }
    sum
}

#[cfg(test)]
#[path = "overview_tests.rs"]
mod tests;
