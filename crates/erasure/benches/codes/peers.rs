//! What runs in the bench, each behind the same call: sources in, outputs out.

use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use weft_erasure::{Code, Kernel, field, matrix};

use crate::isal::Isal;

/// One contender for one scheme and one direction.
pub type Arm = Box<dyn FnMut(&[&[u8]], &mut [&mut [u8]])>;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// All parity from all data.
    Encode,
    /// As many data shards as the code can lose, from the other data and from parity.
    Decode,
}

/// A scheme and a direction.
#[derive(Clone, Copy)]
pub struct Work {
    pub data: usize,
    pub parity: usize,
    pub direction: Direction,
}

impl Work {
    pub fn outputs(self) -> usize {
        match self.direction {
            Direction::Encode => self.parity,
            Direction::Decode => self.parity.min(self.data),
        }
    }

    /// Shards 0, 1, ... are the lost ones.
    fn lost(self) -> Vec<usize> {
        (0..self.outputs()).collect()
    }

    pub fn weft(self, kernel: Kernel) -> Arm {
        let code = Code::with_kernel(self.data, self.parity, kernel).expect("a scheme");
        match self.direction {
            Direction::Encode => Box::new(move |sources, out| code.encode(sources, out)),
            Direction::Decode => {
                let present: Vec<bool> = (0..code.shards()).map(|shard| shard >= self.outputs()).collect();
                let plan = code.plan(&present, &self.lost()).expect("no more than P are lost");
                Box::new(move |sources, out| plan.apply(sources, out))
            }
        }
    }

    pub fn isal(self, isal: Isal) -> Arm {
        let mut product = isal.product(&self.rows());
        Box::new(move |sources, out| product.apply(sources, out))
    }

    pub fn rusty_erasure(self) -> Arm {
        let kernels = rusty_erasure::best_kernels();
        let tables = (kernels.init)(&self.rows().concat());
        Box::new(move |sources, out| (kernels.encode)(&tables, sources, out))
    }

    /// Its parity fits no other code; its interface copies shards in, and leaves results in its own buffers.
    pub fn reed_solomon_simd(self, len: usize) -> Arm {
        let lost = self.outputs();
        match self.direction {
            Direction::Encode => {
                let mut encoder = ReedSolomonEncoder::new(self.data, self.parity, len).expect("supported");
                Box::new(move |sources, _| {
                    sources.iter().for_each(|source| encoder.add_original_shard(source).expect("fits"));
                    std::hint::black_box(encoder.encode().expect("complete").recovery(0));
                })
            }
            Direction::Decode => {
                let mut decoder = ReedSolomonDecoder::new(self.data, self.parity, len).expect("supported");
                Box::new(move |sources, _| {
                    let (data, parity) = sources.split_at(self.data - lost);
                    for (shard, source) in data.iter().enumerate() {
                        decoder.add_original_shard(lost + shard, source).expect("fits");
                    }
                    for (shard, source) in parity.iter().enumerate() {
                        decoder.add_recovery_shard(shard, source).expect("fits");
                    }
                    std::hint::black_box(decoder.decode().expect("enough").restored_original(0));
                })
            }
        }
    }

    /// The matrix that makes outputs from sources, for libraries that take one.
    fn rows(self) -> Vec<Vec<u8>> {
        let parity: Vec<Vec<u8>> = matrix::PARITY[..self.parity].iter().map(|row| row[..self.data].to_vec()).collect();
        if self.direction == Direction::Encode {
            return parity;
        }
        // Rows of the generator that are left, data first; the inverse's first rows give the lost data.
        let data = (self.outputs()..self.data).map(|shard| (0..self.data).map(|j| u8::from(j == shard)).collect());
        let left: Vec<Vec<u8>> = data.chain(parity).take(self.data).collect();
        let mut inverse = vec![0; self.data * self.data];
        rusty_erasure::isal::gf_invert_matrix(&mut left.concat(), &mut inverse, self.data).expect("an MDS code");
        inverse.chunks(self.data).take(self.outputs()).map(<[u8]>::to_vec).collect()
    }

    /// The outputs as the field's definition has them.
    pub fn expected(self, sources: &[&[u8]]) -> Vec<Vec<u8>> {
        let output = |row: &Vec<u8>, at: usize| {
            row.iter().zip(sources).fold(0, |sum, (&factor, source)| sum ^ field::multiply(factor, source[at]))
        };
        self.rows().iter().map(|row| (0..sources[0].len()).map(|at| output(row, at)).collect()).collect()
    }
}
