//! What `weft status` is told of the map and of a bucket.

use crate::lead::LeadStats;
use std::collections::BTreeMap;
use weft_wire::control::{BucketStats, ClusterStatus, DriveEntry, FilesystemEntry, Holding, NodeState};
use weft_wire::map::{Map, State};
use weft_wire::{DriveId, NodeId};

/// What the map has on each drive and node, counted in one go.
#[derive(Default)]
struct Holdings {
    drives: BTreeMap<DriveId, Holding>,
    leads: BTreeMap<NodeId, usize>,
}

impl Holdings {
    fn of(map: &Map) -> Self {
        let mut holdings = Self::default();
        for bucket in &map.buckets {
            *holdings.leads.entry(bucket.leader.node).or_default() += 1;
            for member in &bucket.members {
                holdings.drives.entry(*member).or_default().shards += 1;
            }
            for former in &bucket.former {
                holdings.drives.entry(former.drive).or_default().former += 1;
            }
            let mut journals: Vec<DriveId> =
                bucket.ensembles.iter().flat_map(|ensemble| &ensemble.drives).copied().collect();
            journals.sort_unstable();
            journals.dedup();
            for drive in journals {
                holdings.drives.entry(drive).or_default().journals += 1;
            }
        }
        holdings
    }

    fn leads_of(&self, node: NodeId) -> usize {
        self.leads.get(&node).copied().unwrap_or_default()
    }

    fn of_node(&self, map: &Map, node: NodeId) -> Holding {
        let of_node = map.drives.values().filter(|drive| drive.node == node);
        of_node.filter_map(|drive| self.drives.get(&drive.id)).fold(Holding::default(), |sum, holding| Holding {
            shards: sum.shards + holding.shards,
            former: sum.former + holding.former,
            journals: sum.journals + holding.journals,
        })
    }
}

/// What is being drained and holds nothing any more is drained.
fn state_word(state: State, is_empty: bool) -> String {
    match (state, is_empty) {
        (State::Draining, true) => "drained".into(),
        _ => format!("{state:?}").to_lowercase(),
    }
}

pub(crate) fn cluster_status(map: &Map) -> ClusterStatus {
    let moves = weft_placement::moves(map);
    let holdings = Holdings::of(map);
    ClusterStatus {
        name: map.name.clone(),
        id: map.cluster,
        protection: map.protection,
        map: map.version,
        buckets: map.buckets.len(),
        nodes: map
            .nodes
            .values()
            .map(|node| {
                let (leads, manager) = (holdings.leads_of(node.id), map.managers.contains(&node.id));
                let holds = holdings.of_node(map, node.id);
                NodeState {
                    node: node.id,
                    name: node.name.clone(),
                    state: state_word(node.state, holds == Holding::default() && leads == 0 && !manager),
                    control: node.control,
                    leads,
                    manager,
                    domain: node.domain_name.clone().unwrap_or_else(|| node.name.clone()),
                    holds,
                }
            })
            .collect(),
        drives: map
            .drives
            .values()
            .map(|drive| {
                let holds = holdings.drives.get(&drive.id).copied().unwrap_or_default();
                DriveEntry {
                    drive: drive.id,
                    node: drive.node,
                    state: state_word(drive.state, holds == Holding::default()),
                    holds,
                }
            })
            .collect(),
        moves_under_way: moves.under_way,
        moves_waiting: moves.waiting,
        folded: weft_placement::folded(map),
        journals_lacking: weft_placement::journals_lacking(map),
        hot_spare: map.hot_spare,
        filesystems: map
            .filesystems
            .values()
            .map(|fs| FilesystemEntry {
                name: fs.name.clone(),
                id: fs.id.0,
                state: format!("{:?}", fs.state).to_lowercase(),
                size_bytes: fs.size_bytes,
            })
            .collect(),
        clients: map.clients.len(),
    }
}

pub(crate) fn bucket_stats(LeadStats { bucket: stats, page_splits }: LeadStats) -> BucketStats {
    BucketStats {
        commits: stats.commits,
        destaged_blocks: stats.destaged_blocks,
        checkpoints: stats.checkpoints,
        merges: stats.merges,
        cleaned_sets: stats.cleaned_sets,
        page_splits,
        freed_sets: stats.freed_sets,
        repaired_stripes: stats.repaired_stripes,
        checksum_errors: stats.checksum_errors,
        reconstructions: stats.reconstructions,
        stripes: stats.stripes,
        zone_sets: stats.zone_sets,
        runs: stats.runs,
        held_bytes: stats.held_bytes,
        index_resident_bytes: stats.index_resident_bytes,
        journal_bytes: stats.journal_bytes,
        stripes_by_missing: stats.stripes_by_missing,
        rebuild_bytes_done: stats.rebuild.bytes_done,
        rebuilt_bytes: stats.rebuilt_bytes,
        rebuild_bytes_left: stats.rebuild.bytes_left,
        rebuild_bytes_per_second: stats.rebuild.bytes_per_second,
        slow_drives: stats.slow_drives,
        hedged_reads: stats.hedged_reads,
        lost_stripes: stats.lost_stripes,
        trouble: stats.trouble,
    }
}
