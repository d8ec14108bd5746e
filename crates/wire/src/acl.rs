//! POSIX ACLs as kernels pass them in xattrs: what a filesystem has to do with them when files are made, modes change or
//! ACLs are set. Checking permissions is the business of the client's kernel.
//!
//! Layout (`linux/posix_acl_xattr.h`): a version, then entries of tag, permissions and id, all little-endian. The rules
//! are those of acl(5) and of POSIX 1003.1e draft 17, section 23.

use thiserror::Error;

pub const ACCESS_NAME: &[u8] = b"system.posix_acl_access";
pub const DEFAULT_NAME: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// The owner's, group's and others' entry, which say no more than the mode.
const ENTRIES_MINIMAL: usize = 3;

mod tag {
    pub const USER_OBJ: u16 = 0x01;
    pub const USER: u16 = 0x02;
    pub const GROUP_OBJ: u16 = 0x04;
    pub const GROUP: u16 = 0x08;
    pub const MASK: u16 = 0x10;
    pub const OTHER: u16 = 0x20;
}

/// Why a value is no ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AclError {
    #[error("not a well-formed ACL")]
    Malformed,
    #[error("an ACL of another version")]
    Version,
}

/// A parsed ACL that has the three entries each ACL needs, and a mask if it names users or groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// What a new file starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// 0o7777
    pub mode: u16,
    /// [`ACCESS_NAME`], if the mode doesn't say it all.
    pub access: Option<Vec<u8>>,
    /// [`DEFAULT_NAME`], of directories.
    pub default: Option<Vec<u8>>,
}

/// Mode and ACLs of a file that is made with `mode` and `umask` in a directory with this default ACL. Not for symlinks.
pub fn inherit(default: Option<&Acl>, mode: u16, umask: u16, is_directory: bool) -> Inherited {
    let Some(default) = default else {
        return Inherited { mode: mode & !umask, access: None, default: None };
    };
    let mut access = default.clone();
    // The default ACL can only be narrowed by the mode, class by class; the umask has no say.
    let narrowed = (mode & !0o777) | (access.mode() & mode);
    access.set_mode(narrowed);
    Inherited {
        mode: narrowed,
        access: (!access.is_minimal()).then(|| access.to_xattr()),
        default: is_directory.then(|| default.to_xattr()),
    }
}

impl Acl {
    pub fn from_xattr(value: &[u8]) -> Result<Self, AclError> {
        let (version, rest) = value.split_first_chunk::<HEADER_BYTES>().ok_or(AclError::Malformed)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(AclError::Version);
        }
        let (chunks, []) = rest.as_chunks::<ENTRY_BYTES>() else { return Err(AclError::Malformed) };
        let entries = chunks.iter().map(|&[tag0, tag1, permissions0, permissions1, id @ ..]| Entry {
            tag: u16::from_le_bytes([tag0, tag1]),
            permissions: u16::from_le_bytes([permissions0, permissions1]),
            id: u32::from_le_bytes(id),
        });
        let acl = Self { entries: entries.collect() };
        if acl.is_valid() { Ok(acl) } else { Err(AclError::Malformed) }
    }

    pub fn to_xattr(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&entry.permissions.to_le_bytes());
            value.extend_from_slice(&entry.id.to_le_bytes());
        }
        value
    }

    /// The permission bits that stand for this ACL in the mode: to be set when it becomes a file's access ACL.
    pub fn mode(&self) -> u16 {
        let of = |tag| self.permissions(tag).unwrap_or(0);
        of(tag::USER_OBJ) << 6 | of(self.group_class()) << 3 | of(tag::OTHER)
    }

    /// Follows a chmod.
    pub fn set_mode(&mut self, mode: u16) {
        let group_class = self.group_class();
        for entry in &mut self.entries {
            entry.permissions = match entry.tag {
                tag::USER_OBJ => mode >> 6 & 7,
                tag::OTHER => mode & 7,
                tag if tag == group_class => mode >> 3 & 7,
                _ => entry.permissions,
            };
        }
    }

    /// Says no more than the mode; then it needs no xattr.
    pub fn is_minimal(&self) -> bool {
        self.entries.len() == ENTRIES_MINIMAL
    }

    /// With a mask, the mode's group bits are the mask's.
    fn group_class(&self) -> u16 {
        if self.permissions(tag::MASK).is_some() { tag::MASK } else { tag::GROUP_OBJ }
    }

    fn permissions(&self, tag: u16) -> Option<u16> {
        self.entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(tag::USER) + count(tag::GROUP);
        let masks = count(tag::MASK);
        [tag::USER_OBJ, tag::GROUP_OBJ, tag::OTHER].into_iter().all(|tag| count(tag) == 1)
            && masks <= 1
            && (named == 0 || masks == 1)
            && self.entries.len() == ENTRIES_MINIMAL + named + masks
            && self.entries.iter().all(|entry| entry.permissions <= 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl { entries: entries.iter().map(|&(tag, permissions, id)| Entry { tag, permissions, id }).collect() }
    }

    fn extended() -> Acl {
        acl(&[
            (tag::USER_OBJ, 7, u32::MAX),
            (tag::USER, 6, 1000),
            (tag::GROUP_OBJ, 5, u32::MAX),
            (tag::MASK, 7, u32::MAX),
            (tag::OTHER, 0, u32::MAX),
        ])
    }

    #[test]
    fn the_mask_stands_for_the_group_in_the_mode() -> Result<(), AclError> {
        let mut acl = Acl::from_xattr(&extended().to_xattr())?;
        assert_eq!(acl, extended());
        assert_eq!(acl.mode(), 0o770);
        acl.set_mode(0o640);
        assert_eq!((acl.mode(), acl.permissions(tag::GROUP_OBJ)), (0o640, Some(5)));
        Ok(())
    }

    #[test]
    fn without_a_default_acl_the_umask_counts() {
        assert_eq!(inherit(None, 0o4666, 0o027, false), Inherited { mode: 0o4640, access: None, default: None });
    }

    #[test]
    fn a_default_acl_replaces_the_umask() {
        let inherited = inherit(Some(&extended()), 0o666, 0o077, false);
        assert_eq!((inherited.mode, inherited.default), (0o660, None));
        let access = inherited.access.map(|value| Acl::from_xattr(&value));
        assert!(access.is_some_and(|access| access.is_ok_and(|access| access.permissions(tag::USER) == Some(6))));
        let directory = inherit(Some(&extended()), 0o1777, 0o077, true);
        assert_eq!((directory.mode, directory.default), (0o1770, Some(extended().to_xattr())));
    }

    #[test]
    fn a_minimal_default_acl_leaves_only_a_mode() {
        let minimal = acl(&[(tag::USER_OBJ, 7, 0), (tag::GROUP_OBJ, 5, 0), (tag::OTHER, 1, 0)]);
        let inherited = inherit(Some(&minimal), 0o666, 0, false);
        assert_eq!(inherited, Inherited { mode: 0o640, access: None, default: None });
    }

    #[test]
    fn malformed_acls_are_refused() {
        let mut value = extended().to_xattr();
        value.pop();
        assert_eq!(Acl::from_xattr(&value), Err(AclError::Malformed));
        assert_eq!(Acl::from_xattr(&[1, 0, 0, 0]), Err(AclError::Version));
        let no_mask = acl(&[(tag::USER_OBJ, 7, 0), (tag::USER, 7, 1), (tag::GROUP_OBJ, 5, 0), (tag::OTHER, 1, 0)]);
        assert_eq!(Acl::from_xattr(&no_mask.to_xattr()), Err(AclError::Malformed));
    }

    proptest! {
        #[test]
        fn arbitrary_values_do_no_harm(value in proptest::collection::vec(any::<u8>(), 0..80), mode in 0..0o10000_u16) {
            if let Ok(acl) = Acl::from_xattr(&value) {
                prop_assert_eq!(acl.to_xattr(), value);
                prop_assert_eq!(inherit(Some(&acl), mode, 0, true).mode & !mode, 0);
            }
        }
    }
}
