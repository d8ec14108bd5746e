//! Sizes and bounds that peers must agree on. Units last.

pub const BLOCK_BYTES: usize = 4096;
pub const SLAB_BYTES: u64 = 1 << 20;
pub const SLAB_BLOCKS: u64 = SLAB_BYTES / BLOCK_BYTES as u64;
/// Rows of a stripe: blocks of each of its shards.
pub const STRIPE_ROWS_MAX: u32 = 64;
/// Largest file size that is accepted: offsets beyond it get EFBIG. (8 EiB less one slab would not fit a block number and its end in i64.)
pub const FILE_BYTES_MAX: u64 = 1 << 60;
pub const NAME_BYTES_MAX: usize = 255;
pub const SYMLINK_BYTES_MAX: usize = 4095;
pub const XATTR_NAME_BYTES_MAX: usize = 255;
pub const XATTR_VALUE_BYTES_MAX: usize = 65536;
pub const LINKS_MAX: u32 = 65_000;
/// Body of one message: a slab and its parity are never more.
pub const MESSAGE_BODY_BYTES_MAX: usize = 2 << 20;
/// Encoded head of one message.
pub const MESSAGE_HEAD_BYTES_MAX: usize = 1 << 20;
/// Payload of one journal record. (Larger writes go through stripes and commit their extents only.)
pub const RECORD_BYTES_MAX: usize = 512 << 10;
/// Mutating requests that one client may have outstanding at one bucket.
pub const CLIENT_WINDOW_MAX: u64 = 64;
/// Files that one leader asks another about at once.
pub const REACH_INODES_MAX: usize = 256;
/// A client that has not been heard of for so long at a bucket has lost its opens and locks there.
pub const SESSION_SECONDS_MAX: u64 = 30;
/// A client that holds something lets the bucket hear of it at least this often.
pub const RENEW_SECONDS: u64 = 8;
