//! The index: a memtable over sorted runs, newest first. Lookups ask each until one knows the key.

use crate::BucketError;
use crate::cache::Cache;
use crate::memtable::Memtable;
use crate::run::{Page, RunMeta, Section};
use crate::stripes::Stripes;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A value, or that it was deleted.
type Found = Option<Bytes>;
/// Run and first block of a page or section.
type Place = (u64, u32);

/// A run. Where its stripes are may change.
pub struct Run {
    pub meta: RefCell<RunMeta>,
}

impl Run {
    pub fn new(meta: RunMeta) -> Rc<Self> {
        Rc::new(Self { meta: RefCell::new(meta) })
    }

    pub fn id(&self) -> u64 {
        self.meta.borrow().id
    }

    pub fn blocks(&self) -> u32 {
        self.meta.borrow().blocks
    }
}

pub struct Index {
    memtable: RefCell<Memtable>,
    frozen: RefCell<Option<Rc<Memtable>>>,
    runs: RefCell<Vec<Rc<Run>>>,
    cache: RefCell<Cache<Place, Page>>,
    sections: RefCell<Cache<Place, Rc<Section>>>,
    pages_read: Cell<u64>,
}

impl Index {
    pub fn new(runs: Vec<Rc<Run>>, cache_bytes_max: usize, sections_bytes_max: usize) -> Self {
        Self {
            memtable: RefCell::default(),
            frozen: RefCell::default(),
            runs: RefCell::new(runs),
            cache: RefCell::new(Cache::new(cache_bytes_max)),
            sections: RefCell::new(Cache::new(sections_bytes_max)),
            pages_read: Cell::new(0),
        }
    }

    pub fn insert(&self, key: Bytes, value: Option<Bytes>) {
        self.memtable.borrow_mut().insert(key, value);
    }

    pub fn memtable_bytes(&self) -> usize {
        self.memtable.borrow().bytes()
    }

    /// What came in since a memtable was closed would be too much beside it, or by itself.
    pub fn is_full(&self, bytes_max: usize) -> bool {
        let bytes = self.memtable_bytes();
        bytes > 2 * bytes_max || (bytes > bytes_max && self.frozen.borrow().is_some())
    }

    pub fn pages_read(&self) -> u64 {
        self.pages_read.get()
    }

    /// What it holds in memory: memtables, cached sections and pages.
    pub fn resident_bytes(&self) -> usize {
        let frozen = self.frozen.borrow().as_ref().map_or(0, |frozen| frozen.bytes());
        self.memtable.borrow().bytes() + frozen + self.sections.borrow().bytes() + self.cache.borrow().bytes()
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

    pub fn runs_len(&self) -> usize {
        self.runs.borrow().len()
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

    /// Section number `at`; `None` behind the last.
    async fn section(&self, run: &Run, at: usize, stripes: &Stripes) -> Result<Option<Rc<Section>>, BucketError> {
        let Some((block, blocks, bytes)) =
            run.meta.borrow().sections.get(at).map(|place| (place.block, place.blocks(), place.bytes as usize))
        else {
            return Ok(None);
        };
        let key = (run.id(), block);
        if let Some(section) = self.sections.borrow_mut().get(&key) {
            return Ok(Some(Rc::clone(section)));
        }
        let data = stripes.read_run(&run.meta, block, blocks).await?;
        let section: Option<Section> = data.get(..bytes).and_then(|data| weft_wire::decode(data).ok());
        let section = section.ok_or_else(|| BucketError::Corrupt(format!("section {at} of run {}", run.id())))?;
        let section = Rc::new(section);
        self.sections.borrow_mut().insert(key, Rc::clone(&section), section.bytes());
        Ok(Some(section))
    }

    async fn page(&self, run: &Run, section: &Section, page: usize, stripes: &Stripes) -> Result<Page, BucketError> {
        let Some(place) = section.pages.get(page) else {
            return Err(BucketError::Corrupt(format!("a section of run {} has no page {page}", run.id())));
        };
        let key = (run.id(), place.block);
        if let Some(page) = self.cache.borrow_mut().get(&key) {
            return Ok(page.clone());
        }
        let data = stripes.read_run(&run.meta, place.block, place.blocks).await?;
        self.pages_read.set(self.pages_read.get() + 1);
        let page = Page::new(data);
        self.cache.borrow_mut().insert(key, page.clone(), page.bytes());
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
            let at = run.meta.borrow().section_for(key);
            let Some(at) = at else { continue };
            let Some(section) = self.section(&run, at, stripes).await? else { continue };
            if !section.may_hold(key) {
                continue;
            }
            let Some(page) = section.page_for(key) else { continue };
            if let Some(found) = self.page(&run, &section, page, stripes).await?.get(key) {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The first `limit` entries with keys in [`from`, `to`), fewer only if there are no more; in front of them, not
    /// counted, the last one in [`floor`, `from`). All as of the moment of the call.
    pub async fn scan(
        &self,
        floor: &[u8],
        from: &[u8],
        to: &[u8],
        limit: usize,
        stripes: &Stripes,
    ) -> Result<Vec<(Bytes, Bytes)>, BucketError> {
        let runs = self.runs();
        let mut behind = (floor < from).then(|| Behind::new(floor, from));
        let memory = {
            let memtable = self.memtable.borrow();
            let frozen = self.frozen.borrow();
            if let Some(behind) = &mut behind {
                behind.look(memtable.range(floor, from).rev().map(|(key, value)| (key.clone(), value.clone())));
                if let Some(frozen) = &*frozen {
                    behind.look(frozen.range(floor, from).rev().map(|(key, value)| (key.clone(), value.clone())));
                }
            }
            gather(&memtable, frozen.as_deref(), from, to, limit)
        };
        let mut out = Vec::new();
        if let Some(mut behind) = behind {
            for run in &runs {
                behind.look_in(self, run, stripes).await?;
            }
            out.extend(behind.last());
        }
        let (entries, end) = memory;
        let mut cursors = Vec::with_capacity(runs.len());
        for run in runs {
            let cursor = Cursor::seek(self, run, from, stripes).await?;
            if cursor.peek().is_some_and(|(key, _)| *key < end) {
                cursors.push(cursor);
            }
        }
        let limit = limit.saturating_add(out.len());
        let mut memory = entries.into_iter().peekable();
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
            let mut found = memory.next_if(|(key, _)| *key == lowest).map(|(_, value)| value);
            let from_memory = found.is_some();
            for cursor in &mut cursors {
                if cursor.peek().is_some_and(|(key, _)| *key == lowest) {
                    let (_, value) = cursor.take(self, stripes).await?;
                    // Copied, as the key is below: what is small must not keep its page in memory.
                    found.get_or_insert_with(|| value.map(|value| Bytes::copy_from_slice(&value)));
                }
            }
            if let Some(Some(value)) = found {
                out.push((if from_memory { lowest } else { Bytes::copy_from_slice(&lowest) }, value));
            }
        }
        Ok(out)
    }
}

/// What is in memory of [`from`, `to`), up to the key at which there are `limit` values for sure, and where that ends.
fn gather(
    memtable: &Memtable,
    frozen: Option<&Memtable>,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> (Vec<(Bytes, Found)>, Bytes) {
    let mut entries = Vec::new();
    let mut fresh = memtable.range(from, to).peekable();
    let mut old = frozen.into_iter().flat_map(|frozen| frozen.range(from, to)).peekable();
    let mut live = 0;
    while live < limit {
        let order = match (fresh.peek(), old.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let next = match order {
            Ordering::Less => fresh.next(),
            Ordering::Greater => old.next(),
            Ordering::Equal => {
                old.next();
                fresh.next()
            }
        };
        let Some((key, value)) = next else { break };
        live += usize::from(value.is_some());
        entries.push((key.clone(), value.clone()));
        if live == limit {
            let mut after = Vec::with_capacity(key.len() + 1);
            after.extend_from_slice(key);
            after.push(0);
            return (entries, after.into());
        }
    }
    (entries, Bytes::copy_from_slice(to))
}

/// Looks for the last entry below a key: in each source, the newest first, back to the first value that no newer
/// source has an opinion on. What a later source says below that doesn't matter any more.
struct Behind<'a> {
    floor: &'a [u8],
    below: &'a [u8],
    /// What newer sources say of keys above `value`.
    known: BTreeMap<Bytes, Found>,
    value: Option<(Bytes, Bytes)>,
}

impl<'a> Behind<'a> {
    fn new(floor: &'a [u8], below: &'a [u8]) -> Self {
        Self { floor, below, known: BTreeMap::new(), value: None }
    }

    /// Takes in one entry of a source, which come in falling order. False: the rest of this source says nothing new.
    fn see(&mut self, key: Bytes, value: Found) -> bool {
        if key.as_ref() < self.floor || self.value.as_ref().is_some_and(|(last, _)| key <= last) {
            return false;
        }
        if self.known.contains_key(&key) {
            return true;
        }
        match value {
            Some(value) => {
                self.value = Some((key, value));
                false
            }
            None => {
                self.known.insert(key, None);
                true
            }
        }
    }

    fn look(&mut self, entries: impl Iterator<Item = (Bytes, Found)>) {
        for (key, value) in entries {
            if !self.see(key, value) {
                break;
            }
        }
    }

    async fn look_in(&mut self, index: &Index, run: &Run, stripes: &Stripes) -> Result<(), BucketError> {
        let mut sections = run.meta.borrow().sections_below(self.below);
        while sections > 0 {
            sections -= 1;
            let Some(section) = index.section(run, sections, stripes).await? else { continue };
            let mut pages = section.pages_below(self.below);
            while pages > 0 {
                pages -= 1;
                let page = index.page(run, &section, pages, stripes).await?;
                let mut at = page.lower_bound(self.below);
                while at > 0 {
                    at -= 1;
                    let Some((key, value)) = page.entry(at) else { continue };
                    let value = value.map(|value| Bytes::copy_from_slice(&value));
                    if !self.see(Bytes::copy_from_slice(&key), value) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn last(self) -> Option<(Bytes, Bytes)> {
        self.value
    }
}

/// Walks a run in key order.
pub struct Cursor {
    run: Rc<Run>,
    /// The section after the current one.
    next_section: usize,
    section: Rc<Section>,
    /// The page after the current one, in its section.
    next_page: usize,
    page: Option<Page>,
    /// The entry after the current one.
    next: usize,
    current: Option<(Bytes, Found)>,
}

impl Cursor {
    /// Stands at the first entry that isn't below `from`.
    pub async fn seek(index: &Index, run: Rc<Run>, from: &[u8], stripes: &Stripes) -> Result<Self, BucketError> {
        let section = Rc::default();
        let mut cursor = Self { run, next_section: 0, section, next_page: 0, page: None, next: 0, current: None };
        let first = {
            let meta = cursor.run.meta.borrow();
            (from <= meta.last_key.as_ref()).then(|| meta.section_for(from).unwrap_or(0))
        };
        let Some(first) = first else { return Ok(cursor) };
        if let Some(section) = index.section(&cursor.run, first, stripes).await? {
            let page = section.page_for(from).unwrap_or(0);
            cursor.page = Some(index.page(&cursor.run, &section, page, stripes).await?);
            cursor.next = cursor.page.as_ref().map_or(0, |page| page.lower_bound(from));
            (cursor.section, cursor.next_section, cursor.next_page) = (section, first + 1, page + 1);
            cursor.step(index, stripes).await?;
        }
        Ok(cursor)
    }

    async fn step(&mut self, index: &Index, stripes: &Stripes) -> Result<(), BucketError> {
        loop {
            self.current = self.page.as_ref().and_then(|page| page.entry(self.next));
            self.next += 1;
            if self.current.is_some() {
                return Ok(());
            }
            if self.next_page >= self.section.pages.len() {
                let Some(section) = index.section(&self.run, self.next_section, stripes).await? else { return Ok(()) };
                self.section = section;
                self.next_section += 1;
                self.next_page = 0;
            }
            self.page = Some(index.page(&self.run, &self.section, self.next_page, stripes).await?);
            self.next_page += 1;
            self.next = 0;
        }
    }

    pub fn peek(&self) -> Option<&(Bytes, Found)> {
        self.current.as_ref()
    }

    /// The entry that [`Cursor::peek`] showed: slices of its page.
    pub async fn take(&mut self, index: &Index, stripes: &Stripes) -> Result<(Bytes, Found), BucketError> {
        let entry = self.current.take().ok_or_else(|| BucketError::Corrupt("a cursor at its end".into()))?;
        self.step(index, stripes).await?;
        Ok(entry)
    }
}
