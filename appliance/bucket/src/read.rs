//! Reading blocks of files.

use crate::BucketError;
use crate::bucket::{Bucket, add};
use crate::extent::{Extent, Location};
use crate::key::Object;
use bytes::Bytes;
use std::ops::Range;
use weft_reactor::join_all;
use weft_wire::limits::SLAB_BLOCKS;

/// Looks again when what was found has moved meanwhile.
const READ_TRIES_MAX: u32 = 16;

/// A run of blocks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadExtent {
    pub first_block: u64,
    pub blocks: u64,
    /// `None`: zeros.
    pub data: Option<Bytes>,
}

pub(crate) async fn read_blocks(
    bucket: &Bucket,
    object: Object,
    range: Range<u64>,
) -> Result<Vec<ReadExtent>, BucketError> {
    add(&bucket.0.counters.asked, 1);
    let mut last = BucketError::NotReady("blocks move while they are read".into());
    for _ in 0..READ_TRIES_MAX {
        match read_once(bucket, object, &range).await {
            Err(error @ BucketError::Gone(_)) => last = error,
            done => return done,
        }
        bucket.handle().yield_now().await;
    }
    Err(last)
}

async fn read_once(bucket: &Bucket, object: Object, range: &Range<u64>) -> Result<Vec<ReadExtent>, BucketError> {
    let extents = bucket.extents(object, range.clone(), usize::MAX).await?;
    let wanted: Vec<Extent> = extents.iter().filter_map(|extent| extent.clip(range)).collect();
    let reads: Vec<_> = wanted.iter().map(|extent| read_extent(bucket, *extent)).collect();
    let mut out = Vec::with_capacity(wanted.len() + 1);
    let mut at = range.start;
    for (extent, data) in wanted.iter().zip(join_all(reads).await) {
        if extent.first > at {
            out.push(ReadExtent { first_block: at, blocks: extent.first - at, data: None });
        }
        out.push(ReadExtent { first_block: extent.first, blocks: u64::from(extent.blocks), data: data? });
        at = extent.end();
    }
    if at < range.end {
        out.push(ReadExtent { first_block: at, blocks: range.end - at, data: None });
    }
    Ok(out)
}

async fn read_extent(bucket: &Bucket, extent: Extent) -> Result<Option<Bytes>, BucketError> {
    match extent.location {
        Location::Zero => Ok(None),
        Location::Journal { seq, block } => {
            // Destaged between the look at the extent and now: look again.
            let data = bucket.0.held.borrow().read(seq, block, extent.blocks);
            data.map(Some).ok_or(BucketError::Gone(weft_wire::StripeId(0)))
        }
        Location::Stripe { stripe, block } => {
            let view = bucket.view(stripe).await?;
            Ok(Some(bucket.0.stripes.read(&view, block, extent.blocks).await?))
        }
    }
}

pub(crate) async fn seek(
    bucket: &Bucket,
    object: Object,
    from: u64,
    end: u64,
    hole: bool,
) -> Result<Option<u64>, BucketError> {
    let mut at = from;
    while at < end {
        // One slab at a time: an extent that reaches over `at` begins in its slab.
        let slab_end = ((at / SLAB_BLOCKS + 1) * SLAB_BLOCKS).min(end);
        for extent in bucket.extents(object, at..slab_end, usize::MAX).await? {
            if hole && extent.first > at {
                return Ok(Some(at));
            }
            if !hole && extent.end() > at {
                return Ok(Some(at.max(extent.first)));
            }
            at = extent.end();
        }
        if hole {
            if at < slab_end {
                return Ok(Some(at));
            }
        } else {
            // Nothing in this slab: go to the next extent, wherever it is.
            let next = bucket.extents(object, slab_end..end, 1).await?;
            return Ok(next.first().map(|extent| extent.first.max(slab_end)));
        }
        at = slab_end;
    }
    Ok(None)
}
