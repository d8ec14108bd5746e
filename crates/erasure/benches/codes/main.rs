//! All schemes against ISA-L, rusty_erasure, reed-solomon-simd and memcpy: `cargo bench -p weft-erasure`.
//!
//! Contenders take turns, each keeps its best turn, and all see the same memory. `--quick` measures four schemes,
//! `--kernels` compares our own kernels.

mod isal;
mod peers;

use std::hint::black_box;
use std::time::{Duration, Instant};

use isal::Isal;
use peers::{Arm, Direction, Work};
use weft_erasure::Kernel;

const SHARD_BYTES_CACHE: usize = 4 << 10;
const SHARD_BYTES_MEMORY: usize = 64 << 10;
/// Much more than any cache holds.
const MEMORY_BYTES: usize = 512 << 20;
const PAGE_BYTES: usize = 4096;
const TURNS: usize = 15;
/// How long a turn in cache takes; in memory it takes [`TURN_BYTES_MEMORY`] instead.
const TURN_CACHE: Duration = Duration::from_micros(500);
const TURN_BYTES_MEMORY: usize = 48 << 20;

struct Bench<'a> {
    memory: &'a mut [u8],
    cursor: usize,
    isal: Option<Isal>,
    quick: bool,
}

/// Bytes per nanosecond: GB/s.
type Speed = f64;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let found = Isal::find();
    let version = found.as_ref().map_or("none found by pkg-config".to_owned(), |(_, version)| version.clone());
    println!("Kernel: {}. ISA-L: {version}.\n", Kernel::best());
    // Shards in Weft lie on page boundaries.
    let mut memory: Vec<u8> = (0..MEMORY_BYTES + PAGE_BYTES).map(|byte| ((byte / 7) ^ byte) as u8).collect();
    let aligned = memory.as_ptr().align_offset(PAGE_BYTES);
    let mut bench = Bench {
        memory: &mut memory[aligned..][..MEMORY_BYTES],
        cursor: 0,
        isal: found.map(|(isal, _)| isal),
        quick: has("--quick"),
    };
    if has("--kernels") {
        bench.kernels();
        return;
    }
    for direction in [Direction::Encode, Direction::Decode] {
        bench.in_cache(direction);
        bench.in_memory(direction);
    }
}

impl Bench<'_> {
    fn works(&self, direction: Direction) -> Vec<Work> {
        let schemes = [2, 4].into_iter().flat_map(|parity| (3..=16).map(move |data| (data, parity)));
        let chosen = schemes.filter(|scheme| !self.quick || [(4, 2), (8, 2), (8, 4), (16, 4)].contains(scheme));
        chosen.map(|(data, parity)| Work { data, parity, direction }).collect()
    }

    fn arms(&self, work: Work, len: usize) -> Vec<Option<Arm>> {
        let mut arms =
            vec![Some(work.weft(Kernel::best())), self.isal.map(|isal| work.isal(isal)), Some(work.rusty_erasure())];
        for arm in arms.iter_mut().flatten() {
            verify(work, arm);
        }
        arms.push(Some(work.reed_solomon_simd(len)));
        arms
    }

    fn in_cache(&mut self, direction: Direction) {
        println!("### {}, in cache, shards of {} KiB: GB/s of data\n", name(direction), SHARD_BYTES_CACHE >> 10);
        println!("| scheme | Weft | ISA-L | rusty_erasure | reed-solomon-simd | Weft / best other |");
        println!("|--------|-----:|------:|--------------:|------------------:|------------------:|");
        for work in self.works(direction) {
            let mut arms = self.arms(work, SHARD_BYTES_CACHE);
            let stripe_bytes = (work.data + work.outputs()) * SHARD_BYTES_CACHE;
            let memory = &mut self.memory[..stripe_bytes];
            let speeds = take_turns(&mut arms, |arm| turn_in_cache(work, arm, memory));
            println!("| {}+{} |{} {:.2} |", work.data, work.parity, cells(&speeds), ahead(&speeds));
        }
        println!();
    }

    fn in_memory(&mut self, direction: Direction) {
        let kib = SHARD_BYTES_MEMORY >> 10;
        println!("### {}, from memory, shards of {kib} KiB: GB/s read and written\n", name(direction));
        println!(
            "| scheme | Weft | ISA-L | rusty_erasure | reed-solomon-simd | Weft / best other | memcpy | Weft / memcpy |"
        );
        println!("|--------|{}", "-----:|".repeat(7));
        for work in self.works(direction) {
            let mut arms = self.arms(work, SHARD_BYTES_MEMORY);
            let mut memcpy: Speed = 0.0;
            let speeds = take_turns(&mut arms, |arm| {
                memcpy = memcpy.max(self.turn_memcpy());
                self.turn_in_memory(work, arm)
            });
            let weft = speeds[0].expect("ours ran");
            println!(
                "| {}+{} |{} {:.2} | {memcpy:.1} | {:.2} |",
                work.data,
                work.parity,
                cells(&speeds),
                ahead(&speeds),
                weft / memcpy
            );
        }
        println!();
    }

    /// Walks on through the memory, so that nothing is cached: GB/s read and written.
    fn turn_in_memory(&mut self, work: Work, arm: &mut Arm) -> Speed {
        let stripe_bytes = (work.data + work.outputs()) * SHARD_BYTES_MEMORY;
        let stripes = TURN_BYTES_MEMORY / stripe_bytes;
        let memory = self.next_memory(stripes * stripe_bytes);
        let start = Instant::now();
        for stripe in memory.chunks_exact_mut(stripe_bytes) {
            with_shards(work, stripe, |sources, out| arm(sources, out));
        }
        (stripes * stripe_bytes) as f64 / start.elapsed().as_nanos() as f64
    }

    fn turn_memcpy(&mut self) -> Speed {
        let (from, to) = self.next_memory(TURN_BYTES_MEMORY).split_at_mut(TURN_BYTES_MEMORY / 2);
        let start = Instant::now();
        to.copy_from_slice(from);
        black_box(&to);
        TURN_BYTES_MEMORY as f64 / start.elapsed().as_nanos() as f64
    }

    fn next_memory(&mut self, bytes: usize) -> &mut [u8] {
        if self.cursor + bytes > self.memory.len() {
            self.cursor = 0;
        }
        let start = self.cursor;
        self.cursor = (start + bytes).next_multiple_of(PAGE_BYTES);
        &mut self.memory[start..start + bytes]
    }

    fn kernels(&mut self) {
        println!("### Encode by kernel, in cache, shards of {} KiB: GB/s of data\n", SHARD_BYTES_CACHE >> 10);
        println!("| scheme | {} |", Kernel::ALL.map(|kernel| kernel.to_string()).join(" | "));
        println!("|--------|{}", "-----:|".repeat(Kernel::ALL.len()));
        for work in self.works(Direction::Encode) {
            let supported = |kernel: Kernel| kernel.is_supported().then(|| work.weft(kernel));
            let mut arms = Kernel::ALL.map(supported);
            arms.iter_mut().flatten().for_each(|arm| verify(work, arm));
            let stripe_bytes = (work.data + work.outputs()) * SHARD_BYTES_CACHE;
            let memory = &mut self.memory[..stripe_bytes];
            let speeds = take_turns(&mut arms, |arm| turn_in_cache(work, arm, memory));
            println!("| {}+{} |{}", work.data, work.parity, cells(&speeds));
        }
    }
}

fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Encode => "Encode",
        Direction::Decode => "Decode, P data shards lost",
    }
}

/// Each arm's best of [`TURNS`].
fn take_turns(arms: &mut [Option<Arm>], mut turn: impl FnMut(&mut Arm) -> Speed) -> Vec<Option<Speed>> {
    let mut best = vec![None; arms.len()];
    for _ in 0..TURNS {
        for (arm, best) in arms.iter_mut().zip(&mut best) {
            if let Some(arm) = arm {
                *best = Some(turn(arm).max(best.unwrap_or(0.0)));
            }
        }
    }
    best
}

/// The same stripe again and again: GB/s of data.
fn turn_in_cache(work: Work, arm: &mut Arm, memory: &mut [u8]) -> Speed {
    with_shards(work, memory, |sources, out| {
        let (start, mut rounds) = (Instant::now(), 0);
        loop {
            for _ in 0..16 {
                arm(black_box(sources), out);
            }
            rounds += 16;
            let elapsed = start.elapsed();
            if elapsed > TURN_CACHE {
                return (rounds * work.data * SHARD_BYTES_CACHE) as f64 / elapsed.as_nanos() as f64;
            }
        }
    })
}

/// The stripe's memory as the sources, and after them the outputs.
fn with_shards<T>(work: Work, stripe: &mut [u8], run: impl FnOnce(&[&[u8]], &mut [&mut [u8]]) -> T) -> T {
    let len = stripe.len() / (work.data + work.outputs());
    let (sources, out) = stripe.split_at_mut(work.data * len);
    let sources: Vec<&[u8]> = sources.chunks_exact(len).collect();
    let mut out: Vec<&mut [u8]> = out.chunks_exact_mut(len).collect();
    run(&sources, &mut out)
}

fn verify(work: Work, arm: &mut Arm) {
    let mut stripe: Vec<u8> = (0..(work.data + work.outputs()) * 256).map(|byte| ((byte * byte) >> 5) as u8).collect();
    with_shards(work, &mut stripe, |sources, out| {
        arm(sources, out);
        assert!(work.expected(sources).iter().zip(out).all(|(expected, out)| expected == out), "a contender is wrong");
    });
}

fn cells(speeds: &[Option<Speed>]) -> String {
    speeds.iter().map(|speed| speed.map_or(" - |".to_owned(), |speed| format!(" {speed:.1} |"))).collect()
}

fn ahead(speeds: &[Option<Speed>]) -> f64 {
    speeds[0].unwrap_or(0.0) / speeds[1..].iter().flatten().fold(f64::MIN_POSITIVE, |best, &speed| best.max(speed))
}
