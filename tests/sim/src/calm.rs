//! What the runs share that count work, bytes or time rather than look for wrong answers: drives that are alike, and files.

use std::rc::Rc;
use std::time::Duration;
use weft_client::{Client, Errno, OpenMode};
use weft_drive::mem::MemOptions;
use weft_wire::InodeId;
use weft_wire::fs::{Caller, FileKind, NewNode};

const FILE_MODE: u16 = 0o600;
const READ_LATENCY: Duration = Duration::from_micros(80);
/// Drives of servers keep what they were given in memory that outlives power.
const WRITE_LATENCY: Duration = Duration::from_micros(20);

/// An NVMe drive of today.
pub(crate) fn drive(capacity_bytes: u64) -> MemOptions {
    MemOptions {
        capacity_bytes,
        read_latency: READ_LATENCY,
        write_latency: WRITE_LATENCY,
        flush_latency: WRITE_LATENCY,
    }
}

/// What root makes.
pub(crate) fn roots(kind: FileKind, mode: u16) -> NewNode {
    NewNode { kind, mode, umask: 0, rdev: 0, caller: Caller { uid: 0, gid: 0 }, target: Vec::new() }
}

pub(crate) fn roots_file() -> NewNode {
    roots(FileKind::File, FILE_MODE)
}

/// A new file in the root directory, held open.
pub(crate) async fn create_file(client: &Rc<Client>, name: &str) -> Result<InodeId, Errno> {
    let found = client.create(client.root(), name.as_bytes(), roots_file(), true, OpenMode::Keep).await?;
    Ok(found.attr.inode)
}
