//! The client's engine: splits each call of an application into requests to the leaders of buckets.
//!
//! A [`Client`] follows the map, finds the filesystem by its name, gets an id from the managers and then offers one async
//! method per operation of POSIX. A request that changes something carries a number, and is made again with the same
//! number until it is answered, whatever happens to the leader meanwhile: the bucket carries it out once.
#![forbid(unsafe_code)]

mod client;
mod connect;
mod data;
mod errno;
mod extending;
mod follow;
mod locks;
mod opens;
mod pages;
mod renew;
mod report;
mod request;
mod space;
pub mod tunables;
mod waiting;
mod window;

pub use client::{Client, Found, Listing};
pub use connect::{ConnectError, ConnectOptions, probe};
pub use errno::Errno;
pub use opens::OpenMode;
