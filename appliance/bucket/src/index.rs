//! The index: a memtable over sorted runs, newest first. Lookups ask each until one knows the key.

use crate::BucketError;
use crate::memtable::Memtable;
use crate::run::{Footer, Page, RunMeta};
use crate::stripes::Stripes;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Pages of runs in memory, the least recently used ones dropped first.
struct PageCache {
    pages: BTreeMap<(u64, u32), (Page, u64)>,
    order: BTreeMap<u64, (u64, u32)>,
    tick: u64,
    bytes: usize,
    bytes_max: usize,
}

impl PageCache {
    fn get(&mut self, key: (u64, u32)) -> Option<Page> {
        let (page, tick) = self.pages.get_mut(&key)?;
        self.order.remove(tick);
        self.tick += 1;
        *tick = self.tick;
        self.order.insert(self.tick, key);
        Some(page.clone())
    }

    fn insert(&mut self, key: (u64, u32), page: Page) {
        self.tick += 1;
        self.bytes += page.bytes();
        if let Some((old, tick)) = self.pages.insert(key, (page, self.tick)) {
            self.order.remove(&tick);
            self.bytes -= old.bytes();
        }
        self.order.insert(self.tick, key);
        while self.bytes > self.bytes_max {
            let Some((_, key)) = self.order.pop_first() else { break };
            if let Some((page, _)) = self.pages.remove(&key) {
                self.bytes -= page.bytes();
            }
        }
    }
}

/// A run with what of it is in memory.
pub struct Run {
    pub meta: RefCell<RunMeta>,
    footer: RefCell<Option<Rc<Footer>>>,
}

impl Run {
    pub fn new(meta: RunMeta, footer: Option<Footer>) -> Rc<Self> {
        Rc::new(Self { meta: RefCell::new(meta), footer: RefCell::new(footer.map(Rc::new)) })
    }

    pub fn id(&self) -> u64 {
        self.meta.borrow().id
    }

    pub fn blocks(&self) -> u32 {
        self.meta.borrow().blocks
    }

    async fn footer(&self, stripes: &Stripes) -> Result<Rc<Footer>, BucketError> {
        if let Some(footer) = &*self.footer.borrow() {
            return Ok(Rc::clone(footer));
        }
        let (block, bytes, blocks) = {
            let meta = self.meta.borrow();
            (meta.footer_block, meta.footer_bytes, meta.blocks)
        };
        let data = stripes.read_run(&self.meta, block, blocks.saturating_sub(block)).await?;
        let footer: Footer = data
            .get(..bytes as usize)
            .and_then(|data| weft_wire::decode(data).ok())
            .ok_or_else(|| BucketError::Corrupt(format!("the footer of run {}", self.id())))?;
        let footer = Rc::new(footer);
        *self.footer.borrow_mut() = Some(Rc::clone(&footer));
        Ok(footer)
    }
}

pub struct Index {
    memtable: RefCell<Memtable>,
    frozen: RefCell<Option<Rc<Memtable>>>,
    runs: RefCell<Vec<Rc<Run>>>,
    cache: RefCell<PageCache>,
    pages_read: Cell<u64>,
}

/// A value, or that it was deleted.
type Found = Option<Bytes>;

impl Index {
    pub fn new(runs: Vec<Rc<Run>>, cache_bytes_max: usize) -> Self {
        Self {
            memtable: RefCell::default(),
            frozen: RefCell::default(),
            runs: RefCell::new(runs),
            cache: RefCell::new(PageCache {
                pages: BTreeMap::new(),
                order: BTreeMap::new(),
                tick: 0,
                bytes: 0,
                bytes_max: cache_bytes_max,
            }),
            pages_read: Cell::new(0),
        }
    }

    pub fn insert(&self, key: Bytes, value: Option<Bytes>) {
        self.memtable.borrow_mut().insert(key, value);
    }

    pub fn memtable_bytes(&self) -> usize {
        self.memtable.borrow().bytes()
    }

    pub fn pages_read(&self) -> u64 {
        self.pages_read.get()
    }

    /// What it holds in memory: memtables, footers, cached pages.
    pub fn resident_bytes(&self) -> usize {
        let footers: usize =
            self.runs.borrow().iter().map(|run| run.footer.borrow().as_ref().map_or(0, |footer| footer.bytes())).sum();
        let frozen = self.frozen.borrow().as_ref().map_or(0, |frozen| frozen.bytes());
        self.memtable.borrow().bytes() + frozen + footers + self.cache.borrow().bytes
    }

    /// The memtable is closed and a new one begun. `None`: one is being written already, or there is nothing.
    pub fn freeze(&self) -> Option<Rc<Memtable>> {
        let mut frozen = self.frozen.borrow_mut();
        if frozen.is_some() || self.memtable.borrow().is_empty() {
            return None;
        }
        let table = Rc::new(self.memtable.take());
        *frozen = Some(Rc::clone(&table));
        Some(table)
    }

    pub fn frozen(&self) -> Option<Rc<Memtable>> {
        self.frozen.borrow().clone()
    }

    /// The frozen memtable is this run now.
    pub fn thaw(&self, run: Rc<Run>) {
        self.runs.borrow_mut().insert(0, run);
        *self.frozen.borrow_mut() = None;
    }

    pub fn runs(&self) -> Vec<Rc<Run>> {
        self.runs.borrow().clone()
    }

    /// Runs `old`, which follow each other, are this one now (or nothing, if nothing was left of them).
    pub fn replace(&self, old: &[Rc<Run>], new: Option<Rc<Run>>) {
        let mut runs = self.runs.borrow_mut();
        let Some(at) = runs.iter().position(|run| old.first().is_some_and(|first| Rc::ptr_eq(run, first))) else {
            return;
        };
        runs.drain(at..at + old.len());
        if let Some(new) = new {
            runs.insert(at, new);
        }
    }

    async fn page(&self, run: &Run, footer: &Footer, page: usize, stripes: &Stripes) -> Result<Page, BucketError> {
        let key = (run.id(), page as u32);
        if let Some(page) = self.cache.borrow_mut().get(key) {
            return Ok(page);
        }
        let Some(place) = footer.pages.get(page) else {
            return Err(BucketError::Corrupt(format!("run {} has no page {page}", run.id())));
        };
        let data = stripes.read_run(&run.meta, place.block, place.blocks).await?;
        self.pages_read.set(self.pages_read.get() + 1);
        let page = Page::new(data);
        self.cache.borrow_mut().insert(key, page.clone());
        Ok(page)
    }

    /// The value at the moment of the call, whatever changes while runs are read.
    pub async fn get(&self, key: &[u8], stripes: &Stripes) -> Result<Option<Bytes>, BucketError> {
        if let Some(found) = self.memtable.borrow().get(key) {
            return Ok(found);
        }
        if let Some(found) = self.frozen.borrow().as_ref().and_then(|frozen| frozen.get(key)) {
            return Ok(found);
        }
        let runs = self.runs();
        for run in runs {
            let footer = run.footer(stripes).await?;
            if !footer.may_hold(key) {
                continue;
            }
            let Some(page) = footer.page_for(key) else { continue };
            if let Some(found) = self.page(&run, &footer, page, stripes).await?.get(key) {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// At least the first `limit` entries with keys in [`from`, `to`), fewer only if there are no more.
    pub async fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        stripes: &Stripes,
    ) -> Result<Vec<(Bytes, Bytes)>, BucketError> {
        // Everything in memory is gathered at once, up to the key at which there is enough for sure.
        let mut newest: BTreeMap<Bytes, Found> = BTreeMap::new();
        let mut end = Bytes::copy_from_slice(to);
        let runs = self.runs();
        {
            let memtable = self.memtable.borrow();
            let frozen = self.frozen.borrow();
            let mut fresh = memtable.range(from, to).peekable();
            let mut old = frozen.iter().flat_map(|frozen| frozen.range(from, to)).peekable();
            let mut live = 0;
            while live < limit {
                let take_fresh = match (fresh.peek(), old.peek()) {
                    (None, None) => break,
                    (Some(_), None) => true,
                    (None, Some(_)) => false,
                    (Some((a, _)), Some((b, _))) => {
                        if a == b {
                            old.next();
                            true
                        } else {
                            a < b
                        }
                    }
                };
                let Some((key, value)) = (if take_fresh { fresh.next() } else { old.next() }) else { break };
                live += usize::from(value.is_some());
                newest.insert(key.clone(), value.clone());
                if live == limit {
                    let mut after = key.to_vec();
                    after.push(0);
                    end = after.into();
                }
            }
        }
        let mut cursors = Vec::new();
        for run in runs {
            cursors.push(Cursor::seek(self, run, from, stripes).await?);
        }
        let mut out = Vec::new();
        let mut memory = newest.into_iter().peekable();
        while out.len() < limit {
            let mut lowest: Option<Bytes> = memory.peek().map(|(key, _)| key.clone());
            for cursor in &cursors {
                if let Some((key, _)) = cursor.peek()
                    && *key < end
                    && lowest.as_ref().is_none_or(|lowest| key < lowest)
                {
                    lowest = Some(key.clone());
                }
            }
            let Some(lowest) = lowest else { break };
            let mut found: Option<Found> = None;
            if memory.peek().is_some_and(|(key, _)| *key == lowest) {
                found = memory.next().map(|(_, value)| value);
            }
            for cursor in &mut cursors {
                if cursor.peek().is_some_and(|(key, _)| *key == lowest) {
                    let (_, value) = cursor.take(self, stripes).await?;
                    found.get_or_insert(value);
                }
            }
            if let Some(Some(value)) = found {
                out.push((lowest, value));
            }
        }
        Ok(out)
    }
}

/// Walks a run in key order.
pub struct Cursor {
    run: Rc<Run>,
    footer: Rc<Footer>,
    page: usize,
    entries: std::collections::VecDeque<(Bytes, Found)>,
}

impl Cursor {
    /// Stands at the first entry that isn't below `from`.
    pub async fn seek(index: &Index, run: Rc<Run>, from: &[u8], stripes: &Stripes) -> Result<Self, BucketError> {
        let footer = run.footer(stripes).await?;
        let page = footer.page_for(from).unwrap_or(0);
        let mut cursor = Self { run, footer, page, entries: Default::default() };
        cursor.fill(index, stripes, from).await?;
        Ok(cursor)
    }

    async fn fill(&mut self, index: &Index, stripes: &Stripes, from: &[u8]) -> Result<(), BucketError> {
        while self.entries.is_empty() && self.page < self.footer.pages.len() {
            let page = index.page(&self.run, &self.footer, self.page, stripes).await?;
            self.page += 1;
            self.entries.extend(page.entries().filter(|(key, _)| key.as_ref() >= from));
        }
        Ok(())
    }

    pub fn peek(&self) -> Option<&(Bytes, Found)> {
        self.entries.front()
    }

    /// The entry that [`Cursor::peek`] showed.
    pub async fn take(&mut self, index: &Index, stripes: &Stripes) -> Result<(Bytes, Found), BucketError> {
        let entry = self.entries.pop_front().ok_or_else(|| BucketError::Corrupt("a cursor at its end".into()))?;
        if self.entries.is_empty() {
            self.fill(index, stripes, &[]).await?;
        }
        Ok((Bytes::copy_from_slice(&entry.0), entry.1.map(|value| Bytes::copy_from_slice(&value))))
    }
}
