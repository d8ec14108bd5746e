//! The map: the cluster's configuration. Agreed by the managers, handed on as deltas, the same everywhere.

use crate::hash::Secret;
use crate::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Data and parity shards of each stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Protection {
    pub data: u8,
    pub parity: u8,
}

impl Protection {
    pub fn shards(self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }
    /// Drives of a journal ensemble when nothing has failed: P+2.
    pub fn ensemble(self) -> usize {
        usize::from(self.parity) + 2
    }
    /// Copies that make a journal record durable: P+1.
    pub fn acknowledge(self) -> usize {
        usize::from(self.parity) + 1
    }
    /// Nodes that vote in the configuration's consensus: 2P+1.
    pub fn managers(self) -> usize {
        2 * usize::from(self.parity) + 1
    }
    /// Failure domains without which a cluster is not formed: max(D+P, 2P+1).
    pub fn domains(self) -> usize {
        self.shards().max(self.managers())
    }
}

impl core::fmt::Display for Protection {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl core::str::FromStr for Protection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("protection {text:?} is not of the form D+P, for example 4+2");
        let (data, parity) = text.split_once('+').ok_or_else(wrong)?;
        let protection = Self {
            data: data.trim().parse().map_err(|_| wrong())?,
            parity: parity.trim().parse().map_err(|_| wrong())?,
        };
        if !(3..=16).contains(&protection.data) {
            return Err(format!("protection {text}: D = {} is outside 3..16", protection.data));
        }
        if !matches!(protection.parity, 2 | 4) {
            return Err(format!("protection {text}: P = {} is neither 2 nor 4", protection.parity));
        }
        Ok(protection)
    }
}

/// What the managers believe of a node or drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// Takes part.
    Up,
    /// Silent or stopped; expected back.
    Away,
    /// Given up: its shards are rebuilt elsewhere.
    Failed,
    /// Takes part, and is being emptied by an operator's order.
    Draining,
    /// Added to the map, and has not taken part yet: a node that never started, a drive that is not formatted.
    Joining,
}

/// What an operator wants of a node or drive, whether it lives or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Purpose {
    #[default]
    Serve,
    /// To be emptied, and then removed.
    Leave,
}

impl Purpose {
    /// The state of a node or drive that takes part.
    pub fn present(self) -> State {
        match self {
            Self::Serve => State::Up,
            Self::Leave => State::Draining,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    pub domain: DomainId,
    /// What its configuration calls the domain; nodes with the same name share one. A node without is a domain of its own.
    pub domain_name: Option<String>,
    /// Data address of each core; the index is the core's number.
    pub cores: Vec<SocketAddr>,
    pub control: SocketAddr,
    /// The newest life of its `weftd` that the managers admitted.
    pub incarnation: Incarnation,
    pub state: State,
    pub purpose: Purpose,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    pub id: DriveId,
    pub uuid: Uuid,
    pub node: NodeId,
    /// The core of that node which owns it.
    pub core: u8,
    pub capacity_bytes: u64,
    pub zone_bytes: u64,
    pub zones: u32,
    pub state: State,
    pub purpose: Purpose,
}

/// A node that is to become part of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNode {
    pub name: String,
    /// Nodes with the same text may fail together. A node without one is its own domain.
    pub domain: Option<String>,
    /// Data address of each core; the index is the core's number.
    pub cores: Vec<SocketAddr>,
    pub control: SocketAddr,
    pub drives: Vec<NewDrive>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDrive {
    pub uuid: Uuid,
    /// The core of its node which owns it.
    pub core: u8,
    pub capacity_bytes: u64,
    pub zone_bytes: u64,
    pub zones: u32,
}

/// A drive that is no member of a bucket any more and may still hold a shard of zone sets from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    pub drive: DriveId,
    /// What it holds goes to the member of this place.
    pub shard: u8,
}

/// A journal's drives from `since` on, until every earlier record stands on P+1 of a later ensemble.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ensemble {
    pub since: Epoch,
    pub drives: Vec<DriveId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    pub leader: CoreId,
    pub epoch: Epoch,
    /// The life of the leader's process to which the epoch belongs.
    pub incarnation: Incarnation,
    pub layout: Layout,
    /// D+P drives of different domains; shard i of a new zone set goes to members[i].
    pub members: Vec<DriveId>,
    /// Until its leader has found that nothing is left there. No drive twice, and none that is a member.
    pub former: Vec<Former>,
    /// Newest first; never empty.
    pub ensembles: Vec<Ensemble>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    pub id: FsId,
    pub name: String,
    pub root: InodeId,
    /// 0 is no limit but the cluster's.
    pub size_bytes: u64,
    pub state: FilesystemState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FilesystemState {
    /// Named by the map, its root directory not yet written.
    Creating,
    Ready,
    Deleting,
}

/// A client that the managers issued an id to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub id: ClientId,
    pub host: String,
    pub fenced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    pub version: MapVersion,
    pub cluster: Uuid,
    pub name: String,
    pub secret: Secret,
    pub protection: Protection,
    /// k: the cluster has 2^k buckets.
    pub bucket_bits: u8,
    pub nodes: BTreeMap<NodeId, Node>,
    pub drives: BTreeMap<DriveId, Drive>,
    pub buckets: Vec<Bucket>,
    pub filesystems: BTreeMap<FsId, Filesystem>,
    /// Nodes that vote.
    pub managers: Vec<NodeId>,
    /// Clients with an id below this and not listed are unknown or gone: refused.
    pub next_client: ClientId,
    pub clients: BTreeMap<ClientId, Client>,
    /// The next ids of nodes and drives: those of removed ones never come again.
    pub next_node: NodeId,
    pub next_drive: DriveId,
    /// So many nodes' capacity is kept free, so that everything can be made again when they are lost.
    pub hot_spare: u16,
}

/// One change of the map. Deltas carry the outcome, never the command, so that all versions compute the same map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Node(Node),
    RemoveNode(NodeId),
    Drive(Drive),
    RemoveDrive(DriveId),
    Bucket(BucketId, Bucket),
    Filesystem(Filesystem),
    RemoveFilesystem(FsId),
    Managers(Vec<NodeId>),
    Client(Client),
    RemoveClient(ClientId),
    HotSpare(u16),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The version that this delta makes; it applies to the one before.
    pub version: MapVersion,
    pub changes: Vec<Change>,
}

/// A delta that doesn't fit the map it was applied to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("a delta to {delta} can't be applied to {map}; fetch the whole map")]
    Version { map: MapVersion, delta: MapVersion },
    #[error("a delta names {0}, which this cluster doesn't have")]
    NoSuchBucket(BucketId),
}

impl Map {
    /// Applies a delta. On an error the map is unchanged.
    pub fn apply(&mut self, delta: &Delta) -> Result<(), ApplyError> {
        if delta.version.0 != self.version.0 + 1 {
            return Err(ApplyError::Version { map: self.version, delta: delta.version });
        }
        for change in &delta.changes {
            if let Change::Bucket(id, _) = change
                && self.bucket(*id).is_none()
            {
                return Err(ApplyError::NoSuchBucket(*id));
            }
        }
        for change in &delta.changes {
            match change.clone() {
                Change::Node(node) => {
                    self.next_node = self.next_node.max(NodeId(node.id.0.saturating_add(1)));
                    self.nodes.insert(node.id, node);
                }
                Change::RemoveNode(id) => drop(self.nodes.remove(&id)),
                Change::Drive(drive) => {
                    self.next_drive = self.next_drive.max(DriveId(drive.id.0.saturating_add(1)));
                    self.drives.insert(drive.id, drive);
                }
                Change::RemoveDrive(id) => drop(self.drives.remove(&id)),
                Change::Bucket(id, bucket) => self.buckets[id.0 as usize] = bucket,
                Change::Filesystem(fs) => drop(self.filesystems.insert(fs.id, fs)),
                Change::RemoveFilesystem(id) => drop(self.filesystems.remove(&id)),
                Change::Managers(nodes) => self.managers = nodes,
                Change::Client(client) => {
                    self.next_client = self.next_client.max(ClientId(client.id.0 + 1));
                    self.clients.insert(client.id, client);
                }
                Change::RemoveClient(id) => drop(self.clients.remove(&id)),
                Change::HotSpare(nodes) => self.hot_spare = nodes,
            }
        }
        self.version = delta.version;
        Ok(())
    }

    pub fn bucket(&self, id: BucketId) -> Option<&Bucket> {
        self.buckets.get(id.0 as usize)
    }

    pub fn bucket_of(&self, position: Position) -> BucketId {
        position.bucket(self.bucket_bits)
    }

    /// The core that owns a drive.
    pub fn drive_core(&self, id: DriveId) -> Option<CoreId> {
        self.drives.get(&id).map(|drive| CoreId { node: drive.node, core: drive.core })
    }

    pub fn core_addr(&self, id: CoreId) -> Option<SocketAddr> {
        self.nodes.get(&id.node)?.cores.get(usize::from(id.core)).copied()
    }

    pub fn filesystem_named(&self, name: &str) -> Option<&Filesystem> {
        self.filesystems.values().find(|fs| fs.name == name)
    }
}
