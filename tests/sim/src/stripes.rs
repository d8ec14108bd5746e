//! The checker of what is on the drives: stripes, parity, owners.

use std::ops::Range;
use weft_drive::format::Geometry;
use weft_drive::mem::MemMedia;

/// The bytes of a drive that are zones.
pub fn zones_of(media: &MemMedia) -> Option<Range<u64>> {
    let geometry = Geometry::for_capacity(media.capacity_bytes()).ok()?;
    Some(geometry.zones_offset..geometry.zones_offset + u64::from(geometry.zones) * geometry.zone_bytes)
}
