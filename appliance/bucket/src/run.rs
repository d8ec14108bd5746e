//! A run: index entries in key order, written once as full stripes. Pages of entries, then a footer with each page's
//! first key and a Bloom filter of all keys.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{StripeId, ZoneSetId};

/// A page grows to this, unless one entry alone is larger.
pub const PAGE_BYTES: usize = 4 * BLOCK_BYTES;
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
    /// All but the last are full.
    pub stripes: Vec<IndexStripe>,
    /// Where the footer begins, in blocks of the run.
    pub footer_block: u32,
    pub footer_bytes: u32,
    pub entries: u64,
    pub blocks: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footer {
    pub pages: Vec<PagePlace>,
    pub last_key: Bytes,
    bloom: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagePlace {
    pub first_key: Bytes,
    pub block: u32,
    pub blocks: u32,
}

impl Footer {
    /// The page that holds `key` if any does.
    pub fn page_for(&self, key: &[u8]) -> Option<usize> {
        let after = self.pages.partition_point(|page| page.first_key.as_ref() <= key);
        after.checked_sub(1)
    }

    /// False: the run surely lacks the key.
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

/// Entries of one page.
#[derive(Clone)]
pub struct Page(Bytes);

impl Page {
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Keys and values in order; stops at the padding.
    pub fn entries(&self) -> impl Iterator<Item = (Bytes, Option<Bytes>)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let head = self.0.get(at..at + ENTRY_HEAD_BYTES)?;
            let key_len = usize::from(u16::from_le_bytes([head[0], head[1]]));
            let value_len = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
            if key_len == 0 {
                return None;
            }
            let key_end = at + ENTRY_HEAD_BYTES + key_len;
            let value_end = key_end + if value_len == DELETED { 0 } else { value_len as usize };
            if value_end > self.0.len() {
                return None;
            }
            let key = self.0.slice(at + ENTRY_HEAD_BYTES..key_end);
            let value = (value_len != DELETED).then(|| self.0.slice(key_end..value_end));
            at = value_end;
            Some((key, value))
        })
    }

    pub fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        // Values are copied out: a small value must not keep its page in memory.
        self.entries()
            .find(|(found, _)| found.as_ref() >= key)
            .filter(|(found, _)| found.as_ref() == key)
            .map(|(_, value)| value.map(|value| Bytes::copy_from_slice(&value)))
    }
}

/// Builds a run. Sans-IO: full stripes come out of [`RunBuilder::take_full`].
pub struct RunBuilder {
    stripe_bytes: usize,
    out: BytesMut,
    page: BytesMut,
    page_first: Bytes,
    last_key: Bytes,
    pages: Vec<PagePlace>,
    hashes: Vec<u64>,
    blocks: u32,
    entries: u64,
}

/// What [`RunBuilder::finish`] leaves to be written, and what the manifest needs to know.
pub struct FinishedRun {
    /// Whole blocks; may be more than one stripe.
    pub rest: Bytes,
    pub footer: Footer,
    pub footer_block: u32,
    pub footer_bytes: u32,
    pub blocks: u32,
    pub entries: u64,
}

impl RunBuilder {
    pub fn new(stripe_blocks: u32) -> Self {
        Self {
            stripe_bytes: stripe_blocks as usize * BLOCK_BYTES,
            out: BytesMut::new(),
            page: BytesMut::new(),
            page_first: Bytes::new(),
            last_key: Bytes::new(),
            pages: Vec::new(),
            hashes: Vec::new(),
            blocks: 0,
            entries: 0,
        }
    }

    /// Adds an entry. Keys must rise, and be between 1 and 65,535 bytes long.
    pub fn push(&mut self, key: &Bytes, value: Option<&Bytes>) {
        assert!(!key.is_empty() && key.len() <= usize::from(u16::MAX), "a key of {} bytes", key.len());
        debug_assert!(*key > self.last_key, "keys rise");
        let entry_bytes = ENTRY_HEAD_BYTES + key.len() + value.map_or(0, Bytes::len);
        if !self.page.is_empty() && self.page.len() + entry_bytes > PAGE_BYTES {
            self.end_page();
        }
        if self.page.is_empty() {
            self.page_first = key.clone();
        }
        self.page.put_u16_le(key.len() as u16);
        self.page.put_u32_le(value.map_or(DELETED, |value| value.len() as u32));
        self.page.put_slice(key);
        if let Some(value) = value {
            self.page.put_slice(value);
        }
        self.hashes.push(key_hash(key));
        self.last_key = key.clone();
        self.entries += 1;
    }

    fn end_page(&mut self) {
        let blocks = self.page.len().div_ceil(BLOCK_BYTES);
        self.page.resize(blocks * BLOCK_BYTES, 0);
        // Keys come from pages or the memtable; a copy keeps neither alive.
        let first_key = Bytes::copy_from_slice(&self.page_first);
        self.pages.push(PagePlace { first_key, block: self.blocks, blocks: blocks as u32 });
        self.blocks += blocks as u32;
        self.out.put_slice(&self.page);
        self.page.clear();
    }

    /// A whole stripe's worth of blocks, if there is one.
    pub fn take_full(&mut self) -> Option<Bytes> {
        (self.out.len() >= self.stripe_bytes).then(|| self.out.split_to(self.stripe_bytes).freeze())
    }

    pub fn finish(mut self) -> FinishedRun {
        if !self.page.is_empty() {
            self.end_page();
        }
        let bits = (self.hashes.len() * BLOOM_BITS_PER_KEY).next_multiple_of(8).max(64) as u64;
        let mut bloom = vec![0u8; (bits / 8) as usize];
        for hash in &self.hashes {
            for bit in bloom_bits(*hash, bits) {
                bloom[(bit / 8) as usize] |= 1 << (bit % 8);
            }
        }
        let footer = Footer { pages: self.pages, last_key: Bytes::copy_from_slice(&self.last_key), bloom };
        let encoded = weft_wire::encode(&footer);
        let footer_block = self.blocks;
        self.out.put_slice(&encoded);
        let padded = self.out.len().next_multiple_of(BLOCK_BYTES);
        self.out.resize(padded, 0);
        let blocks = footer_block + encoded.len().div_ceil(BLOCK_BYTES) as u32;
        FinishedRun {
            rest: self.out.freeze(),
            footer,
            footer_block,
            footer_bytes: encoded.len() as u32,
            blocks,
            entries: self.entries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_by_page() {
        let mut builder = RunBuilder::new(256);
        let entry = |i: u32| (Bytes::from(format!("key{i:06}")), Bytes::from(vec![i as u8; (i % 300) as usize]));
        for i in 0..5000 {
            let (key, value) = entry(i);
            builder.push(&key, (i % 7 != 0).then_some(&value));
        }
        let mut stream = BytesMut::new();
        while let Some(full) = builder.take_full() {
            assert_eq!(full.len(), 256 * BLOCK_BYTES);
            stream.put_slice(&full);
        }
        let finished = builder.finish();
        stream.put_slice(&finished.rest);
        let stream = stream.freeze();
        assert_eq!(stream.len(), finished.blocks as usize * BLOCK_BYTES);
        let footer_at = finished.footer_block as usize * BLOCK_BYTES;
        let footer: Footer =
            weft_wire::decode(&stream[footer_at..footer_at + finished.footer_bytes as usize]).expect("footer");
        assert_eq!(footer, finished.footer);
        let mut false_positives = 0;
        for i in 0..5000 {
            let (key, value) = entry(i);
            assert!(footer.may_hold(&key));
            let place = &footer.pages[footer.page_for(&key).expect("page")];
            let from = place.block as usize * BLOCK_BYTES;
            let page = Page::new(stream.slice(from..from + place.blocks as usize * BLOCK_BYTES));
            assert_eq!(page.get(&key), Some((i % 7 != 0).then_some(value)));
            false_positives += u32::from(footer.may_hold(format!("other{i}").as_bytes()));
        }
        assert!(false_positives < 250, "{false_positives} of 5000");
        assert_eq!(footer.page_for(b"a"), None);
    }

    #[test]
    fn damaged_pages_end_early() {
        let mut bytes = vec![0xffu8; 64];
        assert_eq!(Page::new(Bytes::from(bytes.clone())).entries().count(), 0);
        bytes.truncate(3);
        assert_eq!(Page::new(Bytes::from(bytes)).entries().count(), 0);
    }
}
