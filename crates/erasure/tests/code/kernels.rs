//! Kernels against each other and against two oracles: one bit by bit, one from another library.

use weft_erasure::{Code, matrix};

use crate::support::{Random, kernels, schemes};

/// The product of polynomials over GF(2), reduced by x^8 + x^4 + x^3 + x^2 + 1 at the end.
fn multiply(a: u8, b: u8) -> u8 {
    let mut product = (0..8).filter(|bit| b >> bit & 1 == 1).fold(0u16, |sum, bit| sum ^ u16::from(a) << bit);
    for bit in (8..15).rev() {
        if product >> bit & 1 == 1 {
            product ^= 0b1_0001_1101 << (bit - 8);
        }
    }
    product as u8
}

fn encode_slowly(data: &[&[u8]], parity: usize) -> Vec<Vec<u8>> {
    let len = data[0].len();
    let byte = |row: usize, at: usize| {
        data.iter().enumerate().fold(0, |sum, (shard, bytes)| sum ^ multiply(matrix::PARITY[row][shard], bytes[at]))
    };
    (0..parity).map(|row| (0..len).map(|at| byte(row, at)).collect()).collect()
}

/// Shards that begin at any address: `offset` bytes into a buffer, with guard bytes around what is written.
struct Unaligned {
    buffer: Vec<u8>,
    offset: usize,
    len: usize,
}

const GUARD: u8 = 0x5A;

impl Unaligned {
    fn new(random: &mut Random, len: usize) -> Self {
        let offset = random.below(65);
        Self { buffer: vec![GUARD; offset + len + 64], offset, len }
    }

    fn filled(random: &mut Random, len: usize) -> Self {
        let mut this = Self::new(random, len);
        let bytes = random.bytes(len);
        this.slice_mut().copy_from_slice(&bytes);
        this
    }

    fn slice(&self) -> &[u8] {
        &self.buffer[self.offset..][..self.len]
    }

    fn slice_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.offset..][..self.len]
    }

    fn guards_stand(&self) -> bool {
        let (before, rest) = self.buffer.split_at(self.offset);
        before.iter().chain(&rest[self.len..]).all(|&byte| byte == GUARD)
    }
}

fn encode_unaligned(code: &Code, data: &[&[u8]], random: &mut Random) -> Vec<Unaligned> {
    let len = data[0].len();
    let mut parity: Vec<Unaligned> = (0..code.parity()).map(|_| Unaligned::new(random, len)).collect();
    let mut slices: Vec<&mut [u8]> = parity.iter_mut().map(Unaligned::slice_mut).collect();
    code.encode(data, &mut slices);
    assert!(parity.iter().all(Unaligned::guards_stand), "bytes around the shards were written");
    parity
}

#[test]
fn all_kernels_encode_the_same_at_every_length_and_alignment() {
    let mut random = Random(4);
    for (data, parity) in schemes() {
        let codes: Vec<Code> =
            kernels().map(|kernel| Code::with_kernel(data, parity, kernel).expect("a scheme")).collect();
        let lengths: Vec<usize> = (0..12).map(|_| random.below(1500)).chain([0, 1, 4096, 3 * 4096]).collect();
        for len in lengths {
            let shards: Vec<Unaligned> = (0..data).map(|_| Unaligned::filled(&mut random, len)).collect();
            let slices: Vec<&[u8]> = shards.iter().map(Unaligned::slice).collect();
            let parities: Vec<Vec<Unaligned>> =
                codes.iter().map(|code| encode_unaligned(code, &slices, &mut random)).collect();
            let (scalar, others) = parities.split_last().expect("the scalar kernel runs everywhere");
            for (other, kernel) in others.iter().zip(kernels()) {
                for shard in 0..parity {
                    let equal = other[shard].slice() == scalar[shard].slice();
                    assert!(equal, "{data}+{parity} {kernel}: parity {shard} of {len} bytes differs");
                }
            }
        }
    }
}

#[test]
fn all_kernels_repair_the_same_at_every_length_and_alignment() {
    let mut random = Random(5);
    for (data, parity) in schemes() {
        let len = random.below(1500);
        let shards: Vec<Unaligned> = (0..data + parity).map(|_| Unaligned::filled(&mut random, len)).collect();
        for lost_count in 1..=parity {
            let mut present = vec![true; data + parity];
            while present.iter().filter(|&&present| !present).count() < lost_count {
                present[random.below(data + parity)] = false;
            }
            let wanted: Vec<usize> = (0..data + parity).filter(|&shard| !present[shard]).collect();
            let mut first: Option<Vec<Vec<u8>>> = None;
            for kernel in kernels() {
                let code = Code::with_kernel(data, parity, kernel).expect("a scheme");
                let plan = code.plan(&present, &wanted).expect("no more than P are lost");
                let sources: Vec<&[u8]> = plan.sources().iter().map(|&shard| shards[shard].slice()).collect();
                let mut out: Vec<Unaligned> = wanted.iter().map(|_| Unaligned::new(&mut random, len)).collect();
                plan.apply(&sources, &mut out.iter_mut().map(Unaligned::slice_mut).collect::<Vec<_>>());
                assert!(out.iter().all(Unaligned::guards_stand), "bytes around the shards were written");
                let out: Vec<Vec<u8>> = out.iter().map(|shard| shard.slice().to_vec()).collect();
                let first = first.get_or_insert_with(|| out.clone());
                assert!(*first == out, "{data}+{parity} {kernel}: shards {wanted:?} of {len} bytes differ");
            }
        }
    }
}

#[test]
fn parity_is_what_the_matrix_says_bit_by_bit() {
    let mut random = Random(6);
    for (data, parity) in schemes() {
        let shards: Vec<Vec<u8>> = (0..data).map(|_| random.bytes(257)).collect();
        let slices: Vec<&[u8]> = shards.iter().map(Vec::as_slice).collect();
        let expected = encode_slowly(&slices, parity);
        for kernel in kernels() {
            let code = Code::with_kernel(data, parity, kernel).expect("a scheme");
            let found = encode_unaligned(&code, &slices, &mut random);
            assert!(found.iter().zip(&expected).all(|(found, expected)| found.slice() == expected), "{data}+{parity}");
        }
    }
}

#[test]
fn every_entry_of_the_matrix_multiplies_every_byte_rightly() {
    let bytes: Vec<u8> = (0..=255).collect();
    let zeros = vec![0; 256];
    for kernel in kernels() {
        let code = Code::with_kernel(16, 4, kernel).expect("a scheme");
        for shard in 0..16 {
            let mut data = vec![zeros.as_slice(); 16];
            data[shard] = &bytes;
            let mut parity = vec![vec![0; 256]; 4];
            code.encode(&data, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
            for (row, parity) in parity.iter().enumerate() {
                let factor = matrix::PARITY[row][shard];
                assert!(bytes.iter().zip(parity).all(|(&byte, &found)| found == multiply(factor, byte)), "{kernel}");
            }
        }
    }
}

#[test]
fn an_independent_library_computes_the_same_parity() {
    use rusty_erasure::isal::{ec_encode_data, ec_init_tables};

    let mut random = Random(7);
    for (data, parity) in schemes() {
        let shards: Vec<Vec<u8>> = (0..data).map(|_| random.bytes(4096)).collect();
        let slices: Vec<&[u8]> = shards.iter().map(Vec::as_slice).collect();
        let rows: Vec<u8> = matrix::PARITY[..parity].iter().flat_map(|row| &row[..data]).copied().collect();
        let mut tables = vec![0; 32 * rows.len()];
        ec_init_tables(data, parity, &rows, &mut tables).expect("the matrix fits");
        let mut expected = vec![vec![0; 4096]; parity];
        let mut out: Vec<&mut [u8]> = expected.iter_mut().map(Vec::as_mut_slice).collect();
        ec_encode_data(4096, data, parity, &tables, &slices, &mut out).expect("the shards fit");
        let code = Code::new(data, parity).expect("a scheme");
        let found = encode_unaligned(&code, &slices, &mut random);
        assert!(found.iter().zip(&expected).all(|(found, expected)| found.slice() == expected), "{data}+{parity}");
    }
}

#[test]
#[should_panic(expected = "same length")]
fn shards_of_different_lengths_are_refused() {
    let code = Code::new(3, 2).expect("a scheme");
    let (mut first, mut second) = ([0; 64], [0; 64]);
    code.encode(&[&[0; 64], &[0; 63], &[0; 64]], &mut [&mut first, &mut second]);
}
