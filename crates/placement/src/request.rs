//! What a new cluster or a new node consists of.

use std::net::SocketAddr;
use weft_wire::Uuid;
use weft_wire::hash::Secret;
use weft_wire::map::Protection;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormRequest {
    pub cluster: Uuid,
    pub name: String,
    pub secret: Secret,
    pub protection: Protection,
    /// Node ids are given in this order, from 1.
    pub nodes: Vec<NewNode>,
    /// k, the cluster has 2^k buckets; chosen from cores and zones when it is `None`.
    pub bucket_bits: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    pub name: String,
    /// Nodes with the same text may fail together. A node without one is its own domain.
    pub domain: Option<String>,
    /// Data address of each core; the index is the core's number.
    pub cores: Vec<SocketAddr>,
    pub control: SocketAddr,
    pub drives: Vec<NewDrive>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDrive {
    pub uuid: Uuid,
    /// The core of its node which owns it.
    pub core: u8,
    pub capacity_bytes: u64,
    pub zone_bytes: u64,
    pub zones: u32,
}
