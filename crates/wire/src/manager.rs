//! Between managers, and from anyone to them.

use crate::map::{Delta, Map, NewDrive, NewNode, Purpose};
use crate::*;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManagerRequest {
    /// An encoded message of the consensus, in the body. Answered at once with `Lives`, and, if the other has something to say
    /// to it that need not be stored first, with another such message in the body.
    Raft { cluster: Uuid, from: NodeId },
    /// Work for the managers' leader.
    Propose { cluster: Uuid, proposal: Proposal },
    /// A node tells the managers' leader that it lives, and whether it lately heard an answer: a node that talks and hears
    /// nobody is none that works. Answered with `Ok` or `NotLeader`.
    Alive { cluster: Uuid, node: NodeId, incarnation: Incarnation, hears: bool },
    /// This life of a node has ended: its supervisor saw it, or nobody listens at its address any more. Every manager may be
    /// told. Answered at once with `Ok`.
    Died { cluster: Uuid, node: NodeId, incarnation: Incarnation },
    /// A node gave no answer to whoever sends this: a reason to ask it, no more. Answered at once with `Ok`.
    Suspect { cluster: Uuid, node: NodeId },
    /// Which life of the node listens here? Answered with `Lives`.
    Probe { cluster: Uuid },
    /// A manager lost what it had promised to remember: it asks for a new vote. Answered with `Rejoin`.
    Rejoin { cluster: Uuid, node: NodeId },
    /// A manager that hears of no leader asks whether it still is one. Answered with `Vote`.
    HasVote { cluster: Uuid, voter: u64 },
}

/// A node or one of its drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    Node(NodeId),
    Drive(DriveId),
}

impl core::fmt::Display for Part {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Drive(drive) => drive.fmt(f),
        }
    }
}

/// Why a bucket is to be led elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandOverReason {
    /// The other leads fewer: only as far as the balance gets better.
    Balance,
    /// The leader can't reach nodes that the managers reach.
    Reach,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proposal {
    /// A node started: gives it an incarnation, its addresses, and new epochs for the buckets it leads.
    NodeStarted {
        node: NodeId,
        cores: Vec<std::net::SocketAddr>,
        control: std::net::SocketAddr,
    },
    /// New epochs for buckets whose leader lost its old one without a restart.
    NewEpochs {
        node: NodeId,
        incarnation: Incarnation,
        buckets: Vec<BucketId>,
    },
    /// The leader of an epoch gives its bucket to another core, and serves until it is so.
    HandOver {
        node: NodeId,
        incarnation: Incarnation,
        bucket: BucketId,
        epoch: Epoch,
        to: CoreId,
        reason: HandOverReason,
    },
    /// The leader of an epoch asks for a better ensemble for its bucket's journal.
    NewEnsemble {
        node: NodeId,
        incarnation: Incarnation,
        bucket: BucketId,
        epoch: Epoch,
    },
    /// The leader of an epoch has everything from earlier ensembles on P+1 of the newest: they may be forgotten.
    TailCopied {
        node: NodeId,
        incarnation: Incarnation,
        bucket: BucketId,
        epoch: Epoch,
    },
    /// A drive of the node can't be written any more, this life of the node has found.
    DriveFailed {
        node: NodeId,
        incarnation: Incarnation,
        drive: DriveId,
    },
    /// The leader of an epoch has found that nothing of its bucket is left on these former members.
    Moved {
        node: NodeId,
        incarnation: Incarnation,
        bucket: BucketId,
        epoch: Epoch,
        layout: Layout,
        drives: Vec<DriveId>,
    },
    /// A node is to become part of the cluster; it takes part once it has started.
    AddNode {
        new: NewNode,
        /// It takes the place of a node of this name whose drives are lost.
        replace: bool,
    },
    /// A drive is to become part of a running node; it takes part once `DriveReady` says so.
    AddDrive {
        node: NodeId,
        incarnation: Incarnation,
        drive: NewDrive,
    },
    /// The drive is formatted.
    DriveReady {
        node: NodeId,
        incarnation: Incarnation,
        drive: DriveId,
    },
    /// An operator's order: to be emptied, or no longer.
    SetPurpose {
        part: Part,
        purpose: Purpose,
    },
    /// Takes out of the map what holds nothing any more.
    Remove {
        part: Part,
    },
    HotSpare {
        nodes: u16,
    },
    CreateFilesystem {
        name: String,
        size_bytes: u64,
    },
    /// The root directory stands; the filesystem may be mounted.
    FilesystemReady {
        fs: FsId,
    },
    DeleteFilesystem {
        name: String,
    },
    FilesystemGone {
        fs: FsId,
    },
    /// A mount asks for an id.
    NewClient {
        host: String,
    },
    RemoveClient {
        client: ClientId,
    },
    FenceClient {
        client: ClientId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManagerReply {
    Ok,
    /// Committed; the map is at least this version.
    Committed {
        version: MapVersion,
        incarnation: Incarnation,
        fs: FsId,
        client: ClientId,
    },
    /// Ask this node instead, if it is known.
    NotLeader(Option<NodeId>),
    /// No quorum of managers answers; nothing was changed, or it is unknown whether it was.
    NoQuorum,
    /// It can't be done; the text says why and what to do.
    Refused(String),
    /// The life of the node that answers; none before it is admitted.
    Lives {
        incarnation: Option<Incarnation>,
    },
    /// The voter's id that a manager without memory has from now on.
    Rejoin {
        voter: u64,
    },
    Vote {
        has: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapRequest {
    /// Deltas after `have`, or the whole map if they are gone. Waits up to `wait_ms` for something newer. Who has no map
    /// yet asks for that of whatever `cluster` the node is in; otherwise nodes of others have none to give.
    Get { cluster: Option<Uuid>, have: MapVersion, wait_ms: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapReply {
    Deltas(Vec<Delta>),
    Whole(Box<Map>),
    /// The node has no map: it is in no cluster yet, or still looking for its peers.
    None,
}
