//! 32-byte vectors; products by VPSHUFB, looked up for each half of a byte.

use core::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_loadu_si256, _mm256_set1_epi8,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
};

use crate::kernel::tables::Halves;

const VECTOR: usize = 32;

/// Computes the first bytes of each output, and says how many: all but the last `len` % 64 at most.
///
/// # Safety
/// All slices are `len` bytes long.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn run(
    normal: bool,
    tables: &[Halves],
    sources: &[&[u8]],
    out: &mut [&mut [u8]],
    len: usize,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match (out.len(), normal) {
            (1, true) => shards::<1, true>(tables, sources, out, len),
            (1, false) => shards::<1, false>(tables, sources, out, len),
            (2, true) => shards::<2, true>(tables, sources, out, len),
            (2, false) => shards::<2, false>(tables, sources, out, len),
            (3, true) => shards::<3, true>(tables, sources, out, len),
            (3, false) => shards::<3, false>(tables, sources, out, len),
            (4, true) => shards::<4, true>(tables, sources, out, len),
            (4, false) => shards::<4, false>(tables, sources, out, len),
            _ => 0,
        }
    }
}

/// Vectors of each shard per pass: what the 16 registers hold as sums of four outputs, beside the products.
const VECTORS: usize = 2;

/// # Safety
/// All slices are `len` bytes long; there are `OUTPUTS` outputs.
#[target_feature(enable = "avx2")]
unsafe fn shards<const OUTPUTS: usize, const NORMAL: bool>(
    tables: &[Halves],
    sources: &[&[u8]],
    out: &mut [&mut [u8]],
    len: usize,
) -> usize {
    let (tables, _) = tables.as_chunks::<OUTPUTS>();
    let low_half = _mm256_set1_epi8(0x0F);
    let mut at = 0;
    while at + VECTORS * VECTOR <= len {
        let mut sums = [[_mm256_setzero_si256(); VECTORS]; OUTPUTS];
        let mut terms = sources.iter().zip(tables);
        if NORMAL && let Some((first, _)) = terms.next() {
            for vector in 0..VECTORS {
                // SAFETY: all slices reach to at + VECTORS * VECTOR at least.
                let value = unsafe { _mm256_loadu_si256(first.as_ptr().add(at + vector * VECTOR).cast()) };
                for sums in &mut sums {
                    sums[vector] = value;
                }
            }
        }
        for (source, tables) in terms {
            let mut values = [_mm256_setzero_si256(); VECTORS];
            for (vector, value) in values.iter_mut().enumerate() {
                // SAFETY: as above.
                *value = unsafe { _mm256_loadu_si256(source.as_ptr().add(at + vector * VECTOR).cast()) };
            }
            for output in 0..OUTPUTS {
                let plain = NORMAL && output == 0;
                let (low, high) = (table(&tables[output].low), table(&tables[output].high));
                for vector in 0..VECTORS {
                    let term = if plain {
                        values[vector]
                    } else {
                        let lows = _mm256_and_si256(values[vector], low_half);
                        let highs = _mm256_and_si256(_mm256_srli_epi64::<4>(values[vector]), low_half);
                        _mm256_xor_si256(_mm256_shuffle_epi8(low, lows), _mm256_shuffle_epi8(high, highs))
                    };
                    sums[output][vector] = _mm256_xor_si256(sums[output][vector], term);
                }
            }
        }
        for (sums, output) in sums.iter().zip(out.iter_mut()) {
            for (vector, &sum) in sums.iter().enumerate() {
                // SAFETY: as above.
                unsafe { _mm256_storeu_si256(output.as_mut_ptr().add(at + vector * VECTOR).cast(), sum) };
            }
        }
        at += VECTORS * VECTOR;
    }
    at
}

#[inline]
#[target_feature(enable = "avx2")]
fn table(half: &[u8; 16]) -> __m256i {
    // SAFETY: reads the 16 bytes behind the reference.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(half.as_ptr().cast()) })
}
