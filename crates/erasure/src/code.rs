//! A scheme D+P: what callers hold to encode, and to ask for decode plans.

use std::sync::OnceLock;

use weft_wire::map::Protection;

use crate::kernel::Kernel;
use crate::matrix::{DATA_MAX, DATA_MIN, PARITY, PARITY_MAX};
use crate::plan::{Plan, PlanCache, TooManyLost};
use crate::product::Product;

/// There is no such scheme: D is 3 to 16, P is 2 or 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no erasure code {data}+{parity}: D must be 3 to {DATA_MAX}, P must be 2 or {PARITY_MAX}")]
pub struct SchemeError {
    pub data: usize,
    pub parity: usize,
}

/// The code of one scheme.
#[derive(Debug)]
pub struct Code {
    data: usize,
    parity: usize,
    kernel: Kernel,
    encoder: Product,
    plans: PlanCache,
}

impl Code {
    /// The code D+P with the machine's best kernel. [`Code::get`] shares one per scheme, with its cache of plans.
    pub fn new(data: usize, parity: usize) -> Result<Self, SchemeError> {
        Self::with_kernel(data, parity, Kernel::best())
    }

    /// The code D+P with the given kernel, for tests and benches.
    ///
    /// # Panics
    /// When the machine lacks the kernel's instructions ([`Kernel::is_supported`]).
    pub fn with_kernel(data: usize, parity: usize, kernel: Kernel) -> Result<Self, SchemeError> {
        if !(DATA_MIN..=DATA_MAX).contains(&data) || !(parity == 2 || parity == PARITY_MAX) {
            return Err(SchemeError { data, parity });
        }
        let rows: Vec<&[u8]> = PARITY[..parity].iter().map(|row| &row[..data]).collect();
        Ok(Self { data, parity, kernel, encoder: Product::new(kernel, &rows), plans: PlanCache::default() })
    }

    /// The process's code for this protection.
    pub fn get(protection: Protection) -> Result<&'static Self, SchemeError> {
        static CODES: [[OnceLock<Result<Code, SchemeError>>; PARITY_MAX + 1]; DATA_MAX + 1] =
            [const { [const { OnceLock::new() }; PARITY_MAX + 1] }; DATA_MAX + 1];
        let (data, parity) = (usize::from(protection.data), usize::from(protection.parity));
        let slot = CODES.get(data).and_then(|row| row.get(parity)).ok_or(SchemeError { data, parity })?;
        slot.get_or_init(|| Self::new(data, parity)).as_ref().map_err(|&error| error)
    }

    /// D.
    pub fn data(&self) -> usize {
        self.data
    }

    /// P.
    pub fn parity(&self) -> usize {
        self.parity
    }

    /// D+P.
    pub fn shards(&self) -> usize {
        self.data + self.parity
    }

    /// Computes all parity shards. What `parity` held before does not matter.
    ///
    /// # Panics
    /// When there are not D data and P parity shards, or their lengths differ.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        self.encoder.apply(data, parity);
    }

    /// How to compute the `wanted` shards from D others of those `present`.
    ///
    /// A plan depends on nothing but its arguments: the first D present shards are the sources. It may be kept and
    /// used for any number of stripes; the last few hundred are cached here as well.
    ///
    /// # Panics
    /// When `present` has not D+P entries, or a wanted shard is none of them.
    pub fn plan(&self, present: &[bool], wanted: &[usize]) -> Result<Plan, TooManyLost> {
        assert_eq!(present.len(), self.shards(), "one entry for each of the D+P shards");
        self.plans.get(present, wanted, || Plan::new(self.kernel, self.data, present, wanted))
    }
}
