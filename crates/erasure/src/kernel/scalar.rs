//! Table look-ups: what runs without vector instructions, and on the tails that do not fill a vector.

use core::ops::Range;

use crate::field::PRODUCTS;

/// Bytes of each shard handled before the next source's turn: sources and outputs of a block stay in the first-level cache.
const BLOCK_BYTES: usize = 1024;

/// Computes `range` of each output; `coefficients` are by source, then by output.
pub(crate) fn run(coefficients: &[u8], sources: &[&[u8]], out: &mut [&mut [u8]], range: Range<usize>) {
    let outputs = out.len();
    let mut start = range.start;
    while start < range.end {
        let block = start..range.end.min(start + BLOCK_BYTES);
        for output in out.iter_mut() {
            output[block.clone()].fill(0);
        }
        for (source, coefficients) in sources.iter().zip(coefficients.chunks_exact(outputs)) {
            for (output, &coefficient) in out.iter_mut().zip(coefficients) {
                accumulate(&mut output[block.clone()], &source[block.clone()], coefficient);
            }
        }
        start = block.end;
    }
}

fn accumulate(to: &mut [u8], from: &[u8], coefficient: u8) {
    match coefficient {
        0 => {}
        1 => to.iter_mut().zip(from).for_each(|(to, from)| *to ^= from),
        _ => {
            let products = &PRODUCTS[usize::from(coefficient)];
            to.iter_mut().zip(from).for_each(|(to, &from)| *to ^= products[usize::from(from)]);
        }
    }
}
