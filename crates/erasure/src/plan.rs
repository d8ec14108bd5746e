//! Decode plans: which shards to read, and what to multiply them with.

use std::sync::{Arc, Mutex};

use crate::field::multiply;
use crate::kernel::Kernel;
use crate::matrix::{DATA_MAX, PARITY, PARITY_MAX, SHARDS_MAX, inverse};
use crate::product::Product;

/// More shards are lost than the code has parity: the wanted ones cannot be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{lost} shards of a stripe are lost, but {data}+{parity} survives the loss of {parity} only")]
pub struct TooManyLost {
    pub lost: usize,
    pub data: usize,
    pub parity: usize,
}

/// How to compute some shards of a stripe from others. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plan {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sources: Vec<usize>,
    wanted: Vec<usize>,
    product: Product,
}

impl Plan {
    /// The shards that [`Plan::apply`] needs, in its order: at most D, ascending.
    pub fn sources(&self) -> &[usize] {
        &self.inner.sources
    }

    /// The shards that [`Plan::apply`] computes, in its order.
    pub fn wanted(&self) -> &[usize] {
        &self.inner.wanted
    }

    /// Computes the wanted shards. What `out` held before does not matter.
    ///
    /// # Panics
    /// When there is not one slice for each of [`Plan::sources`] and [`Plan::wanted`], or their lengths differ.
    pub fn apply(&self, sources: &[&[u8]], out: &mut [&mut [u8]]) {
        self.inner.product.apply(sources, out);
    }

    pub(crate) fn new(kernel: Kernel, data: usize, present: &[bool], wanted: &[usize]) -> Result<Self, TooManyLost> {
        let parity = present.len() - data;
        let lost = present.iter().filter(|&&present| !present).count();
        // The first D present shards: as much data as there is, then parity from 0 up, because parity 0 is the cheapest.
        let mut sources: Vec<usize> = (0..present.len()).filter(|&shard| present[shard]).take(data).collect();
        if sources.len() < data {
            return Err(TooManyLost { lost, data, parity });
        }
        let data_rows = data_in_terms_of(&sources, data);
        let mut rows: Vec<[u8; DATA_MAX]> =
            wanted.iter().map(|&shard| shard_in_terms_of_sources(shard, data, &data_rows)).collect();

        // A wanted shard that is present, say, does not need all sources.
        let needed: Vec<usize> = (0..data).filter(|&source| rows.iter().any(|row| row[source] != 0)).collect();
        for row in &mut rows {
            for (to, &from) in needed.iter().enumerate() {
                row[to] = row[from];
            }
        }
        sources = needed.iter().map(|&source| sources[source]).collect();
        let rows: Vec<&[u8]> = rows.iter().map(|row| &row[..sources.len()]).collect();
        let product = Product::new(kernel, &rows);
        Ok(Self { inner: Arc::new(Inner { sources, wanted: wanted.to_vec(), product }) })
    }
}

/// Each data shard as a sum of multiples of the D sources.
fn data_in_terms_of(sources: &[usize], data: usize) -> [[u8; DATA_MAX]; DATA_MAX] {
    let mut rows = [[0; DATA_MAX]; DATA_MAX];
    let lost: Vec<usize> = (0..data).filter(|shard| !sources.contains(shard)).collect();
    let present = data - lost.len();
    for (source, &shard) in sources[..present].iter().enumerate() {
        rows[shard][source] = 1;
    }

    // Parity r is the sum of PARITY[r][j]·data j. With what the present data contributes moved to the other side,
    // as many equations remain as there are lost data shards.
    let parities: Vec<usize> = sources[present..].iter().map(|&shard| shard - data).collect();
    let mut equations = [[0; PARITY_MAX]; PARITY_MAX];
    for (equation, &parity) in equations.iter_mut().zip(&parities) {
        for (entry, &shard) in equation.iter_mut().zip(&lost) {
            *entry = PARITY[parity][shard];
        }
    }
    let solution = inverse(&equations, lost.len()).expect("every square submatrix of the parity matrix is invertible");
    for (unknown, &shard) in lost.iter().enumerate() {
        for (equation, &parity) in parities.iter().enumerate() {
            let factor = solution[unknown][equation];
            rows[shard][present + equation] = factor;
            for (source, &other) in sources[..present].iter().enumerate() {
                rows[shard][source] ^= multiply(factor, PARITY[parity][other]);
            }
        }
    }
    rows
}

fn shard_in_terms_of_sources(shard: usize, data: usize, data_rows: &[[u8; DATA_MAX]; DATA_MAX]) -> [u8; DATA_MAX] {
    if shard < data {
        return data_rows[shard];
    }
    let mut row = [0; DATA_MAX];
    for (data_row, &factor) in data_rows[..data].iter().zip(&PARITY[shard - data]) {
        for (entry, &term) in row.iter_mut().zip(data_row) {
            *entry ^= multiply(factor, term);
        }
    }
    row
}

/// Plans a code keeps, by the hash of what they were asked for: a stripe loses the same shards as its neighbours.
const PLANS_CACHED_MAX: usize = 256;

/// A direct-mapped cache: a plan takes a microsecond or two to make, so losing one to another is no matter.
#[derive(Debug)]
pub(crate) struct PlanCache {
    slots: Mutex<Vec<Option<(Key, Plan)>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    present: u32,
    wanted: [u8; SHARDS_MAX],
}

impl Key {
    /// `None` for a request that names shards more than once and no longer fits.
    fn new(present: &[bool], wanted: &[usize]) -> Option<Self> {
        let mut key = Self { present: 0, wanted: [u8::MAX; SHARDS_MAX] };
        for (shard, &present) in present.iter().enumerate() {
            key.present |= u32::from(present) << shard;
        }
        for (place, &shard) in wanted.iter().enumerate() {
            *key.wanted.get_mut(place)? = u8::try_from(shard).ok()?;
        }
        Some(key)
    }

    fn slot(&self) -> usize {
        let mut hash = u64::from(self.present).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for &shard in &self.wanted {
            hash = (hash ^ u64::from(shard)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        ((hash ^ (hash >> 32)) % PLANS_CACHED_MAX as u64) as usize
    }
}

impl Default for PlanCache {
    fn default() -> Self {
        Self { slots: Mutex::new(Vec::new()) }
    }
}

impl PlanCache {
    pub(crate) fn get(
        &self,
        present: &[bool],
        wanted: &[usize],
        make: impl FnOnce() -> Result<Plan, TooManyLost>,
    ) -> Result<Plan, TooManyLost> {
        assert!(wanted.iter().all(|&shard| shard < present.len()), "a wanted shard is one of the D+P");
        let Some(key) = Key::new(present, wanted) else { return make() };
        // Another core that holds the lock is no reason to wait: making the plan takes about as long.
        let Ok(mut slots) = self.slots.try_lock() else { return make() };
        if slots.is_empty() {
            slots.resize(PLANS_CACHED_MAX, None);
        }
        let slot = &mut slots[key.slot()];
        if let Some((held, plan)) = slot
            && *held == key
        {
            return Ok(plan.clone());
        }
        let plan = make()?;
        *slot = Some((key, plan.clone()));
        Ok(plan)
    }
}
