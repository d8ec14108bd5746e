//! 32-byte vectors and VGF2P8AFFINEQB.

#![expect(clippy::needless_range_loop, reason = "one index runs over several arrays, all unrolled")]

use core::arch::x86_64::{
    __m256i, _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256, _mm256_set1_epi64x, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm256_xor_si256,
};

const VECTOR: usize = 32;

/// Computes the first bytes of each output, and says how many: all but the last `len` % 128 at most.
///
/// # Safety
/// All slices are `len` bytes long.
#[target_feature(enable = "avx2,gfni")]
pub(crate) unsafe fn run(normal: bool, tables: &[u64], sources: &[&[u8]], out: &mut [&mut [u8]], len: usize) -> usize {
    // SAFETY: the caller's promise. The number of vectors per pass is what the 16 registers hold beside the products.
    unsafe {
        match (out.len(), normal) {
            (1, true) => shards::<1, 4, true>(tables, sources, out, len),
            (1, false) => shards::<1, 4, false>(tables, sources, out, len),
            (2, true) => shards::<2, 4, true>(tables, sources, out, len),
            (2, false) => shards::<2, 4, false>(tables, sources, out, len),
            (3, true) => shards::<3, 2, true>(tables, sources, out, len),
            (3, false) => shards::<3, 2, false>(tables, sources, out, len),
            (4, true) => shards::<4, 2, true>(tables, sources, out, len),
            (4, false) => shards::<4, 2, false>(tables, sources, out, len),
            _ => 0,
        }
    }
}

/// # Safety
/// All slices are `len` bytes long; there are `OUTPUTS` outputs.
#[target_feature(enable = "avx2,gfni")]
unsafe fn shards<const OUTPUTS: usize, const VECTORS: usize, const NORMAL: bool>(
    tables: &[u64],
    sources: &[&[u8]],
    out: &mut [&mut [u8]],
    len: usize,
) -> usize {
    let (tables, _) = tables.as_chunks::<OUTPUTS>();
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
            for vector in 0..VECTORS {
                // SAFETY: as above.
                let value = unsafe { _mm256_loadu_si256(source.as_ptr().add(at + vector * VECTOR).cast()) };
                for output in 0..OUTPUTS {
                    let term = if NORMAL && output == 0 { value } else { multiply(value, tables[output]) };
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
#[target_feature(enable = "avx2,gfni")]
fn multiply(value: __m256i, matrix: u64) -> __m256i {
    _mm256_gf2p8affine_epi64_epi8::<0>(value, _mm256_set1_epi64x(matrix.cast_signed()))
}
