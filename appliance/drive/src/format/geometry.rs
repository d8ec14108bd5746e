//! Where the regions of a drive lie. Computed once, when the drive is formatted, and from then on read
//! from the superblock.
//!
//! ```text
//! 0        superblock, first copy          1 MiB    configuration: slots of two copies each
//! then     zone table, two copies a block  then     journal ring: segments
//! then     zones                           last     superblock, second copy
//! ```

use serde::Serialize;
use weft_wire::limits::BLOCK_BYTES;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BLOCK: u64 = BLOCK_BYTES as u64;

pub const CAPACITY_BYTES_MIN: u64 = 64 * MIB;
pub const ZONE_BYTES_MIN: u64 = MIB;
pub const ZONE_BYTES_MAX: u64 = 256 * MIB;
pub const RING_BYTES_MIN: u64 = 8 * MIB;
/// Up to here a sixteenth of the drive, not a thirty-second.
pub const RING_BYTES_SMALL: u64 = 32 * MIB;
pub const RING_BYTES_MAX: u64 = 4 * GIB;
pub const SEGMENT_BYTES_MIN: u64 = MIB;
pub const SEGMENT_BYTES_MAX: u64 = 64 * MIB;
/// Segments that reclaiming keeps free.
pub const SEGMENTS_FREE_MIN: u64 = 2;
/// Of the ring: below it reclaiming could not make progress.
pub const SEGMENTS_MIN: u32 = 8;
pub const SLOT_BYTES_MIN: u64 = MIB;
pub const SLOT_BYTES_MAX: u64 = 16 * MIB;
pub const CONFIG_SLOTS: u8 = 8;
pub const CONFIG_OFFSET: u64 = MIB;
/// Zone table entries in one block.
pub const ZONES_PER_TABLE_BLOCK: u32 = 126;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    #[error("the drive has {capacity_bytes} bytes; at least {CAPACITY_BYTES_MIN} (64 MiB) are needed")]
    TooSmall { capacity_bytes: u64 },
    #[error("the superblock describes regions that don't fit together")]
    Inconsistent,
}

/// Offsets and sizes in bytes, all multiples of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Geometry {
    pub capacity_bytes: u64,
    pub config_offset: u64,
    /// Largest content of a configuration slot; each copy takes one block more.
    pub slot_bytes: u64,
    pub zone_table_offset: u64,
    /// Logical blocks; each is stored twice.
    pub zone_table_blocks: u32,
    pub ring_offset: u64,
    pub segment_bytes: u64,
    pub segments: u32,
    pub zones_offset: u64,
    pub zone_bytes: u64,
    pub zones: u32,
}

fn power_of_two_below(value: u64) -> u64 {
    1 << value.max(1).ilog2()
}

impl Geometry {
    /// The layout of a new drive of `capacity_bytes`; what is beyond whole blocks is left alone.
    pub fn for_capacity(capacity_bytes: u64) -> Result<Self, GeometryError> {
        if capacity_bytes < CAPACITY_BYTES_MIN {
            return Err(GeometryError::TooSmall { capacity_bytes });
        }
        let capacity_bytes = capacity_bytes / BLOCK * BLOCK;
        let zone_bytes = power_of_two_below(capacity_bytes / 2048).clamp(ZONE_BYTES_MIN, ZONE_BYTES_MAX);
        // Small drives give more of themselves: each of their buckets needs room for a few of the largest records.
        let ring_bytes = (capacity_bytes / 32).max((capacity_bytes / 16).min(RING_BYTES_SMALL));
        let ring_bytes = ring_bytes.clamp(RING_BYTES_MIN, RING_BYTES_MAX);
        let segment_bytes = power_of_two_below(ring_bytes / 64).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let slot_bytes = power_of_two_below(capacity_bytes / 4096).clamp(SLOT_BYTES_MIN, SLOT_BYTES_MAX);
        let zones_most = (capacity_bytes / zone_bytes).min(u64::from(u32::MAX)) as u32;
        let mut geometry = Self {
            capacity_bytes,
            config_offset: CONFIG_OFFSET,
            slot_bytes,
            zone_table_offset: 0,
            zone_table_blocks: zones_most.div_ceil(ZONES_PER_TABLE_BLOCK),
            ring_offset: 0,
            segment_bytes,
            segments: (ring_bytes / segment_bytes) as u32,
            zones_offset: 0,
            zone_bytes,
            zones: 0,
        };
        geometry.zone_table_offset = geometry.config_end();
        geometry.ring_offset = geometry.zone_table_end().next_multiple_of(64 * KIB);
        geometry.zones_offset = geometry.ring_end().next_multiple_of(MIB);
        geometry.zones = ((geometry.superblock_offsets()[1] - geometry.zones_offset) / zone_bytes) as u32;
        geometry.check()?;
        Ok(geometry)
    }

    /// That the regions follow each other within the capacity. For geometries read from a drive.
    pub fn check(&self) -> Result<(), GeometryError> {
        let sizes_fit = self.capacity_bytes >= CAPACITY_BYTES_MIN
            && self.capacity_bytes <= 1 << 62
            && (SLOT_BYTES_MIN..=SLOT_BYTES_MAX).contains(&self.slot_bytes)
            && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
            && (ZONE_BYTES_MIN..=ZONE_BYTES_MAX).contains(&self.zone_bytes)
            && (SEGMENTS_MIN..=1 << 16).contains(&self.segments)
            && self.zones.div_ceil(ZONES_PER_TABLE_BLOCK) <= self.zone_table_blocks
            && self.zone_table_blocks <= 1 << 24;
        let starts = [self.config_offset, self.zone_table_offset, self.ring_offset, self.zones_offset];
        let aligned = [self.capacity_bytes, self.slot_bytes, self.segment_bytes, self.zone_bytes]
            .iter()
            .chain(&starts)
            .all(|value| value % BLOCK == 0 && *value <= self.capacity_bytes);
        if !sizes_fit || !aligned {
            return Err(GeometryError::Inconsistent);
        }
        let ordered = self.config_offset >= BLOCK
            && self.config_end() <= self.zone_table_offset
            && self.zone_table_end() <= self.ring_offset
            && self.ring_end() <= self.zones_offset
            && self.zones_offset + u64::from(self.zones) * self.zone_bytes <= self.superblock_offsets()[1];
        if ordered { Ok(()) } else { Err(GeometryError::Inconsistent) }
    }

    pub fn superblock_offsets(&self) -> [u64; 2] {
        [0, self.capacity_bytes - BLOCK]
    }

    fn config_end(&self) -> u64 {
        self.config_offset + u64::from(CONFIG_SLOTS) * 2 * (self.slot_bytes + BLOCK)
    }

    fn zone_table_end(&self) -> u64 {
        self.zone_table_offset + u64::from(self.zone_table_blocks) * 2 * BLOCK
    }

    fn ring_end(&self) -> u64 {
        self.ring_offset + self.ring_bytes()
    }

    pub fn ring_bytes(&self) -> u64 {
        u64::from(self.segments) * self.segment_bytes
    }

    /// Header block of copy 0 or 1 of a configuration slot; its content follows.
    pub fn config_copy_offset(&self, slot: u8, copy: usize) -> u64 {
        assert!(slot < CONFIG_SLOTS && copy < 2, "configuration slot {slot}, copy {copy}");
        self.config_offset + (u64::from(slot) * 2 + copy as u64) * (self.slot_bytes + BLOCK)
    }

    pub fn zone_table_copy_offset(&self, block: u32, copy: usize) -> u64 {
        assert!(block < self.zone_table_blocks && copy < 2, "zone table block {block}, copy {copy}");
        self.zone_table_offset + (u64::from(block) * 2 + copy as u64) * BLOCK
    }

    /// How much of the ring may be live: the rest is what copying forward needs to make progress.
    pub fn ring_live_bytes_max(&self) -> u64 {
        u64::from(self.segments).saturating_sub(SEGMENTS_FREE_MIN + 1) * self.segment_bytes / 2
    }

    /// Where the segment with this serial number lies: serial numbers go round the ring.
    pub fn segment_offset(&self, serial: u64) -> u64 {
        self.ring_offset + serial % u64::from(self.segments) * self.segment_bytes
    }

    pub fn zone_offset(&self, zone: u32) -> u64 {
        assert!(zone < self.zones, "zone {zone} of {}", self.zones);
        self.zones_offset + u64::from(zone) * self.zone_bytes
    }

    pub fn zone_blocks(&self) -> u32 {
        (self.zone_bytes / BLOCK) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capacity_from_the_smallest_on_has_room_for_zones() {
        assert!(matches!(Geometry::for_capacity(CAPACITY_BYTES_MIN - 1), Err(GeometryError::TooSmall { .. })));
        for (capacity, zone, ring, zones_min) in [
            (64 * MIB, MIB, 8 * MIB, 32),
            (256 * MIB, MIB, 16 * MIB, 220),
            (GIB, MIB, 32 * MIB, 950),
            (4 * GIB + 4095, 2 * MIB, 128 * MIB, 1900),
            (10 * GIB, 4 * MIB, 320 * MIB, 2400),
            (1024 * GIB, 256 * MIB, 4 * GIB, 4000),
            (16 * 1024 * GIB, 256 * MIB, 4 * GIB, 65_000),
        ] {
            let geometry = Geometry::for_capacity(capacity).unwrap();
            assert_eq!((geometry.zone_bytes, geometry.ring_bytes()), (zone, ring), "{capacity}");
            assert!(geometry.zones >= zones_min, "{capacity}: {} zones", geometry.zones);
            assert_eq!(geometry.check(), Ok(()));
        }
    }
}
