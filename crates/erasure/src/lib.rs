//! The D+P erasure codes: D data shards (3 to 16), P parity shards (2 or 4), any P of the D+P may be lost.
//!
//! The code is systematic: data shards are stored as they are, parity shard 0 is their XOR, and the others follow from
//! a fixed matrix over GF(2^8) that is part of the on-drive format ([`matrix`], `docs/design/erasure.md`).
//!
//! Shards are numbered as in a stripe: 0..D are data, D..D+P are parity. All shards of a call have the same length,
//! any length; lengths that are multiples of 128 bytes never leave the fast path, alignment does not matter.

#![deny(unsafe_code)]

mod code;
pub mod field;
mod kernel;
pub mod matrix;
mod plan;
mod product;

pub use code::{Code, SchemeError};
pub use kernel::Kernel;
pub use plan::{Plan, TooManyLost};
