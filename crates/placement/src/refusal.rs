//! Why a cluster can't be formed or changed so, with the arithmetic.

use crate::Holds;
use std::net::SocketAddr;
use weft_wire::manager::Part;
use weft_wire::map::Protection;
use weft_wire::{BucketId, CoreId, DriveId, NodeId, Uuid};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("protection {0}: D = {data} is outside 3..16", data = .0.data)]
    Data(Protection),
    #[error("protection {0}: P = {parity} is neither 2 nor 4", parity = .0.parity)]
    Parity(Protection),
    #[error(
        "protection {protection} needs max(D+P, 2P+1) = max({data}+{parity}, 2*{parity}+1) = {needed} failure domains; \
         the {nodes} nodes given are in {domains}. Give more nodes, or set `domain` so that fewer share one",
        data = .protection.data, parity = .protection.parity, needed = .protection.domains()
    )]
    Domains { protection: Protection, domains: usize, nodes: usize },
    #[error(
        "protection {protection} needs drives in {needed} failure domains (D+P); only {domains} have any",
        needed = .protection.shards()
    )]
    DomainsWithDrives { protection: Protection, domains: usize },
    #[error("a name is empty")]
    NameEmpty,
    #[error("two nodes are named {0:?}; names must differ")]
    NameTwice(String),
    #[error("address {0} is given twice")]
    AddressTwice(SocketAddr),
    #[error("drive {0} is given twice")]
    DriveTwice(Uuid),
    #[error("node {0:?} has no core")]
    NoCores(String),
    #[error("{what}: {given} are more than {most}")]
    TooMany { what: &'static str, given: usize, most: usize },
    #[error("node {node:?}: drive {drive} names core {core}, but the node has {cores}")]
    DriveCore { node: String, drive: Uuid, core: u8, cores: usize },
    #[error(
        "node {node:?}: drive {drive} of {capacity_bytes} bytes says it has {zones} zones of {zone_bytes} bytes = {product}"
    )]
    DriveSize { node: String, drive: Uuid, capacity_bytes: u64, zone_bytes: u64, zones: u32, product: u128 },
    #[error(
        "node {node:?}: drive {drive} has {zones} zones for {buckets} of the {total} buckets = {each} each, fewer than {least}. \
         Give it more space, or form with fewer buckets"
    )]
    Zones { node: String, drive: Uuid, zones: u32, buckets: u64, total: u64, each: u64, least: u32 },
    #[error("{given} bits of buckets are outside 1..{most}")]
    BucketBits { given: u8, most: u8 },

    #[error("this cluster has no {0}")]
    NoSuchNode(NodeId),
    #[error("this cluster has no {0}")]
    NoSuchDrive(DriveId),
    #[error("this cluster has no {0}")]
    NoSuchBucket(BucketId),
    #[error("{0} is not a core of a node that is up")]
    NoSuchCore(CoreId),
    #[error(
        "without {part} only {domains} failure domains would have {what}, and protection needs {needed}. Add a node in another \
         domain first"
    )]
    Leave { part: Part, what: &'static str, needed: usize, domains: usize },
    #[error("node {0:?} lives; it can't be replaced. Stop it first, or drain it")]
    Lives(String),
    #[error("{part} can't be removed yet: it {holds}. `weft status` shows how far that is")]
    Holds { part: Part, holds: Holds },
    #[error("{0} is in use and can be given data at any time: drain it first")]
    InUse(Part),
    #[error("{drive} is the only drive of {node} that works: drain and remove the node instead")]
    LastDrive { drive: DriveId, node: NodeId },
    #[error(
        "a hot spare of {spare} nodes leaves {left} of {domains} failure domains; protection needs {needed} to make everything \
         again: at most {most} nodes can be spared"
    )]
    Spare { spare: u16, left: usize, domains: usize, needed: usize, most: usize },
    #[error("no id is left for another {0}")]
    NoIdLeft(&'static str),
}
