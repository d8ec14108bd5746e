//! The answer to a readdir as it grows, in the kernel's layout.

use crate::abi;
use crate::answer::{entry_out, type_bits};
use crate::filesystem::{Entry, NodeId};
use weft_wire::fs::FileKind;
use zerocopy::IntoBytes;

/// Entries for one readdir, up to the size that the kernel asked for.
#[derive(Debug)]
pub struct DirBuffer {
    bytes: Vec<u8>,
    bytes_max: usize,
    plus: bool,
}

/// The entry was not taken; the directory goes on there next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    pub inode: u64,
    pub kind: FileKind,
    /// What readdir gets to go on after this entry; not 0.
    pub cookie: u64,
    pub name: &'a [u8],
}

impl DirBuffer {
    /// Of a single answer, whatever the kernel asks for.
    const BYTES_MAX: usize = 1 << 20;

    pub fn new(len_bytes: u32, plus: bool) -> Self {
        let bytes_max = (len_bytes as usize).min(Self::BYTES_MAX);
        Self { bytes: Vec::with_capacity(bytes_max.min(64 << 10)), bytes_max, plus }
    }

    /// Whether the kernel would like attributes with the entries: [`push_plus`](Self::push_plus).
    pub fn wants_attrs(&self) -> bool {
        self.plus
    }

    /// About how many entries still fit.
    pub fn entries_max(&self) -> usize {
        const NAME_BYTES_TYPICAL: usize = 16;
        let fixed = size_of::<abi::Dirent>() + if self.plus { size_of::<abi::EntryOut>() } else { 0 };
        (self.bytes_max - self.bytes.len()) / (fixed + NAME_BYTES_TYPICAL)
    }

    /// Adds an entry without attributes.
    pub fn push(&mut self, entry: &DirEntry<'_>) -> Result<(), Full> {
        if self.plus {
            // Node 0: "look it up yourself".
            self.reserve(size_of::<abi::EntryOut>(), entry)?;
            self.bytes.extend_from_slice(abi::EntryOut::default().as_bytes());
        } else {
            self.reserve(0, entry)?;
        }
        self.append(entry);
        Ok(())
    }

    /// Adds an entry with attributes, which counts as one lookup of `found.node`; for "." and "..", and where no
    /// attributes are wanted, use [`push`](Self::push).
    pub fn push_plus(&mut self, entry: &DirEntry<'_>, found: &Entry) -> Result<(), Full> {
        debug_assert!(self.plus && found.node != NodeId(0));
        self.reserve(size_of::<abi::EntryOut>(), entry)?;
        self.bytes.extend_from_slice(entry_out(found).as_bytes());
        self.append(entry);
        Ok(())
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn reserve(&self, before: usize, entry: &DirEntry<'_>) -> Result<(), Full> {
        let len = before + (size_of::<abi::Dirent>() + entry.name.len()).next_multiple_of(8);
        if self.bytes.len() + len > self.bytes_max { Err(Full) } else { Ok(()) }
    }

    fn append(&mut self, entry: &DirEntry<'_>) {
        let dirent = abi::Dirent {
            ino: entry.inode,
            off: entry.cookie,
            namelen: entry.name.len() as u32,
            typ: type_bits(entry.kind) >> 12,
        };
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(entry.name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_bounded() {
        let mut buffer = DirBuffer::new(80, false);
        let entry = DirEntry { inode: 5, kind: FileKind::File, cookie: 9, name: b"abc" };
        assert_eq!(buffer.push(&entry), Ok(()));
        assert_eq!(buffer.bytes.len(), 32);
        assert_eq!(buffer.push(&entry), Ok(()));
        assert_eq!(buffer.push(&entry), Err(Full));
        assert_eq!(buffer.into_bytes().len(), 64);
    }

    #[test]
    fn an_entry_without_attributes_is_no_lookup() {
        let mut buffer = DirBuffer::new(4096, true);
        assert_eq!(buffer.push(&DirEntry { inode: 5, kind: FileKind::Directory, cookie: 1, name: b"." }), Ok(()));
        assert!(buffer.bytes[..128].iter().all(|&byte| byte == 0));
        assert_eq!(buffer.bytes.len(), 128 + 32);
    }
}
