//! A run: index entries in key order, written once as full stripes. Pages of entries; after every so many of them, and
//! at the end, a section: each page's first key and a Bloom filter of their keys. The manifest says where sections are.
//!
//! So what must be in memory of a run is a few bytes for each section, and all else is read when it is needed: memory
//! doesn't grow with what is stored, nor does what is read before a bucket serves.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{StripeId, ZoneSetId};

/// A page grows to this, unless one entry alone is larger.
pub const PAGE_BYTES: usize = 4 * BLOCK_BYTES;
/// A section is about so many pages: small enough to be read for one key, large enough to be few.
const SECTION_PAGES: usize = 32;
const BLOOM_BITS_PER_KEY: usize = 10;
const BLOOM_HASHES: u32 = 7;
/// Length of a value that marks a deletion.
const DELETED: u32 = u32::MAX;
const ENTRY_HEAD_BYTES: usize = 6;

/// A stripe of a run or a manifest: its record lives in the manifest or root instead of the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexStripe {
    pub id: StripeId,
    pub zone_set: ZoneSetId,
    pub row: u32,
    pub rows: u32,
    pub data_blocks: u32,
    #[serde(with = "crate::stripe::packed")]
    pub checksums: Vec<u32>,
}

/// What a manifest says of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMeta {
    pub id: u64,
    /// Their data blocks one after another are the run's.
    pub stripes: Vec<IndexStripe>,
    /// In key order.
    pub sections: Vec<SectionPlace>,
    pub last_key: Bytes,
    pub blocks: u32,
}

impl RunMeta {
    /// The section that holds `key` if any does.
    pub fn section_for(&self, key: &[u8]) -> Option<usize> {
        self.sections.partition_point(|section| section.first_key.as_ref() <= key).checked_sub(1)
    }

    /// How many sections, from the first, may hold keys below `key`.
    pub fn sections_below(&self, key: &[u8]) -> usize {
        self.sections.partition_point(|section| section.first_key.as_ref() < key)
    }

    /// The stripes that hold these blocks of the run, each with its first block of them and how many it has.
    pub fn stripes_of(&self, block: u32, blocks: u32) -> Vec<(IndexStripe, u32, u32)> {
        let (start, end) = (u64::from(block), u64::from(block) + u64::from(blocks));
        let mut found = Vec::with_capacity(1);
        let mut at = 0;
        for stripe in &self.stripes {
            let next = at + u64::from(stripe.data_blocks);
            if next > start {
                let from = start.max(at);
                found.push((stripe.clone(), (from - at) as u32, (end.min(next) - from) as u32));
            }
            at = next;
            if at >= end {
                break;
            }
        }
        found
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionPlace {
    pub first_key: Bytes,
    /// In blocks of the run.
    pub block: u32,
    pub bytes: u32,
}

impl SectionPlace {
    pub fn blocks(&self) -> u32 {
        self.bytes.div_ceil(BLOCK_BYTES as u32)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    pub pages: Vec<PagePlace>,
    bloom: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagePlace {
    pub first_key: Bytes,
    pub block: u32,
    pub blocks: u32,
}

impl Section {
    /// The page that holds `key` if any does.
    pub fn page_for(&self, key: &[u8]) -> Option<usize> {
        let after = self.pages.partition_point(|page| page.first_key.as_ref() <= key);
        after.checked_sub(1)
    }

    /// How many pages, from the first, may hold keys below `key`.
    pub fn pages_below(&self, key: &[u8]) -> usize {
        self.pages.partition_point(|page| page.first_key.as_ref() < key)
    }

    /// False: the pages surely lack the key.
    pub fn may_hold(&self, key: &[u8]) -> bool {
        let bits = self.bloom.len() as u64 * 8;
        bits == 0 || bloom_bits(key_hash(key), bits).all(|bit| self.bloom[(bit / 8) as usize] & (1 << (bit % 8)) != 0)
    }

    /// What it takes of the memory budget, about.
    pub fn bytes(&self) -> usize {
        self.bloom.len() + self.pages.iter().map(|page| page.first_key.len() + 48).sum::<usize>()
    }
}

fn key_hash(key: &[u8]) -> u64 {
    // FNV-1a with a final mix: the filter needs spread, not secrecy.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in key {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

fn bloom_bits(hash: u64, bits: u64) -> impl Iterator<Item = u64> {
    let step = (hash >> 17) | 1;
    (0..u64::from(BLOOM_HASHES)).map(move |i| hash.wrapping_add(i.wrapping_mul(step)) % bits)
}

/// Entries of one page: one after another, then padding, at the end where each begins and how many there are.
#[derive(Clone)]
pub struct Page {
    bytes: Bytes,
    entries: usize,
}

/// Each entry costs so much at the page's end, and the number of entries as much again.
const OFFSET_BYTES: usize = 2;

impl Page {
    pub fn new(bytes: Bytes) -> Self {
        let entries = usize::from(u16_at(&bytes, bytes.len().saturating_sub(OFFSET_BYTES)).unwrap_or(0));
        // A page that contradicts itself has no entries.
        let entries = if (entries + 1) * OFFSET_BYTES <= bytes.len() { entries } else { 0 };
        Self { bytes, entries }
    }

    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn place(&self, at: usize) -> Option<(Range<usize>, Option<Range<usize>>)> {
        if at >= self.entries {
            return None;
        }
        let table = self.bytes.len() - (self.entries + 1) * OFFSET_BYTES;
        let start = usize::from(u16_at(&self.bytes, table + at * OFFSET_BYTES)?);
        let head = self.bytes.get(start..start + ENTRY_HEAD_BYTES)?;
        let key_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let value_len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
        let key_start = start + ENTRY_HEAD_BYTES;
        let key_end = key_start + key_len;
        let deleted = value_len == DELETED;
        let value_end = key_end + if deleted { 0 } else { value_len as usize };
        (value_end <= table).then(|| (key_start..key_end, (!deleted).then_some(key_end..value_end)))
    }

    /// Key and value number `at`, as slices of the page.
    pub fn entry(&self, at: usize) -> Option<(Bytes, Option<Bytes>)> {
        let (key, value) = self.place(at)?;
        Some((self.bytes.slice(key), value.map(|value| self.bytes.slice(value))))
    }

    fn key(&self, at: usize) -> Option<&[u8]> {
        self.bytes.get(self.place(at)?.0)
    }

    /// The number of the first entry whose key isn't below `key`.
    pub fn lower_bound(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = (low + high) / 2;
            if self.key(middle).is_some_and(|found| found < key) { low = middle + 1 } else { high = middle }
        }
        low
    }

    pub fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let (found, value) = self.place(self.lower_bound(key))?;
        // Values are copied out: a small value must not keep its page in memory.
        (self.bytes.get(found)? == key)
            .then(|| value.and_then(|value| self.bytes.get(value)).map(Bytes::copy_from_slice))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Builds a run. Sans-IO: full stripes come out of [`RunBuilder::take_full`].
#[derive(Default)]
pub struct RunBuilder {
    out: BytesMut,
    page: BytesMut,
    /// Where the page's entries begin.
    offsets: Vec<u16>,
    page_first: Bytes,
    last_key: Bytes,
    pages: Vec<PagePlace>,
    /// Hashes of the keys of these pages.
    hashes: Vec<u64>,
    sections: Vec<SectionPlace>,
    blocks: u32,
}

/// What [`RunBuilder::finish`] leaves to be written, and what the manifest needs to know.
pub struct FinishedRun {
    /// Whole blocks; may be more than one stripe.
    pub rest: Bytes,
    pub sections: Vec<SectionPlace>,
    pub last_key: Bytes,
    pub blocks: u32,
}

impl RunBuilder {
    /// Adds an entry. Keys must rise, and be between 1 and 65,535 bytes long.
    pub fn push(&mut self, key: &Bytes, value: Option<&Bytes>) {
        assert!(!key.is_empty() && key.len() <= usize::from(u16::MAX), "a key of {} bytes", key.len());
        debug_assert!(*key > self.last_key, "keys rise");
        let entry_bytes = ENTRY_HEAD_BYTES + key.len() + value.map_or(0, Bytes::len);
        let table_bytes = (self.offsets.len() + 2) * OFFSET_BYTES;
        if !self.page.is_empty() && self.page.len() + entry_bytes + table_bytes > PAGE_BYTES {
            self.end_page();
            if self.pages.len() >= SECTION_PAGES {
                self.end_section();
            }
        }
        if self.page.is_empty() {
            self.page_first = key.clone();
        }
        // An entry never begins beyond a page's normal size.
        self.offsets.push(self.page.len() as u16);
        self.page.put_u16_le(key.len() as u16);
        self.page.put_u32_le(value.map_or(DELETED, |value| value.len() as u32));
        self.page.put_slice(key);
        if let Some(value) = value {
            self.page.put_slice(value);
        }
        self.hashes.push(key_hash(key));
        self.last_key = key.clone();
    }

    fn end_page(&mut self) {
        let table_bytes = (self.offsets.len() + 1) * OFFSET_BYTES;
        let blocks = (self.page.len() + table_bytes).div_ceil(BLOCK_BYTES);
        self.page.resize(blocks * BLOCK_BYTES - table_bytes, 0);
        self.offsets.iter().for_each(|offset| self.page.put_u16_le(*offset));
        self.page.put_u16_le(self.offsets.len() as u16);
        self.offsets.clear();
        // Keys come from pages or the memtable; a copy keeps neither alive.
        let first_key = Bytes::copy_from_slice(&self.page_first);
        self.pages.push(PagePlace { first_key, block: self.blocks, blocks: blocks as u32 });
        self.blocks += blocks as u32;
        self.out.put_slice(&self.page);
        self.page.clear();
    }

    fn end_section(&mut self) {
        let Some(first_key) = self.pages.first().map(|page| page.first_key.clone()) else { return };
        let bits = (self.hashes.len() * BLOOM_BITS_PER_KEY).next_multiple_of(8).max(64);
        let mut bloom = vec![0; bits / 8];
        for hash in self.hashes.drain(..) {
            for bit in bloom_bits(hash, bits as u64) {
                bloom[(bit / 8) as usize] |= 1 << (bit % 8);
            }
        }
        let encoded = weft_wire::encode(&Section { pages: std::mem::take(&mut self.pages), bloom });
        let place = SectionPlace { first_key, block: self.blocks, bytes: encoded.len() as u32 };
        self.out.put_slice(&encoded);
        let padded = self.out.len().next_multiple_of(BLOCK_BYTES);
        self.out.resize(padded, 0);
        self.blocks += place.blocks();
        self.sections.push(place);
    }

    /// A stripe of so many blocks, if there are as many.
    pub fn take_full(&mut self, stripe_blocks: u32) -> Option<Bytes> {
        let stripe_bytes = stripe_blocks as usize * BLOCK_BYTES;
        (self.out.len() >= stripe_bytes).then(|| self.out.split_to(stripe_bytes).freeze())
    }

    pub fn finish(mut self) -> FinishedRun {
        if !self.page.is_empty() {
            self.end_page();
        }
        self.end_section();
        FinishedRun {
            rest: self.out.freeze(),
            sections: self.sections,
            last_key: Bytes::copy_from_slice(&self.last_key),
            blocks: self.blocks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(finished: &FinishedRun) -> RunMeta {
        let (sections, last_key) = (finished.sections.clone(), finished.last_key.clone());
        RunMeta { id: 1, stripes: Vec::new(), sections, last_key, blocks: finished.blocks }
    }

    fn section(stream: &Bytes, place: &SectionPlace) -> Section {
        let from = place.block as usize * BLOCK_BYTES;
        weft_wire::decode(&stream[from..from + place.bytes as usize]).expect("section")
    }

    #[test]
    fn entries_come_back_by_page() {
        let mut builder = RunBuilder::default();
        let entry = |i: u32| (Bytes::from(format!("key{i:06}")), Bytes::from(vec![i as u8; (i % 300) as usize]));
        for i in 0..5000 {
            let (key, value) = entry(i);
            builder.push(&key, (i % 7 != 0).then_some(&value));
        }
        let mut stream = BytesMut::new();
        while let Some(full) = builder.take_full(256) {
            assert_eq!(full.len(), 256 * BLOCK_BYTES);
            stream.put_slice(&full);
        }
        let finished = builder.finish();
        stream.put_slice(&finished.rest);
        let stream = stream.freeze();
        assert_eq!(stream.len(), finished.blocks as usize * BLOCK_BYTES);
        let meta = meta(&finished);
        assert!(meta.sections.len() > 1);
        let sections: Vec<Section> = meta.sections.iter().map(|place| section(&stream, place)).collect();
        let mut false_positives = 0;
        for i in 0..5000 {
            let (key, value) = entry(i);
            let section = &sections[meta.section_for(&key).expect("section")];
            assert!(section.may_hold(&key));
            let place = &section.pages[section.page_for(&key).expect("page")];
            let from = place.block as usize * BLOCK_BYTES;
            let page = Page::new(stream.slice(from..from + place.blocks as usize * BLOCK_BYTES));
            assert_eq!(page.get(&key), Some((i % 7 != 0).then_some(value)));
            assert_eq!(page.get(format!("key{i:06}+").as_bytes()), None);
            assert_eq!(page.entry(page.lower_bound(&key)).expect("entry").0, key);
            false_positives += u32::from(section.may_hold(format!("other{i}").as_bytes()));
        }
        assert!(false_positives < 250, "{false_positives} of 5000");
        assert_eq!((meta.section_for(b"a"), meta.sections_below(b"key000000")), (None, 0));
        assert_eq!(meta.sections_below(b"z"), meta.sections.len());
    }

    #[test]
    fn an_entry_larger_than_a_page_has_one_of_its_own() {
        let mut builder = RunBuilder::default();
        let (a, b, c) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"), Bytes::from_static(b"c"));
        let large = Bytes::from(vec![7; 3 * PAGE_BYTES]);
        builder.push(&a, Some(&a));
        builder.push(&b, Some(&large));
        builder.push(&c, None);
        let finished = builder.finish();
        let [place] = finished.sections.as_slice() else { panic!("{:?}", finished.sections) };
        let section = section(&finished.rest, place);
        assert_eq!(section.pages.len(), 3);
        let place = &section.pages[section.page_for(&b).expect("page")];
        let from = place.block as usize * BLOCK_BYTES;
        let page = Page::new(finished.rest.slice(from..from + place.blocks as usize * BLOCK_BYTES));
        assert_eq!(page.get(&b), Some(Some(large)));
        assert_eq!(section.pages_below(&b), 1);
    }

    #[test]
    fn damaged_pages_have_no_entries() {
        let mut bytes = vec![0xffu8; 64];
        assert_eq!(Page::new(Bytes::from(bytes.clone())).get(b"k"), None);
        bytes.truncate(3);
        assert_eq!(Page::new(Bytes::from(bytes.clone())).get(b"k"), None);
        bytes.truncate(1);
        assert_eq!(Page::new(Bytes::from(bytes)).lower_bound(b"k"), 0);
        // Says that it has two entries, whose offsets lead nowhere.
        let mut bytes = vec![0xffu8; 64];
        bytes[62..].copy_from_slice(&2u16.to_le_bytes());
        let page = Page::new(Bytes::from(bytes));
        assert_eq!((page.entry(0), page.entry(1), page.lower_bound(b"k")), (None, None, 0));
    }
}
