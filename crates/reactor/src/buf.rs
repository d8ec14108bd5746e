//! Memory that drives and network cards can use in place.
//!
//! Fresh memory of a megabyte costs more in page faults and clearing than all that is done with it. So each thread keeps
//! what its buffers leave behind, up to a bound, for the next ones.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Alignment of buffers, and the unit of their size.
pub const ALIGNMENT_BYTES: usize = 4096;

/// Memory that a thread keeps for its next buffers.
const KEPT_BYTES_MAX: usize = 8 << 20;
/// Up to so many pages, buffers of each number of pages are kept by themselves; larger ones are rounded up to multiples of it.
const CLASS_PAGES: usize = 16;

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; ALIGNMENT_BYTES]);

/// A writable buffer that starts at a multiple of [`ALIGNMENT_BYTES`]. Whole pages are allocated;
/// what lies beyond the length is never seen.
pub struct AlignedBuf {
    pages: Vec<Page>,
    len: usize,
    home: Option<Arc<Shelf>>,
}

impl AlignedBuf {
    /// A buffer of zeros.
    ///
    /// Aborts like any allocation when there is no memory: check lengths that come from outside first.
    pub fn with_len(len: usize) -> Self {
        match Leftovers::take(len) {
            Some(pages) => {
                let mut buffer = Self { pages, len, home: None };
                buffer.as_mut_slice().fill(0);
                buffer
            }
            None => Self::fresh(len),
        }
    }

    /// A buffer with *unspecified content*, for those who write all of it.
    pub fn unfilled(len: usize) -> Self {
        match Leftovers::take(len) {
            Some(pages) => {
                let mut buffer = Self { pages, len, home: None };
                if cfg!(debug_assertions) {
                    // The same in each run, and never what was meant.
                    buffer.as_mut_slice().fill(0xa5);
                }
                buffer
            }
            None => Self::fresh(len),
        }
    }

    fn fresh(len: usize) -> Self {
        match Page::new_vec_zeroed(class_of(len)) {
            Ok(pages) => Self { pages, len, home: None },
            Err(error) => panic!("allocating a buffer of {len} bytes: {error:?}"),
        }
    }

    /// A buffer with a copy of `data`.
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buffer = Self::unfilled(data.len());
        buffer.as_mut_slice().copy_from_slice(data);
        buffer
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Shortens the buffer; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.len]
    }

    /// Ends writing. Nothing is copied; the memory goes back to its pool, if it has one, with the last reference.
    pub fn freeze(self) -> Bytes {
        if self.is_empty() {
            return Bytes::new();
        }
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        match self.home.take() {
            Some(home) => home.put(pages),
            None => Leftovers::put(pages),
        }
    }
}

/// Pages that a buffer of so many bytes gets.
fn class_of(len: usize) -> usize {
    let pages = len.div_ceil(ALIGNMENT_BYTES);
    if pages <= CLASS_PAGES { pages } else { pages.next_multiple_of(CLASS_PAGES) }
}

/// What buffers of this thread have left behind.
#[derive(Default)]
struct Leftovers {
    by_pages: BTreeMap<usize, Vec<Vec<Page>>>,
    bytes: usize,
}

thread_local! {
    static LEFTOVERS: RefCell<Leftovers> = RefCell::default();
}

impl Leftovers {
    fn take(len: usize) -> Option<Vec<Page>> {
        let class = class_of(len);
        // The thread may be ending.
        let taken = LEFTOVERS.try_with(|leftovers| {
            let mut leftovers = leftovers.try_borrow_mut().ok()?;
            let pages = leftovers.by_pages.get_mut(&class)?.pop()?;
            leftovers.bytes -= pages.len() * ALIGNMENT_BYTES;
            Some(pages)
        });
        taken.ok().flatten()
    }

    fn put(pages: Vec<Page>) {
        let bytes = pages.len() * ALIGNMENT_BYTES;
        if bytes == 0 || bytes > KEPT_BYTES_MAX {
            return;
        }
        let _ = LEFTOVERS.try_with(|leftovers| {
            let Ok(mut leftovers) = leftovers.try_borrow_mut() else { return };
            if leftovers.bytes + bytes > KEPT_BYTES_MAX {
                // Of sizes that nobody asks for any more, perhaps.
                *leftovers = Self::default();
            }
            leftovers.bytes += bytes;
            leftovers.by_pages.entry(pages.len()).or_default().push(pages);
        });
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// Keeps buffers of one size for reuse, so that a steady flow of them neither allocates nor clears memory.
#[derive(Clone)]
pub struct Pool {
    shelf: Arc<Shelf>,
}

struct Shelf {
    buffer_pages: usize,
    kept_max: usize,
    kept: Mutex<Vec<Vec<Page>>>,
}

impl Shelf {
    fn put(&self, pages: Vec<Page>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < self.kept_max {
            kept.push(pages);
        }
    }
}

impl Pool {
    /// A pool of buffers of up to `buffer_bytes` that keeps at most `kept_max` of them while they are not in use.
    pub fn new(buffer_bytes: usize, kept_max: usize) -> Self {
        let buffer_pages = buffer_bytes.div_ceil(ALIGNMENT_BYTES).max(1);
        Self { shelf: Arc::new(Shelf { buffer_pages, kept_max, kept: Mutex::default() }) }
    }

    /// A buffer with *unspecified content* of what passed through this pool before. Longer than the pool's buffers: a fresh one.
    pub fn take(&self, len: usize) -> AlignedBuf {
        let buffer_bytes = self.shelf.buffer_pages * ALIGNMENT_BYTES;
        if len > buffer_bytes {
            return AlignedBuf::with_len(len);
        }
        let kept = self.shelf.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let home = Some(Arc::clone(&self.shelf));
        match kept {
            Some(pages) => AlignedBuf { pages, len, home },
            None => {
                let mut fresh = AlignedBuf::with_len(buffer_bytes);
                fresh.truncate(len);
                fresh.home = home;
                fresh
            }
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("buffer_bytes", &(self.shelf.buffer_pages * ALIGNMENT_BYTES))
            .finish_non_exhaustive()
    }
}

/// Starts at a multiple of [`ALIGNMENT_BYTES`]. Empty is aligned.
pub fn is_aligned(bytes: &Bytes) -> bool {
    bytes.is_empty() || bytes.as_ptr().addr().is_multiple_of(ALIGNMENT_BYTES)
}

/// The same bytes at an aligned address; copies only when they are not there yet.
pub fn to_aligned(bytes: Bytes) -> Bytes {
    if is_aligned(&bytes) { bytes } else { AlignedBuf::copy_of(&bytes).freeze() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_frozen_in_place() {
        for len in [1, 4095, 4096, 4097, 1 << 20] {
            let mut buffer = AlignedBuf::with_len(len);
            buffer.as_mut_slice()[len - 1] = 7;
            let address = buffer.as_slice().as_ptr();
            let bytes = buffer.freeze();
            assert_eq!((bytes.as_ptr(), bytes.len(), bytes[len - 1]), (address, len, 7));
            assert!(is_aligned(&bytes));
            assert!(!is_aligned(&bytes.slice(1..)) || len == 1);
            assert_eq!(to_aligned(bytes.clone()).as_ptr(), address);
            let moved = to_aligned(bytes.slice(len / 2..));
            assert!(is_aligned(&moved));
            assert_eq!(moved, bytes.slice(len / 2..));
        }
        assert!(AlignedBuf::with_len(0).freeze().is_empty());
    }

    #[test]
    fn what_a_buffer_leaves_behind_is_used_again_and_never_seen() {
        let mut buffer = AlignedBuf::with_len(17 * 4096 + 1);
        buffer.as_mut_slice().fill(9);
        let address = buffer.as_slice().as_ptr();
        drop(buffer.freeze());
        let again = AlignedBuf::with_len(30 * 4096);
        assert_eq!(again.as_slice().as_ptr(), address);
        assert!(again.as_slice().iter().all(|byte| *byte == 0));
        drop(again);
        assert_eq!(AlignedBuf::unfilled(32 * 4096).as_slice().as_ptr(), address);
        // No more is kept than may be.
        drop((0..(2 * KEPT_BYTES_MAX) >> 20).map(|_| AlignedBuf::with_len(1 << 20)).collect::<Vec<_>>());
        LEFTOVERS.with_borrow(|leftovers| {
            let kept: usize = leftovers.by_pages.values().flatten().map(|pages| pages.len() * ALIGNMENT_BYTES).sum();
            assert!(leftovers.bytes == kept && kept <= KEPT_BYTES_MAX);
        });
        drop(AlignedBuf::with_len(KEPT_BYTES_MAX + 1));
    }

    #[test]
    fn a_pool_reuses_what_comes_back() {
        let pool = Pool::new(8192, 1);
        let first = pool.take(5000).freeze();
        let address = first.as_ptr();
        let second = pool.take(100);
        assert_ne!(second.as_slice().as_ptr(), address);
        drop(first);
        let again = pool.take(8192);
        assert_eq!((again.as_slice().as_ptr(), again.len()), (address, 8192));
        drop((again, second));
        assert_eq!(pool.shelf.kept.lock().unwrap().len(), 1, "no more than it may keep");
        assert_eq!(pool.take(10_000).len(), 10_000);
    }
}
