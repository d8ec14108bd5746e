//! The FUSE face of Weft: a session layer of our own on `/dev/fuse`, and what a mount needs around it.
//!
//! A [`Filesystem`] answers the kernel's operations; a [`session`] mounts it and carries requests and answers, on
//! several threads, each with its own reactor, its own channel to the kernel and its own instance of the filesystem.
#![deny(unsafe_code)]

pub mod abi;
mod answer;
mod channel;
mod dir_buffer;
mod execute;
mod filesystem;
mod handshake;
mod interrupt;
pub mod mount;
pub mod mount_options;
pub mod request;
pub mod session;
pub mod weft;
mod worker;

pub use answer::{Answer, kind_of_mode};
pub use dir_buffer::{DirBuffer, DirEntry, Full};
pub use filesystem::*;
pub use handshake::{Locks, ReaddirPlus};
pub use interrupt::Interrupt;
