//! What `weft` says to a node and what the node answers: one line of JSON each way, over the node's Unix socket, or over
//! TCP with the token first.

use crate::manager::Part;
use crate::map::{Map, NewNode, Protection, Purpose};
use crate::{DriveId, Incarnation, MapVersion, NodeId, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Longest line that either side takes.
pub const LINE_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Not needed on the Unix socket: whoever can open it may do everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    pub command: Command,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// What the node has, for whoever forms a cluster.
    Describe,
    /// Makes the node part of a new cluster: formats its drives.
    Form {
        map: Box<Map>,
    },
    /// The whole map, with the cluster's secret.
    Map,
    /// Lets a node join the cluster. It is then given the map with `Form`.
    AddNode {
        new: NewNode,
        /// It takes the place of one of the same name whose drives are lost.
        replace: bool,
    },
    /// Formats a blank drive of this node and makes it part of the cluster.
    AddDrive {
        path: String,
    },
    /// A node or drive is to be emptied, or no longer.
    SetPurpose {
        part: Part,
        purpose: Purpose,
    },
    /// Takes a node or drive that holds nothing out of the cluster.
    Remove {
        part: Part,
    },
    /// Keeps so many nodes' capacity free.
    HotSpare {
        nodes: u16,
    },
    /// What the node knows and does.
    Status,
    Events,
    /// The token that all nodes of the cluster take over TCP. Only over the Unix socket.
    Token,
    CreateFilesystem {
        name: String,
        size_bytes: u64,
    },
    DeleteFilesystem {
        name: String,
    },
    /// A supervisor's word: this life of a node's daemon has ended. Also taken as a datagram.
    Died {
        node: NodeId,
        incarnation: Incarnation,
    },
    /// Begins a pass over all buckets that the node leads; a node makes one at a time.
    BeginPass {
        kind: PassKind,
        /// What it may read a second; the node's own bound if not given. Checks know no bound.
        pace_bytes: Option<u64>,
    },
    StopPass {
        kind: PassKind,
    },
    /// How the newest pass of a kind goes, or went.
    Pass {
        kind: PassKind,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Description(Description),
    Done,
    Status(Box<Status>),
    Events(Vec<Event>),
    Token(String),
    Pass(Box<PassState>),
    Map(Box<Map>),
    /// What was asked for can't be done; the text says why and what to do.
    Refused(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    pub name: String,
    pub domain: Option<String>,
    pub cores: Vec<SocketAddr>,
    pub control: SocketAddr,
    /// The cluster that the node is in.
    pub cluster: Option<Uuid>,
    pub drives: Vec<DriveDescription>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DriveDescription {
    pub path: String,
    /// A blank drive has one for the time being.
    pub uuid: Uuid,
    pub core: u8,
    pub capacity_bytes: u64,
    pub zone_bytes: u64,
    pub zones: u32,
    /// Why it can't become part of a cluster.
    pub problem: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since 1970.
    pub time_ns: i64,
    pub level: String,
    pub text: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    pub node: Option<NodeId>,
    pub version: String,
    /// What the node is doing, in a word.
    pub phase: String,
    /// What it waits for, if it does.
    pub waiting: Option<String>,
    pub incarnation: Option<Incarnation>,
    pub cluster: Option<ClusterStatus>,
    pub manager: Option<ManagerState>,
    pub drives: Vec<DriveState>,
    pub buckets: Vec<BucketState>,
    /// Nodes that don't answer this one though the managers reach them.
    #[serde(default)]
    pub unreached: Vec<NodeId>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterStatus {
    pub name: String,
    pub id: Uuid,
    pub protection: Protection,
    pub map: MapVersion,
    pub buckets: usize,
    pub nodes: Vec<NodeState>,
    pub filesystems: Vec<FilesystemEntry>,
    pub clients: usize,
    /// The map's drives, also those of nodes that don't answer.
    #[serde(default)]
    pub drives: Vec<DriveEntry>,
    /// Shards of buckets that are on their way to another drive, and those that will be.
    #[serde(default)]
    pub moves_under_way: u64,
    #[serde(default)]
    pub moves_waiting: u64,
    /// Buckets that have two shards in one domain, because there were too few domains.
    #[serde(default)]
    pub folded: usize,
    /// Buckets whose journal has fewer copies than it should, on drives that are there.
    #[serde(default)]
    pub journals_lacking: usize,
    /// So many nodes' capacity is kept free.
    #[serde(default)]
    pub hot_spare: u16,
}

/// What is on a node's drives, or on one drive, as the map has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Buckets' shards that belong there.
    pub shards: u64,
    /// That may still be there and belong elsewhere.
    pub former: u64,
    /// Buckets' journals.
    pub journals: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DriveEntry {
    pub drive: DriveId,
    pub node: NodeId,
    pub state: String,
    pub holds: Holding,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeState {
    pub node: NodeId,
    pub name: String,
    pub state: String,
    pub control: SocketAddr,
    pub leads: usize,
    pub manager: bool,
    /// Its failure domain: what its configuration calls it, or the node's own name.
    #[serde(default)]
    pub domain: String,
    #[serde(default)]
    pub holds: Holding,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilesystemEntry {
    pub name: String,
    pub id: u32,
    pub state: String,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ManagerState {
    pub role: String,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// Who votes, as far as this manager knows.
    #[serde(default)]
    pub voters: Vec<NodeId>,
    pub waiting: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DriveState {
    pub path: String,
    pub id: Option<DriveId>,
    pub state: String,
    pub capacity_bytes: u64,
    pub zones: u32,
    pub zones_free: u32,
    pub ring_used_bytes: u64,
    pub errors: u64,
    /// Why the last write failed, if it did.
    #[serde(default)]
    pub trouble: Option<String>,
}

impl ManagerState {
    /// The role of the one whose word counts.
    pub const LEADER: &str = "leader";
}

impl DriveState {
    /// The state of a drive that serves.
    pub const IN_USE: &str = "in use";
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BucketState {
    pub bucket: u32,
    pub epoch: u64,
    /// `serving`, or what it waits for.
    pub state: String,
    pub serving: bool,
    pub stats: Option<BucketStats>,
}

/// Counts since the bucket was opened, and what it holds now.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BucketStats {
    pub commits: u64,
    pub destaged_blocks: u64,
    pub checkpoints: u64,
    pub merges: u64,
    pub cleaned_sets: u64,
    /// Pages of directories that have split.
    #[serde(default)]
    pub page_splits: u64,
    pub freed_sets: u64,
    pub repaired_stripes: u64,
    pub checksum_errors: u64,
    pub reconstructions: u64,
    pub stripes: u64,
    pub zone_sets: u64,
    pub runs: u64,
    pub held_bytes: u64,
    pub index_resident_bytes: u64,
    pub journal_bytes: u64,
    /// Stripes by how many of their shards can't be read now: whole ones, those that lack one, and so on; the last number
    /// is of those that lack more than the protection survives.
    #[serde(default)]
    pub stripes_by_missing: Vec<u64>,
    /// Of what lacks shards or moves, since the last time that nothing did.
    #[serde(default)]
    pub rebuild_bytes_done: u64,
    /// What there is a place for.
    #[serde(default)]
    pub rebuild_bytes_left: u64,
    /// Written since the bucket was opened because shards were lacking or moved.
    #[serde(default)]
    pub rebuilt_bytes: u64,
    #[serde(default)]
    pub rebuild_bytes_per_second: u64,
    /// Drives that answer much later than others do.
    #[serde(default)]
    pub slow_drives: BTreeSet<DriveId>,
    #[serde(default)]
    pub hedged_reads: u64,
    /// More is lost of them than the protection survives.
    #[serde(default)]
    pub lost_stripes: u64,
    pub trouble: Option<String>,
}

/// Something that is done to everything a node leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassKind {
    /// Every block is read and compared with its checksum.
    Scrub,
    /// Everything that buckets say of themselves is compared with the drives.
    Check,
}

impl PassKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Scrub => "scrub",
            Self::Check => "check",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassPhase {
    Never,
    Running,
    Ended,
    /// Ended before it was through, because someone asked for that or for another pass.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassCause {
    Asked,
    Schedule,
}

/// A node's newest pass of one kind. Times are nanoseconds since 1970, 0 as long as there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassState {
    pub kind: PassKind,
    pub phase: PassPhase,
    pub cause: PassCause,
    pub started_ns: i64,
    pub ended_ns: i64,
    pub buckets: u64,
    pub buckets_done: u64,
    /// Stripes there were when it began.
    pub stripes: u64,
    pub stripes_done: u64,
    /// Blocks of 4 KiB that are as they were written.
    pub blocks: u64,
    /// Stripes with a wrong or unreadable block.
    pub damaged: u64,
    /// Stripes that were repaired while their bucket was gone through.
    pub repaired: u64,
    /// Damaged stripes that wait for their repair just now, whoever found them.
    pub waiting_for_repair: u64,
    /// Shards that could not be looked at: their drives were away.
    pub unreachable_shards: u64,
    /// What was found and where, as far as there is room.
    pub problems: Vec<String>,
    pub more_problems: u64,
    /// Buckets that were not gone through to the end, with the reason.
    pub unfinished: Vec<String>,
    /// When the next bucket is due by schedule.
    pub next_ns: Option<i64>,
}

impl PassState {
    /// No pass of this kind was made since the node started.
    pub fn never(kind: PassKind) -> Self {
        Self {
            kind,
            phase: PassPhase::Never,
            cause: PassCause::Asked,
            started_ns: 0,
            ended_ns: 0,
            buckets: 0,
            buckets_done: 0,
            stripes: 0,
            stripes_done: 0,
            blocks: 0,
            damaged: 0,
            repaired: 0,
            waiting_for_repair: 0,
            unreachable_shards: 0,
            problems: Vec::new(),
            more_problems: 0,
            unfinished: Vec::new(),
            next_ns: None,
        }
    }
}
