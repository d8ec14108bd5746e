//! 64-byte vectors and VGF2P8AFFINEQB.

#![expect(clippy::needless_range_loop, reason = "one index runs over several arrays, all unrolled")]

use core::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_mask_storeu_epi8,
    _mm512_maskz_loadu_epi8, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_storeu_si512, _mm512_xor_si512,
};

const VECTOR: usize = 64;

/// From this many bytes of sources and outputs on, they are unlikely to come from the second-level cache.
const PREFETCH_BYTES_MIN: usize = 256 << 10;
/// How far ahead of their use sources are asked for. Measured: 256 to 2048 hardly differ, further is worse.
const PREFETCH_DISTANCE: usize = 512;

/// Computes all `len` bytes of each output, and says so.
///
/// # Safety
/// All slices are `len` bytes long.
#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub(crate) unsafe fn run(normal: bool, tables: &[u64], sources: &[&[u8]], out: &mut [&mut [u8]], len: usize) -> usize {
    // SAFETY: the caller's promise. The number of vectors per pass is what the 32 registers hold beside the products.
    unsafe {
        match (out.len(), normal) {
            (1, true) => shards::<1, 8, true>(tables, sources, out, len),
            (1, false) => shards::<1, 8, false>(tables, sources, out, len),
            (2, true) => shards::<2, 8, true>(tables, sources, out, len),
            (2, false) => shards::<2, 8, false>(tables, sources, out, len),
            (3, true) => shards::<3, 4, true>(tables, sources, out, len),
            (3, false) => shards::<3, 4, false>(tables, sources, out, len),
            (4, true) => shards::<4, 4, true>(tables, sources, out, len),
            (4, false) => shards::<4, 4, false>(tables, sources, out, len),
            _ => return 0,
        }
    }
    len
}

/// # Safety
/// All slices are `len` bytes long; there are `OUTPUTS` outputs.
#[target_feature(enable = "avx512f,avx512bw,gfni")]
unsafe fn shards<const OUTPUTS: usize, const VECTORS: usize, const NORMAL: bool>(
    tables: &[u64],
    sources: &[&[u8]],
    out: &mut [&mut [u8]],
    len: usize,
) {
    let (tables, _) = tables.as_chunks::<OUTPUTS>();
    // With three or more outputs a pass is so long that the processor does not see the next one's loads in time.
    let prefetch = OUTPUTS >= 3 && len * (sources.len() + OUTPUTS) >= PREFETCH_BYTES_MIN;
    let mut at = 0;
    while at + VECTORS * VECTOR <= len {
        if prefetch {
            for source in sources {
                for vector in 0..VECTORS {
                    let ahead = source.as_ptr().wrapping_add(at + vector * VECTOR + PREFETCH_DISTANCE);
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                }
            }
        }
        // SAFETY: all slices reach to at + VECTORS * VECTOR at least.
        unsafe {
            let load = |source: &[u8], vector| _mm512_loadu_si512(source.as_ptr().add(at + vector * VECTOR).cast());
            let sums = sum::<OUTPUTS, VECTORS, NORMAL>(tables, sources, load);
            for (sums, output) in sums.iter().zip(out.iter_mut()) {
                for (vector, &sum) in sums.iter().enumerate() {
                    _mm512_storeu_si512(output.as_mut_ptr().add(at + vector * VECTOR).cast(), sum);
                }
            }
        }
        at += VECTORS * VECTOR;
    }
    while at < len {
        let mask = u64::MAX >> (VECTOR - (len - at).min(VECTOR));
        // SAFETY: the mask keeps accesses below `len`.
        unsafe {
            let load = |source: &[u8], _| _mm512_maskz_loadu_epi8(mask, source.as_ptr().add(at).cast());
            let sums = sum::<OUTPUTS, 1, NORMAL>(tables, sources, load);
            for ([sum], output) in sums.iter().zip(out.iter_mut()) {
                _mm512_mask_storeu_epi8(output.as_mut_ptr().add(at).cast(), mask, *sum);
            }
        }
        at += VECTOR;
    }
}

/// The same `VECTORS` vectors of each output.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn sum<const OUTPUTS: usize, const VECTORS: usize, const NORMAL: bool>(
    tables: &[[u64; OUTPUTS]],
    sources: &[&[u8]],
    load: impl Fn(&[u8], usize) -> __m512i,
) -> [[__m512i; VECTORS]; OUTPUTS] {
    let mut sums = [[_mm512_setzero_si512(); VECTORS]; OUTPUTS];
    let (mut tables, mut sources) = (tables, sources);
    if NORMAL && let Some((first, rest)) = sources.split_first() {
        for vector in 0..VECTORS {
            let value = load(first, vector);
            for sums in &mut sums {
                sums[vector] = value;
            }
        }
        sources = rest;
        tables = tables.get(1..).unwrap_or_default();
    }
    // Two sources at a time: the two XORs into a sum become one three-way VPTERNLOG.
    let (source_pairs, source_odd) = sources.as_chunks::<2>();
    let (table_pairs, table_odd) = tables.as_chunks::<2>();
    for (sources, tables) in source_pairs.iter().zip(table_pairs) {
        for vector in 0..VECTORS {
            let values = [load(sources[0], vector), load(sources[1], vector)];
            for output in 0..OUTPUTS {
                let terms = if NORMAL && output == 0 {
                    _mm512_xor_si512(values[0], values[1])
                } else {
                    _mm512_xor_si512(multiply(values[0], tables[0][output]), multiply(values[1], tables[1][output]))
                };
                sums[output][vector] = _mm512_xor_si512(sums[output][vector], terms);
            }
        }
    }
    for (source, tables) in source_odd.iter().zip(table_odd) {
        for vector in 0..VECTORS {
            let value = load(source, vector);
            for output in 0..OUTPUTS {
                let term = if NORMAL && output == 0 { value } else { multiply(value, tables[output]) };
                sums[output][vector] = _mm512_xor_si512(sums[output][vector], term);
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn multiply(value: __m512i, matrix: u64) -> __m512i {
    _mm512_gf2p8affine_epi64_epi8::<0>(value, _mm512_set1_epi64(matrix.cast_signed()))
}
