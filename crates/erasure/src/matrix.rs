//! The parity matrix, part of the on-drive format, and the inversion that decoding needs.

use crate::field::{invert, multiply};

/// The most data shards of a scheme.
pub const DATA_MAX: usize = 16;
/// The fewest data shards of a scheme.
pub const DATA_MIN: usize = 3;
/// The most parity shards of a scheme.
pub const PARITY_MAX: usize = 4;
/// The most shards of a scheme.
pub const SHARDS_MAX: usize = DATA_MAX + PARITY_MAX;

/// `PARITY[i][j]` is what data shard j contributes to parity shard i, in every scheme: a scheme D+P uses the first P
/// rows and D columns.
///
/// It comes from the Cauchy matrix 1 / (i + (4 + j)), sums in GF(2^8) being XOR, whose square submatrices are all invertible;
/// each column is divided by its first entry and then each row by its own, which keeps that property and makes row 0
/// and column 0 all ones.
pub const PARITY: [[u8; DATA_MAX]; PARITY_MAX] = [
    [0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01],
    [0x01, 0xD9, 0x5C, 0xAC, 0xBB, 0x87, 0xF8, 0xEB, 0x48, 0x33, 0x7B, 0x4B, 0xA6, 0xA8, 0x08, 0xB6],
    [0x01, 0x5C, 0x46, 0x7B, 0xF5, 0x3A, 0x65, 0x35, 0x68, 0x28, 0xC8, 0x6C, 0xD2, 0x67, 0xFA, 0x19],
    [0x01, 0xAC, 0x7B, 0x9E, 0xC3, 0x1F, 0x8F, 0xE3, 0x52, 0x22, 0x25, 0xFA, 0x6E, 0x65, 0xBE, 0x53],
];

/// The inverse of the leading `size` x `size` part of `matrix`, `None` when it has none.
pub(crate) fn inverse(matrix: &[[u8; PARITY_MAX]; PARITY_MAX], size: usize) -> Option<[[u8; PARITY_MAX]; PARITY_MAX]> {
    let mut left = *matrix;
    let mut right = [[0; PARITY_MAX]; PARITY_MAX];
    for (i, row) in right.iter_mut().enumerate() {
        row[i] = 1;
    }
    for column in 0..size {
        let pivot = (column..size).find(|&row| left[row][column] != 0)?;
        left.swap(column, pivot);
        right.swap(column, pivot);
        let scale = invert(left[column][column]);
        for k in 0..size {
            left[column][k] = multiply(left[column][k], scale);
            right[column][k] = multiply(right[column][k], scale);
        }
        for row in (0..size).filter(|&row| row != column) {
            let factor = left[row][column];
            for k in 0..size {
                left[row][k] ^= multiply(factor, left[column][k]);
                right[row][k] ^= multiply(factor, right[column][k]);
            }
        }
    }
    Some(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_follows_from_its_definition() {
        let cauchy = |i: u8, j: u8| invert(i ^ (4 + j));
        for i in 0..4 {
            for j in 0..16 {
                let column = multiply(cauchy(i, j), invert(cauchy(0, j)));
                let first = multiply(cauchy(i, 0), invert(cauchy(0, 0)));
                assert_eq!(
                    PARITY[usize::from(i)][usize::from(j)],
                    multiply(column, invert(first)),
                    "row {i} column {j}"
                );
            }
        }
        assert_eq!(PARITY[0], [1; 16]);
        assert!(PARITY.iter().all(|row| row[0] == 1));
    }

    #[test]
    fn singular_matrices_are_seen() {
        let mut matrix = [[0; 4]; 4];
        matrix[0] = [3, 5, 0, 0];
        matrix[1] = [3, 5, 0, 0];
        assert_eq!(inverse(&matrix, 2), None);
        matrix[1] = [0, 5, 0, 0];
        let inverted = inverse(&matrix, 2).expect("two independent rows");
        assert_eq!(multiply(inverted[0][0], 3), 1);
    }
}
