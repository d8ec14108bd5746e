//! The first 48 bytes of every structure on a drive: they tell a torn, stale, misdirected or foreign one
//! from the one that belongs there.

use super::crc32c;
use weft_wire::{DriveId, Uuid};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const VERSION: u16 = 1;
pub const FRAME_BYTES: usize = 48;
/// The five bytes with which every magic begins.
pub const MAGIC_PREFIX: &[u8; 5] = b"WEFT.";

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Frame {
    pub magic: [u8; 8],
    pub version: U16,
    pub reserved: U16,
    pub drive: U32,
    /// Byte offset on the drive at which this structure belongs.
    pub position: U64,
    pub uuid: U128,
    /// Bytes from the start of the structure that the checksum covers.
    pub covered_bytes: U32,
    /// CRC-32C over the covered bytes with this field 0.
    pub checksum: U32,
}

/// Which drive, and which formatting of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uuid: Uuid,
    pub drive: DriveId,
}

/// Why bytes aren't the structure that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("nothing was ever written here")]
    Zero,
    #[error("not a structure of this kind")]
    Foreign,
    #[error("format version {0}, but this program reads version {VERSION}")]
    Version(u16),
    #[error("the checksum is wrong: torn or corrupt")]
    Checksum,
    #[error("it belongs to another drive or an earlier formatting")]
    OtherDrive,
    #[error("it belongs at byte {belongs}")]
    Misplaced { belongs: u64 },
}

/// Fills in the frame at the start of `structure`, all of which the checksum then covers.
pub fn seal(structure: &mut [u8], magic: &[u8; 8], identity: Identity, position: u64) {
    let covered = structure.len();
    assert!(covered >= FRAME_BYTES && covered <= u32::MAX as usize, "a structure of {covered} bytes");
    let mut frame = Frame {
        magic: *magic,
        version: VERSION.into(),
        reserved: 0.into(),
        drive: identity.drive.0.into(),
        position: position.into(),
        uuid: identity.uuid.0.into(),
        covered_bytes: (covered as u32).into(),
        checksum: 0.into(),
    };
    structure[..FRAME_BYTES].copy_from_slice(frame.as_bytes());
    frame.checksum = crc32c(structure).into();
    structure[..FRAME_BYTES].copy_from_slice(frame.as_bytes());
}

/// Empty blocks are most of what a scan sees: they are compared, not looked at byte by byte.
static ZEROS: [u8; 512] = [0; 512];

/// How many bytes the structure that starts here says it covers, if its magic and version fit.
/// For structures longer than one block, which are read in two steps.
pub fn peek_covered(bytes: &[u8], magic: &[u8; 8]) -> Result<usize, FrameError> {
    let (frame, _) = Frame::ref_from_prefix(bytes).map_err(|_| FrameError::Foreign)?;
    if &frame.magic != magic {
        let zero = bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()]);
        return Err(if zero { FrameError::Zero } else { FrameError::Foreign });
    }
    if frame.version.get() != VERSION {
        return Err(FrameError::Version(frame.version.get()));
    }
    Ok(frame.covered_bytes.get() as usize)
}

/// Checks the structure at the start of `bytes` and returns the bytes that it covers.
/// Without `identity` any drive's will do (the superblock, which tells it).
pub fn open<'a>(
    bytes: &'a [u8],
    magic: &[u8; 8],
    identity: Option<Identity>,
    position: u64,
) -> Result<&'a [u8], FrameError> {
    let covered_bytes = peek_covered(bytes, magic)?;
    let covered = bytes.get(..covered_bytes).filter(|c| c.len() >= FRAME_BYTES).ok_or(FrameError::Checksum)?;
    let mut frame = *Frame::ref_from_prefix(covered).map_err(|_| FrameError::Foreign)?.0;
    let claimed = frame.checksum.get();
    frame.checksum = 0.into();
    if combined_crc(frame.as_bytes(), &covered[FRAME_BYTES..]) != claimed {
        return Err(FrameError::Checksum);
    }
    if let Some(identity) = identity
        && (frame.uuid.get() != identity.uuid.0 || frame.drive.get() != identity.drive.0)
    {
        return Err(FrameError::OtherDrive);
    }
    if frame.position.get() != position {
        return Err(FrameError::Misplaced { belongs: frame.position.get() });
    }
    Ok(covered)
}

fn combined_crc(head: &[u8], rest: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(head);
    digest.update(rest);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: &[u8; 8] = b"WEFT.tst";
    const ME: Identity = Identity { uuid: Uuid(7), drive: DriveId(3) };

    #[test]
    fn a_structure_is_known_only_at_its_place_on_its_drive() {
        let mut block = vec![0x5a; 4096];
        seal(&mut block, MAGIC, ME, 8192);
        assert_eq!(open(&block, MAGIC, Some(ME), 8192).map(<[u8]>::len), Ok(4096));
        assert_eq!(open(&block, MAGIC, Some(ME), 4096), Err(FrameError::Misplaced { belongs: 8192 }));
        let other = Identity { uuid: Uuid(8), ..ME };
        assert_eq!(open(&block, MAGIC, Some(other), 8192), Err(FrameError::OtherDrive));
        assert_eq!(open(&block, b"WEFT.abc", Some(ME), 8192), Err(FrameError::Foreign));
        assert_eq!(open(&[0; 4096], MAGIC, Some(ME), 8192), Err(FrameError::Zero));
        for bit in 0..4096 * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&block, MAGIC, Some(ME), 8192).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
