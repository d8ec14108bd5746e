//! What all buckets together have.

use crate::client::{Client, unexpected};
use crate::errno::Errno;
use crate::tunables::{PARALLEL_MAX, STATFS_AGE_MAX};
use weft_reactor::join_all;
use weft_wire::Position;
use weft_wire::fs::{FsOp, FsReply, Space};
use weft_wire::map::Map;

/// A position in each bucket.
pub(crate) fn all_buckets(map: &Map) -> Vec<Position> {
    let shift = Position::BITS - u32::from(map.bucket_bits);
    (0..map.buckets.len() as u32).map(|index| Position(index << shift)).collect()
}

impl Client {
    /// The sum over all buckets, up to [`STATFS_AGE_MAX`] old.
    pub async fn statfs(&self) -> Result<Space, Errno> {
        if let Some((at, space)) = self.statfs.get()
            && self.handle.now().since(at) < STATFS_AGE_MAX
        {
            return Ok(space);
        }
        let Some(map) = self.follower.map() else { return Err(Errno::EIO) };
        let mut sum = Space::default();
        for some in all_buckets(&map).chunks(PARALLEL_MAX) {
            for answer in join_all(some.iter().map(|position| self.ask(*position, FsOp::StatFs))).await {
                let space = match answer? {
                    (FsReply::Space(space), _) => space,
                    other => return Err(unexpected(&other)),
                };
                sum.blocks += space.blocks;
                sum.blocks_free += space.blocks_free;
                sum.blocks_available += space.blocks_available;
                sum.files += space.files;
            }
        }
        let limit = map.filesystems.get(&self.fs).map_or(0, |fs| fs.size_bytes / weft_wire::limits::BLOCK_BYTES as u64);
        if limit > 0 && limit < sum.blocks {
            let used = sum.blocks - sum.blocks_free;
            sum.blocks_free = sum.blocks_free.min(limit.saturating_sub(used));
            sum.blocks_available = sum.blocks_available.min(sum.blocks_free);
            sum.blocks = limit;
        }
        self.statfs.set(Some((self.handle.now(), sum)));
        Ok(sum)
    }
}
