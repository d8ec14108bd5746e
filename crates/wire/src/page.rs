//! Pages of directories: which part of a directory's names is where.
//!
//! A directory begins as one page, beside its inode. A page that grows splits into two by the next bit of its names'
//! hashes. Whoever looks for a name at a page that has split is told to look one bit deeper.

use crate::hash::{Secret, name_hash, page_position};
use crate::{FsId, InodeId, Position};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Deeper pages are refused, whoever names them: their places would overlap with collision numbers.
pub const PAGE_DEPTH_MAX: u8 = 32;
/// A cookie is the upper 55 bits of a name's hash and 8 bits that tell collisions apart.
const COOKIE_BITS: u32 = 63;
const COOKIE_MAX: u64 = (1 << COOKIE_BITS) - 1;
const HASH_BITS: u32 = u64::BITS;
/// Directories whose pages are remembered.
const DIRECTORIES_MAX: usize = 1024;

/// The names of a directory whose hashes begin with the `depth` bits of `prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageId {
    pub dir: InodeId,
    pub depth: u8,
    pub prefix: u64,
}

impl PageId {
    /// The first page of a directory. Its record is the directory's inode.
    pub fn root(dir: InodeId) -> Self {
        Self { dir, depth: 0, prefix: 0 }
    }

    /// The page of this depth for a hash.
    pub fn of_hash(dir: InodeId, hash: u64, depth: u8) -> Self {
        let depth = depth.min(PAGE_DEPTH_MAX);
        Self { dir, depth, prefix: hash.checked_shr(HASH_BITS - u32::from(depth)).unwrap_or(0) }
    }

    pub fn of_name(secret: &Secret, dir: InodeId, name: &[u8], depth: u8) -> Self {
        Self::of_hash(dir, name_hash(secret, dir, name), depth)
    }

    /// The page of this depth in which a listing finds the entry with this cookie.
    pub fn of_cookie(dir: InodeId, cookie: u64, depth: u8) -> Self {
        Self::of_hash(dir, hash_of_cookie(cookie), depth)
    }

    pub fn is_root(self) -> bool {
        self.depth == 0
    }

    /// What it splits into, in the order of cookies.
    pub fn children(self) -> [Self; 2] {
        [0, 1].map(|bit| Self { dir: self.dir, depth: self.depth + 1, prefix: self.prefix << 1 | bit })
    }

    /// What split into it.
    pub fn parent(self) -> Option<Self> {
        let depth = self.depth.checked_sub(1)?;
        Some(Self { dir: self.dir, depth, prefix: self.prefix >> 1 })
    }

    pub fn position(self, secret: &Secret, fs: FsId) -> Position {
        page_position(secret, fs, self.dir, self.depth, self.prefix)
    }

    /// The lowest cookie of its names.
    pub fn first_cookie(self) -> u64 {
        self.prefix << self.cookie_bits()
    }

    /// The highest cookie of its names.
    pub fn last_cookie(self) -> u64 {
        self.first_cookie() | ((1 << self.cookie_bits()) - 1)
    }

    /// Bits in which cookies of its names differ.
    fn cookie_bits(self) -> u32 {
        COOKIE_BITS.saturating_sub(u32::from(self.depth))
    }

    /// Nothing is listed after it.
    pub fn is_last(self) -> bool {
        self.last_cookie() == COOKIE_MAX
    }

    fn first_hash(self) -> u64 {
        self.first_cookie() << (HASH_BITS - COOKIE_BITS)
    }
}

/// A hash that names with this cookie could have. What lies beyond all cookies is behind the last of them.
fn hash_of_cookie(cookie: u64) -> u64 {
    cookie.min(COOKIE_MAX) << (HASH_BITS - COOKIE_BITS)
}

/// What somebody remembers of the pages of directories. A hint: pages may have split since, and say so.
#[derive(Debug, Default)]
pub struct KnownPages {
    /// The pages of each directory that has several, by their first hash: together they have all names.
    directories: BTreeMap<InodeId, BTreeMap<u64, PageId>>,
}

impl KnownPages {
    pub fn of_hash(&self, dir: InodeId, hash: u64) -> PageId {
        let page = self.directories.get(&dir).and_then(|pages| pages.range(..=hash).next_back());
        page.map_or(PageId::root(dir), |(_, page)| *page)
    }

    pub fn of_name(&self, secret: &Secret, dir: InodeId, name: &[u8]) -> PageId {
        if self.directories.is_empty() {
            return PageId::root(dir);
        }
        self.of_hash(dir, name_hash(secret, dir, name))
    }

    pub fn of_cookie(&self, dir: InodeId, cookie: u64) -> PageId {
        self.of_hash(dir, hash_of_cookie(cookie))
    }

    /// All pages of a directory.
    pub fn all(&self, dir: InodeId) -> Vec<PageId> {
        self.directories.get(&dir).map_or_else(|| vec![PageId::root(dir)], |pages| pages.values().copied().collect())
    }

    /// The page says that it has split.
    pub fn split(&mut self, page: PageId) {
        if page.depth >= PAGE_DEPTH_MAX {
            return;
        }
        if self.directories.len() >= DIRECTORIES_MAX && !self.directories.contains_key(&page.dir) {
            self.directories.clear();
        }
        let first = PageId::root(page.dir);
        let pages = self.directories.entry(page.dir).or_insert_with(|| BTreeMap::from([(0, first)]));
        if pages.get(&page.first_hash()) == Some(&page) {
            pages.extend(page.children().map(|child| (child.first_hash(), child)));
        }
    }

    /// A page isn't there: what is remembered of the directory is wrong.
    pub fn forget(&mut self, dir: InodeId) {
        self.directories.remove(&dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: InodeId = InodeId(77);

    #[test]
    fn pages_divide_cookies_without_gaps() {
        let root = PageId::root(DIR);
        assert_eq!((root.first_cookie(), root.is_last(), root.parent()), (0, true, None));
        let [low, high] = root.children();
        assert_eq!(low.last_cookie() + 1, high.first_cookie());
        assert!(high.is_last() && !low.is_last());
        let [first, second] = high.children();
        assert_eq!((first.first_cookie(), second.last_cookie()), (high.first_cookie(), high.last_cookie()));
        assert_eq!(second.parent(), Some(high));
        for page in [root, low, high, first, second] {
            assert_eq!(PageId::of_cookie(DIR, page.first_cookie(), page.depth), page);
            assert_eq!(PageId::of_cookie(DIR, page.last_cookie(), page.depth), page);
        }
        assert!(PageId::of_cookie(DIR, u64::MAX, 2).is_last());
    }

    #[test]
    fn a_name_is_listed_in_its_page() {
        let secret = Secret([3; 16]);
        for (name, depth) in (0..100).map(|i| (format!("name{i}"), i % 9)) {
            let hash = name_hash(&secret, DIR, name.as_bytes());
            let page = PageId::of_name(&secret, DIR, name.as_bytes(), depth);
            let cookie = (hash >> 9) << 8;
            assert!((page.first_cookie()..=page.last_cookie()).contains(&cookie));
            assert_eq!(PageId::of_cookie(DIR, cookie, depth), page);
        }
    }

    #[test]
    fn what_is_known_follows_splits() {
        let mut known = KnownPages::default();
        assert_eq!(known.of_hash(DIR, 5), PageId::root(DIR));
        known.split(PageId::root(DIR));
        let [low, high] = PageId::root(DIR).children();
        assert_eq!((known.of_hash(DIR, 5), known.of_hash(DIR, u64::MAX)), (low, high));
        known.split(high);
        // Heard a second time, from someone slower.
        known.split(PageId::root(DIR));
        known.split(high);
        let [third, fourth] = high.children();
        assert_eq!(known.all(DIR), [low, third, fourth]);
        assert_eq!(known.of_cookie(DIR, third.last_cookie()), third);
        known.forget(DIR);
        assert_eq!(known.all(DIR), [PageId::root(DIR)]);
    }
}
