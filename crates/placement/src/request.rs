//! What a new cluster consists of.

use weft_wire::Uuid;
use weft_wire::hash::Secret;
use weft_wire::map::{NewNode, Protection};

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
