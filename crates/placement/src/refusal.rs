//! Why a cluster can't be formed or changed so, with the arithmetic.

use std::net::SocketAddr;
use weft_wire::map::Protection;
use weft_wire::{BucketId, CoreId, DomainId, DriveId, NodeId, Uuid};

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
    #[error("this cluster has no {0}")]
    NoSuchDomain(DomainId),
    #[error(
        "{bucket} has {needed} shards (D+P), and no domain beside those of its other members has a drive that is up: \
         {domains} domains have one. Add a node in another domain first"
    )]
    NoSpareDomain { bucket: BucketId, needed: usize, domains: usize },
    #[error("no id is left for another {0}")]
    NoIdLeft(&'static str),
}
