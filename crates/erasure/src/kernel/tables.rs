//! Coefficients in the forms that vector instructions take.

use crate::field::multiply;

/// The coefficient as the bit matrix of VGF2P8AFFINEQB, which computes bit i of a result as the parity of the source byte
/// under a mask, the matrix's byte 7-i. (GF2P8MULB would not do: it knows the polynomial 0x11B only.)
pub(crate) fn bit_matrix(coefficient: u8) -> u64 {
    let mut matrix = [0u8; 8];
    for from in 0..8 {
        let product = multiply(coefficient, 1 << from);
        for (to, mask) in matrix.iter_mut().rev().enumerate() {
            *mask |= (product >> to & 1) << from;
        }
    }
    u64::from_le_bytes(matrix)
}

/// Products of a coefficient with all bytes of which only one half is set: their XOR is the product with any byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Halves {
    pub(crate) low: [u8; 16],
    pub(crate) high: [u8; 16],
}

pub(crate) fn halves(coefficient: u8) -> Halves {
    let mut halves = Halves { low: [0; 16], high: [0; 16] };
    for half in 0..16 {
        halves.low[usize::from(half)] = multiply(coefficient, half);
        halves.high[usize::from(half)] = multiply(coefficient, half << 4);
    }
    halves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_multiply_every_coefficient_with_every_byte() {
        for coefficient in 0..=255 {
            let matrix = bit_matrix(coefficient).to_le_bytes();
            let halves = halves(coefficient);
            for byte in 0..=255u8 {
                let product = multiply(coefficient, byte);
                let by_bits = (0..8).fold(0, |sum, bit| sum | ((matrix[7 - bit] & byte).count_ones() as u8 & 1) << bit);
                assert_eq!(by_bits, product, "{coefficient}·{byte}");
                let by_halves = halves.low[usize::from(byte & 15)] ^ halves.high[usize::from(byte >> 4)];
                assert_eq!(by_halves, product, "{coefficient}·{byte}");
            }
        }
    }
}
