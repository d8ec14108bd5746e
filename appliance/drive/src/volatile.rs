//! A write cache that forgets: what isn't flushed lives in this process' memory only, and dies with it.
//!
//! Put in front of a file in test clusters, it turns `kill -9` into a power failure of a drive with a volatile
//! cache: a flush that was forgotten shows as lost data.

use crate::device::{Drive, DriveError, check_pieces, outcome};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use weft_reactor::sync::{Mutex, Pending, completion};
use weft_reactor::{AlignedBuf, Handle};
use weft_wire::limits::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks held back. Beyond, writes go straight to the drive, as a real cache's do when it is full.
const BLOCKS_MAX: usize = 16_384;
/// Blocks of one write to the drive below.
const RUN_BLOCKS_MAX: usize = 256;

#[derive(Clone)]
pub struct VolatileCache {
    shared: Rc<Shared>,
    handle: Handle,
}

struct Shared {
    inner: Rc<dyn Drive>,
    /// Newest content of blocks, with the number of the write that brought it.
    blocks: RefCell<BTreeMap<u64, (u64, Bytes)>>,
    writes: Cell<u64>,
    /// Held by whoever writes to the drive below, so that old content never overtakes new.
    below: Mutex<()>,
}

impl VolatileCache {
    pub fn new(inner: Rc<dyn Drive>, handle: Handle) -> Rc<Self> {
        let shared = Shared { inner, blocks: RefCell::default(), writes: Cell::new(0), below: Mutex::new(()) };
        Rc::new(Self { shared: Rc::new(shared), handle })
    }

    /// Blocks that would be lost now.
    pub fn unflushed_blocks(&self) -> usize {
        self.shared.blocks.borrow().len()
    }

    fn run<T: 'static>(
        &self,
        work: impl Future<Output = Result<T, DriveError>> + 'static,
    ) -> Pending<Result<T, DriveError>> {
        let (completer, pending) = completion();
        self.handle.spawn("volatile cache", async move { completer.complete(work.await) }).detach();
        pending
    }
}

impl Shared {
    /// Takes blocks into memory. Returns the number of the write.
    fn hold(&self, offset: u64, data: &[Bytes]) -> u64 {
        let number = self.writes.get() + 1;
        self.writes.set(number);
        let mut blocks = self.blocks.borrow_mut();
        let pieces = data.iter().flat_map(|piece| piece.chunks(BLOCK_BYTES).map(|part| piece.slice_ref(part)));
        for (block, piece) in (offset / BLOCK..).zip(pieces) {
            blocks.insert(block, (number, piece));
        }
        number
    }

    /// Forgets blocks that are below by now, unless they were written again.
    fn release(&self, written: impl Iterator<Item = (u64, u64)>) {
        let mut blocks = self.blocks.borrow_mut();
        for (block, number) in written {
            if blocks.get(&block).is_some_and(|(newest, _)| *newest == number) {
                blocks.remove(&block);
            }
        }
    }

    async fn flush(&self) -> Result<(), DriveError> {
        let _below = self.below.lock().await;
        let held: Vec<(u64, u64, Bytes)> =
            self.blocks.borrow().iter().map(|(block, (number, data))| (*block, *number, data.clone())).collect();
        let mut rest = held.as_slice();
        while let Some((first, ..)) = rest.first() {
            let follows = |(index, (block, ..)): (usize, &(u64, u64, Bytes))| *block == first + index as u64;
            let len = rest.iter().take(RUN_BLOCKS_MAX).enumerate().take_while(|item| follows(*item)).count();
            let (run, after) = rest.split_at(len);
            let data = run.iter().map(|(.., data)| data.clone()).collect();
            outcome(self.inner.write(first * BLOCK, data)).await?;
            rest = after;
        }
        outcome(self.inner.flush()).await?;
        self.release(held.iter().map(|(block, number, _)| (*block, *number)));
        Ok(())
    }
}

impl Drive for VolatileCache {
    fn capacity_bytes(&self) -> u64 {
        self.shared.inner.capacity_bytes()
    }

    fn is_sparse(&self) -> bool {
        self.shared.inner.is_sparse()
    }

    fn read(&self, offset: u64, len: usize) -> Pending<Result<Bytes, DriveError>> {
        let range = offset / BLOCK..offset.saturating_add(len as u64) / BLOCK;
        let held: Vec<(u64, Bytes)> = {
            let blocks = self.shared.blocks.borrow();
            blocks.range(range).map(|(block, (_, data))| (*block, data.clone())).collect()
        };
        let below = self.shared.inner.read(offset, len);
        if held.is_empty() {
            return below;
        }
        self.run(async move {
            let mut content = AlignedBuf::copy_of(&outcome(below).await?);
            for (block, data) in held {
                let at = (block * BLOCK - offset) as usize;
                content.as_mut_slice()[at..at + BLOCK_BYTES].copy_from_slice(&data);
            }
            Ok(content.freeze())
        })
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>> {
        if let Err(error) = check_pieces(self.capacity_bytes(), offset, &data) {
            return Pending::ready(Err(error));
        }
        let number = self.shared.hold(offset, &data);
        if self.shared.blocks.borrow().len() <= BLOCKS_MAX {
            return Pending::ready(Ok(()));
        }
        let shared = Rc::clone(&self.shared);
        self.run(async move {
            let _below = shared.below.lock().await;
            let len: u64 = data.iter().map(|piece| piece.len() as u64).sum();
            outcome(shared.inner.write(offset, data)).await?;
            shared.release((offset / BLOCK..(offset + len) / BLOCK).map(|block| (block, number)));
            Ok(())
        })
    }

    fn write_durable(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>> {
        if let Err(error) = check_pieces(self.capacity_bytes(), offset, &data) {
            return Pending::ready(Err(error));
        }
        let number = self.shared.hold(offset, &data);
        let shared = Rc::clone(&self.shared);
        self.run(async move {
            let _below = shared.below.lock().await;
            let len: u64 = data.iter().map(|piece| piece.len() as u64).sum();
            outcome(shared.inner.write_durable(offset, data)).await?;
            shared.release((offset / BLOCK..(offset + len) / BLOCK).map(|block| (block, number)));
            Ok(())
        })
    }

    fn flush(&self) -> Pending<Result<(), DriveError>> {
        let shared = Rc::clone(&self.shared);
        self.run(async move { shared.flush().await })
    }

    fn discard(&self, offset: u64, len: u64) -> Pending<Result<(), DriveError>> {
        let range = offset / BLOCK..offset.saturating_add(len) / BLOCK;
        self.shared.blocks.borrow_mut().retain(|block, _| !range.contains(block));
        self.shared.inner.discard(offset, len)
    }
}
