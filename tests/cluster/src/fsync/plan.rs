//! The operations of one thread, as a function of seed and thread, and the files that they leave.

use std::collections::BTreeMap;

const FILES: u64 = 8;
/// Several MiB, so that writes cross the borders at which files are spread.
const FILE_BYTES_MAX: u64 = 3 << 20;

pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creates the file if it is not there.
    Write {
        file: String,
        offset: u64,
        data: Vec<u8>,
    },
    Truncate {
        file: String,
        bytes: u64,
    },
    /// Replaces `to` if it is there.
    Rename {
        from: String,
        to: String,
    },
    Remove {
        file: String,
    },
}

impl Operation {
    pub fn apply(&self, files: &mut Files) {
        match self {
            Operation::Write { file, offset, data } => {
                let content = files.entry(file.clone()).or_default();
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                if content.len() < end {
                    content.resize(end, 0);
                }
                if let Some(place) = content.get_mut(start..end) {
                    place.copy_from_slice(data);
                }
            }
            Operation::Truncate { file, bytes } => {
                if let Some(content) = files.get_mut(file) {
                    content.resize(*bytes as usize, 0);
                }
            }
            Operation::Rename { from, to } => {
                if let Some(content) = files.remove(from) {
                    files.insert(to.clone(), content);
                }
            }
            Operation::Remove { file } => {
                files.remove(file);
            }
        }
    }
}

/// Goes through the plan; `files` is what stands after the operations given out so far.
pub struct Plan {
    random: Random,
    next: u64,
    pub files: Files,
}

impl Plan {
    pub fn new(seed: u64, thread: u64) -> Plan {
        let random = Random(seed ^ thread.wrapping_mul(0xa076_1d64_78bd_642f));
        Plan { random, next: 1, files: Files::new() }
    }

    /// The next operation with its number, counted from 1. It counts as done.
    pub fn step(&mut self) -> (u64, Operation) {
        let operation = self.choose();
        operation.apply(&mut self.files);
        let number = self.next;
        self.next += 1;
        (number, operation)
    }

    fn choose(&mut self) -> Operation {
        let file = format!("f{}", self.random.below(FILES));
        let length = self.files.get(&file).map(|content| content.len() as u64);
        match (self.random.below(20), length) {
            (0, Some(_)) => Operation::Remove { file },
            (1, Some(_)) => {
                let to = format!("f{}", self.random.below(FILES));
                // A rename onto itself does nothing, so it could not be seen to have happened.
                if to == file { Operation::Remove { file } } else { Operation::Rename { from: file, to } }
            }
            (2, Some(length)) => {
                Operation::Truncate { file, bytes: self.random.below(length * 2 + 1).min(FILE_BYTES_MAX) }
            }
            (kind, length) => {
                let length = length.unwrap_or(0);
                let bytes = 1 + match kind {
                    // Large enough to become stripes at once, sometimes.
                    3 | 4 => self.random.below(512 << 10),
                    5..=9 => self.random.below(16 << 10),
                    _ => self.random.below(2 << 10),
                };
                let offset = match kind % 3 {
                    0 => length,
                    1 => self.random.below(length + 1),
                    _ => self.random.below(FILE_BYTES_MAX) & !4095,
                };
                let offset = offset.min(FILE_BYTES_MAX - bytes);
                Operation::Write { file, offset, data: self.random.bytes(bytes) }
            }
        }
    }
}

/// SplitMix64: the plan must be the same for ever, so it is written down here.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not zero. The bias is of no matter here.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, count: u64) -> Vec<u8> {
        let mut data = Vec::with_capacity(count as usize + 8);
        while (data.len() as u64) < count {
            data.extend(self.next().to_le_bytes());
        }
        data.truncate(count as usize);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_function_of_its_seed() {
        let run = |seed, thread| {
            let mut plan = Plan::new(seed, thread);
            (0..50).map(|_| plan.step()).collect::<Vec<_>>()
        };
        assert_eq!(run(1, 0), run(1, 0));
        assert_ne!(run(1, 0), run(2, 0));
        assert_ne!(run(1, 0), run(1, 1));
    }

    #[test]
    fn has_every_operation_and_stays_within_its_bounds() {
        let mut plan = Plan::new(7, 0);
        let mut seen = [0; 4];
        for _ in 0..1000 {
            let kind = match plan.step().1 {
                Operation::Write { .. } => 0,
                Operation::Truncate { .. } => 1,
                Operation::Rename { .. } => 2,
                Operation::Remove { .. } => 3,
            };
            seen[kind] += 1;
            assert!(plan.files.values().all(|content| content.len() as u64 <= FILE_BYTES_MAX));
        }
        assert!(seen.iter().all(|count| *count > 10), "{seen:?}");
    }
}
