//! The device below everything: reads and writes whole blocks, says when they are durable.

use bytes::Bytes;
use weft_reactor::sync::Pending;
use weft_wire::limits::BLOCK_BYTES;

/// A raw block device. Offsets and lengths are multiples of 4096; buffers of writes begin at multiples of 4096 in
/// memory (`weft_reactor::is_aligned`), and each piece is a whole number of blocks.
///
/// Operations begin when the method is called and may finish in any order; dropping the [`Pending`] side
/// doesn't cancel them. Reading or writing blocks that a pending write covers gives either content.
pub trait Drive {
    fn capacity_bytes(&self) -> u64;

    fn read(&self, offset: u64, len: usize) -> Pending<Result<Bytes, DriveError>>;

    /// Once complete it is seen by reads, and durable after the next [`flush`](Self::flush) that begins later.
    fn write(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>>;

    /// A write that is durable once complete. Says nothing of other writes.
    fn write_durable(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>>;

    /// Makes everything durable that was complete when it was called.
    fn flush(&self) -> Pending<Result<(), DriveError>>;

    /// Room is found when something is first written there, which makes that write a dear one: a sparse file.
    fn is_sparse(&self) -> bool {
        false
    }

    /// The content isn't needed any more: it may read as anything from now on. A hint; drives may ignore it.
    fn discard(&self, offset: u64, len: u64) -> Pending<Result<(), DriveError>>;
}

/// Why an operation didn't happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    /// This operation failed; others may work.
    #[error("{operation} of {len} bytes at byte {offset}: {reason}")]
    Failed { operation: Operation, offset: u64, len: u64, reason: String },
    /// The device is gone for this process.
    #[error("the drive was closed")]
    Closed,
    #[error("{len} bytes at byte {offset} are outside the drive or not whole blocks")]
    Bounds { offset: u64, len: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Flush,
    Discard,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        })
    }
}

/// Awaits an operation; one whose device disappeared has failed.
pub async fn outcome<T>(pending: Pending<Result<T, DriveError>>) -> Result<T, DriveError> {
    pending.await.unwrap_or(Err(DriveError::Closed))
}

/// That a range is whole blocks within the capacity.
pub fn check_range(capacity_bytes: u64, offset: u64, len: u64) -> Result<(), DriveError> {
    let block = BLOCK_BYTES as u64;
    let fits = offset.checked_add(len).is_some_and(|end| end <= capacity_bytes);
    if fits && offset.is_multiple_of(block) && len.is_multiple_of(block) && len > 0 {
        Ok(())
    } else {
        Err(DriveError::Bounds { offset, len })
    }
}

/// [`check_range`] for the pieces of a write. Returns their length.
pub fn check_pieces(capacity_bytes: u64, offset: u64, data: &[Bytes]) -> Result<u64, DriveError> {
    let len = data.iter().map(|piece| piece.len() as u64).sum();
    check_range(capacity_bytes, offset, len)?;
    if data.iter().all(|piece| piece.len().is_multiple_of(BLOCK_BYTES) && weft_reactor::is_aligned(piece)) {
        Ok(len)
    } else {
        Err(DriveError::Bounds { offset, len })
    }
}
