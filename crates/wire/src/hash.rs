//! The keyed hash that places slabs and directories: SipHash-2-4 under the cluster's secret, so that
//! nobody outside can choose names that overload a bucket.

use crate::{FsId, InodeId, Position};
use core::hash::Hasher;
use siphasher::sip::SipHasher24;

/// The cluster's secret; part of the map.
#[derive(Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Secret(pub [u8; 16]);

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret(..)")
    }
}

fn keyed(secret: &Secret, what: u8, parts: &[u64]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(&secret.0);
    hasher.write_u8(what);
    for part in parts {
        hasher.write_u64(*part);
    }
    hasher.finish()
}

fn position(hash: u64) -> Position {
    Position((hash >> (64 - Position::BITS)) as u32)
}

/// Where slab `slab` of a file lives. Slab 0 lives with its inode.
pub fn slab_position(secret: &Secret, fs: FsId, inode: InodeId, slab: u64) -> Position {
    if slab == 0 {
        return inode.position();
    }
    position(keyed(secret, 1, &[u64::from(fs.0), inode.0, slab]))
}

/// Where a new directory named `name` in `parent` goes. `salt` makes a second try land elsewhere.
pub fn directory_position(secret: &Secret, fs: FsId, parent: InodeId, name: &[u8], salt: u64) -> Position {
    position(keyed(secret, 2, &[u64::from(fs.0), parent.0, name_hash(secret, parent, name), salt]))
}

/// Where the page of a directory with these leading bits of the name hash lives.
pub fn page_position(secret: &Secret, fs: FsId, directory: InodeId, depth: u8, prefix: u64) -> Position {
    if depth == 0 {
        return directory.position();
    }
    position(keyed(secret, 3, &[u64::from(fs.0), directory.0, u64::from(depth), prefix]))
}

/// What the nodes of a cluster take as proof over the control API. Whoever knows the secret can compute it; nobody can
/// compute the secret from it.
pub fn control_token(secret: &Secret) -> u128 {
    u128::from(keyed(secret, 5, &[0])) << 64 | u128::from(keyed(secret, 5, &[1]))
}

/// 64 bits of a name within its directory; the top 55 are its place in readdir order.
pub fn name_hash(secret: &Secret, directory: InodeId, name: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(&secret.0);
    hasher.write_u8(4);
    hasher.write_u64(directory.0);
    hasher.write(name);
    hasher.finish()
}
