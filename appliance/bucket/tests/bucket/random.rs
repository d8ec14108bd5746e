//! Random lives: operations against a model, with power loss, new leaders, nodes that go down, are replaced and come
//! back with what they had, and damage in between, under limits so small that everything happens all the time.

use crate::rig::{DRIVE_BYTES, ENSEMBLE, NODES, PROTECTION, Rig};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use weft_bucket::{Batch, Bucket, BucketError, KeyBuilder, Object, Stats, Tag, Tunables};
use weft_drive::mem::CrashKeeps;
use weft_reactor::Task;
use weft_reactor::testing::VirtualTime;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::map::State;
use weft_wire::{FsId, InodeId};

const FILES: u64 = 3;
const FILE_BLOCKS: u64 = 2500;
const KEYS: u64 = 400;
/// Whatever is away comes back before.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the bucket must answer. Blocks: the word that fills them, 0 for zeros.
#[derive(Clone, Default)]
struct Model {
    blocks: BTreeMap<(u64, u64), u64>,
    keys: BTreeMap<u64, Vec<u8>>,
}

struct Life {
    rig: Rc<Rig>,
    bucket: Bucket,
    model: Model,
    words: u64,
    /// A node that comes back by itself, and the map never hears of it.
    down: Option<Task<()>>,
    /// Nodes that the map calls away or failed.
    lost: Vec<u16>,
    random: u64,
}

fn file(number: u64) -> Object {
    Object { fs: FsId(1), inode: InodeId(number + 1) }
}

fn key(number: u64) -> Bytes {
    KeyBuilder::new(FsId(1), Tag::Inode).u64(number).build()
}

fn filled(word: u64, count: u64) -> Bytes {
    let mut out = Vec::with_capacity(count as usize * BLOCK_BYTES);
    for block in 0..count {
        out.extend((word + block).to_le_bytes().iter().cycle().take(BLOCK_BYTES));
    }
    out.into()
}

impl Life {
    async fn new(rig: Rc<Rig>, seed: u64) -> Self {
        let bucket = rig.open().await;
        Self {
            rig,
            bucket,
            model: Model::default(),
            words: 1,
            down: None,
            lost: Vec::new(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % end
    }

    fn range(&mut self, count: u64) -> Range<u64> {
        let first = self.below(FILE_BLOCKS - count);
        first..first + count
    }

    /// Puts a random change into the batch and the model.
    async fn change(&mut self, batch: &mut Batch, model: &mut Model) -> Result<(), BucketError> {
        let number = self.below(FILES);
        match self.below(10) {
            0..=3 => {
                let count = 1 + self.below(12);
                let range = self.range(count);
                let word = self.fresh(count);
                batch.write_blocks(file(number), range.start, filled(word, count));
                model.blocks.extend((0..count).map(|i| ((number, range.start + i), word + i)));
            }
            4 => {
                let count = 16 + self.below(200);
                let range = self.range(count);
                let word = self.fresh(count);
                let staged = self.bucket.stage(file(number), range.start, filled(word, count)).await?;
                batch.place(file(number), range.start, staged);
                model.blocks.extend((0..count).map(|i| ((number, range.start + i), word + i)));
            }
            5 => {
                let count = 1 + self.below(300);
                let range = self.range(count);
                batch.punch(file(number), range.clone());
                model.blocks.retain(|(at, block), _| *at != number || !range.contains(block));
            }
            6 => {
                let count = 1 + self.below(10);
                let range = self.range(count);
                batch.reserve(file(number), range.clone());
                for block in range {
                    model.blocks.entry((number, block)).or_insert(0);
                }
            }
            _ => {
                for _ in 0..1 + self.below(8) {
                    let number = self.below(KEYS);
                    if self.below(3) == 0 {
                        batch.delete(key(number));
                        model.keys.remove(&number);
                    } else {
                        let value = vec![self.below(256) as u8; self.below(400) as usize];
                        batch.put(key(number), value.clone());
                        model.keys.insert(number, value);
                    }
                }
            }
        }
        Ok(())
    }

    fn fresh(&mut self, count: u64) -> u64 {
        self.words += count + 1;
        self.words - count
    }

    /// One commit, which stands or is told to have failed.
    async fn write(&mut self) {
        let mut model = self.model.clone();
        let mut batch = Batch::new();
        for _ in 0..1 + self.below(3) {
            match self.change(&mut batch, &mut model).await {
                Ok(()) => {}
                Err(BucketError::NoSpace) => return self.make_space().await,
                Err(BucketError::NotReady(_)) if self.down.is_some() => return self.bring_back().await,
                Err(error) => panic!("stage: {error}; {:?}", self.bucket.stats()),
            }
        }
        match self.bucket.commit(batch).await {
            Ok(seq) => {
                self.bucket.settled(seq).await.expect("it stands");
                self.model = model;
            }
            Err(BucketError::NoSpace) => self.make_space().await,
            Err(BucketError::NotReady(_)) if self.down.is_some() => self.bring_back().await,
            Err(error) => panic!("commit: {error}; {:?}", self.bucket.stats()),
        }
    }

    async fn make_space(&mut self) {
        let number = self.below(FILES);
        let range = self.range(FILE_BLOCKS / 2);
        let mut batch = Batch::new();
        batch.punch(file(number), range.clone());
        let seq = self.bucket.commit(batch).await.expect("a full bucket can be emptied");
        self.bucket.settled(seq).await.expect("it stands");
        self.model.blocks.retain(|(at, block), _| *at != number || !range.contains(block));
    }

    async fn read(&mut self, number: u64, range: Range<u64>) {
        let found = self.bucket.read_blocks(file(number), range.clone()).await;
        let found = found.unwrap_or_else(|error| panic!("read: {error}; {:?}", self.bucket.stats()));
        let mut at = range.start;
        for extent in found {
            assert_eq!(extent.first_block, at);
            for i in 0..extent.blocks {
                let expected = self.model.blocks.get(&(number, at + i)).copied().unwrap_or(0);
                let word = extent.data.as_ref().map_or(0, |data| {
                    let block = &data[i as usize * BLOCK_BYTES..(i as usize + 1) * BLOCK_BYTES];
                    u64::from_le_bytes(block[..8].try_into().expect("8"))
                });
                assert_eq!(word, expected, "file {number} block {}", at + i);
            }
            at += extent.blocks;
        }
        assert_eq!(at, range.end);
    }

    async fn look(&mut self) {
        self.bucket.readable().await.expect("readable");
        let number = self.below(FILES);
        match self.below(4) {
            0 => {
                let count = 1 + self.below(100);
                let range = self.range(count);
                self.read(number, range).await;
            }
            1 => {
                let number = self.below(KEYS);
                let found = self.bucket.get(&key(number)).await.expect("get");
                assert_eq!(found.as_deref(), self.model.keys.get(&number).map(|value| &value[..]));
            }
            2 => {
                let (from, to, limit) = (self.below(KEYS), self.below(KEYS + 1), 1 + self.below(40) as usize);
                let found = self.bucket.scan(&key(from), &key(to), limit).await.expect("scan");
                let found: Vec<_> = found.iter().map(|(key, value)| (key.clone(), value.to_vec())).collect();
                let expected = self.model.keys.iter().filter(|(number, _)| (from..to).contains(number));
                let expected: Vec<_> =
                    expected.take(limit).map(|(number, value)| (key(*number), value.clone())).collect();
                assert_eq!(found, expected);
            }
            _ => {
                let from = self.below(FILE_BLOCKS);
                let hole = self.below(2) == 0;
                let found = self.bucket.seek(file(number), from, FILE_BLOCKS, hole).await.expect("seek");
                let expected =
                    (from..FILE_BLOCKS).find(|block| self.model.blocks.contains_key(&(number, *block)) != hole);
                assert_eq!(found, expected, "file {number} from {from} hole {hole}");
            }
        }
    }

    /// Everything, and what the bucket says of itself.
    async fn verify(&mut self, when: &str) {
        self.bucket.readable().await.expect("readable");
        for number in 0..FILES {
            self.read(number, 0..FILE_BLOCKS).await;
            let blocks = self.model.blocks.keys().filter(|(at, _)| *at == number).count();
            assert_eq!(self.bucket.count_blocks(file(number)).await.expect("count"), blocks as u64, "{when}");
        }
        let found = self.bucket.scan(&key(0), &key(KEYS), usize::MAX).await.expect("scan");
        assert_eq!(found.len(), self.model.keys.len(), "{when}");
        for (number, value) in &self.model.keys {
            assert_eq!(self.bucket.get(&key(*number)).await.expect("get").as_deref(), Some(&value[..]), "{when}");
        }
        let checked = self.bucket.check().await.expect("check");
        assert_eq!(checked.problems, Vec::<String>::new(), "{when}: {:?}", self.bucket.stats());
    }

    async fn bring_back(&mut self) {
        if let Some(back) = self.down.take() {
            back.await.expect("nobody stops it");
            self.rig.handle.sleep(Duration::from_secs(3)).await;
        }
    }

    /// Shards that the most exposed stripe lacks.
    fn exposed(&self) -> u64 {
        let counts = self.bucket.stats().stripes_by_missing;
        let most = counts.iter().rposition(|count| *count > 0).unwrap_or(0) as u64;
        most.max(self.lost.iter().filter(|lost| self.rig.is_member(**lost)).count() as u64)
    }

    /// A node that may go now, but not the leader's own: no stripe may lack more than P shards, and the journal needs
    /// three of its four drives.
    fn victim(&mut self) -> Option<u16> {
        let node = 1 + self.below(u64::from(NODES) - 1) as u16;
        let journal = node < ENSEMBLE && self.lost.iter().any(|lost| *lost < ENSEMBLE);
        let room = self.down.is_none() && self.exposed() < u64::from(PROTECTION.parity);
        (room && !journal && !self.lost.contains(&node)).then_some(node)
    }

    /// A node dies, and the map says so; for good, or until it is found again. Others take its place if they can.
    fn lose_node(&mut self) {
        let Some(node) = self.victim() else { return };
        self.rig.stop_node(node);
        let failed = self.below(2) == 0;
        self.rig.set_state(node, if failed { State::Failed } else { State::Away });
        self.lost.push(node);
        if failed && self.below(4) > 0 {
            self.rig.replace(node);
        }
        self.rig.tell(&self.bucket);
    }

    /// It is there again, with whatever it had.
    async fn find_node(&mut self) {
        if self.lost.is_empty() {
            return;
        }
        let at = self.below(self.lost.len() as u64) as usize;
        let node = self.lost.swap_remove(at);
        self.rig.restart_node(node).await;
        self.rig.set_state(node, State::Up);
        self.rig.tell(&self.bucket);
    }

    /// Waits until all stripes have all their shards, if there are drives for them.
    async fn find_all(&mut self) {
        self.bring_back().await;
        while !self.lost.is_empty() {
            self.find_node().await;
        }
        while self.bucket.stats().stripes_by_missing[1..].iter().any(|count| *count > 0) {
            self.rig.handle.sleep(Duration::from_millis(100)).await;
        }
    }

    fn take_away(&mut self) {
        let Some(node) = self.victim() else { return };
        let time = Duration::from_millis(self.below(20_000));
        let rig = Rc::clone(&self.rig);
        rig.stop_node(node);
        let back = self.rig.handle.spawn("comes back", async move {
            rig.handle.sleep(time).await;
            rig.restart_node(node).await;
        });
        self.down = Some(back);
    }

    /// The power fails while writes are under way: those that were answered stand, and of the others the first few.
    async fn lose_power(&mut self) {
        let keeps = match self.below(3) {
            0 => CrashKeeps::Nothing,
            1 => CrashKeeps::Everything,
            _ => CrashKeeps::Some { seed: self.below(1 << 30) },
        };
        let mut models = vec![self.model.clone()];
        let answered = Rc::new(Cell::new(0));
        let mut batches = Vec::new();
        for number in 1..=1 + self.below(8) {
            let mut model = models.last().expect("the first").clone();
            let mut batch = Batch::new();
            if self.change(&mut batch, &mut model).await.is_err() {
                break;
            }
            batch.put(key(KEYS), number.to_be_bytes().to_vec());
            models.push(model);
            batches.push(batch);
        }
        let (bucket, count) = (self.bucket.clone(), Rc::clone(&answered));
        let writes = self.rig.handle.spawn("writes", async move {
            let (bucket, count) = (&bucket, &count);
            let handle = bucket.handle().clone();
            for batch in batches {
                let Ok(seq) = bucket.commit(batch).await else { return };
                let (bucket, count) = (bucket.clone(), Rc::clone(count));
                let settled = async move {
                    if bucket.settled(seq).await.is_ok() {
                        count.set(count.get() + 1);
                    }
                };
                handle.spawn("settles", settled).detach();
            }
        });
        let time = Duration::from_micros(self.below(1500));
        self.rig.handle.sleep(time).await;
        writes.abort();
        let answered = answered.get();
        self.bucket.close();
        self.rig.crash(keeps).await;
        self.bucket = self.rig.open().await;
        let mark = self.bucket.get(&key(KEYS)).await.expect("get");
        let stand = mark.map_or(0, |mark| u64::from_be_bytes(mark[..].try_into().expect("8")) as usize);
        assert!(answered <= stand, "{answered} were answered, {stand} stand");
        self.model = models.swap_remove(stand);
        let mut batch = Batch::new();
        batch.delete(key(KEYS));
        let seq = self.bucket.commit(batch).await.expect("commit");
        self.bucket.settled(seq).await.expect("it stands");
        self.verify("after power loss").await;
    }

    /// Blocks of up to two drives change by themselves; scrub finds them and all is repaired.
    async fn damage(&mut self) {
        for _ in 0..PROTECTION.parity {
            let node = self.below(u64::from(NODES)) as usize;
            for _ in 0..1 + self.below(400) {
                // Zones lie behind whatever else the drive keeps.
                let offset = DRIVE_BYTES / 4 + self.below(DRIVE_BYTES / 4 * 3);
                self.rig.media[node].corrupt(offset, 0x11);
            }
        }
        let found = loop {
            match self.bucket.scrub().await.expect("scrub") {
                found if found.damaged == 0 => break found,
                _ => self.rig.handle.sleep(Duration::from_millis(500)).await,
            }
        };
        assert_eq!(found.unreachable_shards, 0);
        let checked = self.bucket.check().await.expect("check");
        assert_eq!(checked.problems, Vec::<String>::new());
        assert_eq!(self.bucket.stats().lost_stripes, 0);
    }

    async fn disturb(&mut self) {
        match self.below(14) {
            9..=11 => self.lose_node(),
            12 => self.find_node().await,
            13 => self.find_all().await,
            0 => {
                self.bring_back().await;
                self.lose_power().await;
            }
            8 => {
                self.find_all().await;
                self.damage().await;
            }
            1 => {
                self.bring_back().await;
                if self.below(2) == 0 {
                    let before = self.bucket.stats();
                    let done = self.bucket.finish().await;
                    done.unwrap_or_else(|error| panic!("{error}; {before:?}; {:?}", self.bucket.stats()));
                }
                let old = self.bucket.clone();
                self.bucket = self.rig.open().await;
                let mut batch = Batch::new();
                batch.put(key(0), vec![0xee]);
                if let Ok(seq) = old.commit(batch).await {
                    assert!(old.settled(seq).await.is_err(), "an old leader writes");
                }
                old.close();
            }
            2 | 3 if self.down.is_none() => self.take_away(),
            4 => {
                let time = Duration::from_millis(self.below(3000));
                self.rig.handle.sleep(time).await;
            }
            5 => self.verify("in between").await,
            _ => self.bring_back().await,
        }
    }
}

fn small(seed: u64) -> Tunables {
    Tunables {
        memtable_bytes_max: 16 << 10,
        cache_bytes_max: 64 << 10,
        views_bytes_max: 16 << 10,
        held_bytes_max: 1 << 20,
        checkpoint_share: 8 + seed % 24,
        runs_max: 2 + (seed % 3) as usize,
        // Every third is so small that it fills up.
        zone_sets_max: if seed.is_multiple_of(3) { 6 } else { 9 + (seed % 5) as usize },
        ..Tunables::default()
    }
}

fn add(sum: &mut Stats, stats: &Stats) {
    sum.cleaned_sets += stats.cleaned_sets;
    sum.merges += stats.merges;
    sum.checkpoints += stats.checkpoints;
    sum.reconstructions += stats.reconstructions;
    sum.destaged_blocks += stats.destaged_blocks;
    sum.repaired_stripes += stats.repaired_stripes;
    sum.rebuilt_shards += stats.rebuilt_shards;
}

fn live(seed: u64, steps: u64) -> Stats {
    let time = VirtualTime::new(seed);
    time.block_on(async {
        let rig = Rig::new(time.handle(), small(seed)).await;
        let mut life = Life::new(Rc::new(rig), seed).await;
        let mut stats = Stats::default();
        for step in 0..steps {
            let (handle, bucket) = (time.handle(), life.bucket.clone());
            let ended = match life.below(20) {
                0 if step > 20 => {
                    add(&mut stats, &bucket.stats());
                    handle.timeout(PATIENCE, life.disturb()).await
                }
                1..=6 => handle.timeout(PATIENCE, life.look()).await,
                _ => handle.timeout(PATIENCE, life.write()).await,
            };
            assert!(ended.is_ok(), "step {step} never ends: {:?}", bucket.stats());
        }
        life.find_all().await;
        life.verify("at the end").await;
        life.rig.handle.sleep(Duration::from_secs(5)).await;
        let checked = life.bucket.check().await.expect("check");
        assert_eq!((checked.exposed_most, checked.leaked_zones), (0, 0), "{checked:?} {:?}", life.bucket.stats());
        add(&mut stats, &life.bucket.stats());
        life.bucket.finish().await.expect("the last checkpoint");
        life.bucket = life.rig.open().await;
        life.verify("after the last checkpoint").await;
        stats
    })
}

#[test]
fn random_lives_end_as_the_model_says() {
    let mut sum = Stats::default();
    let seeds: Vec<u64> = match std::env::var("WEFT_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=6).collect(),
    };
    let alone = seeds.len() == 1;
    for seed in seeds {
        eprintln!("seed {seed}");
        let stats = live(seed, 500);
        add(&mut sum, &stats);
    }
    let happened = [
        sum.cleaned_sets,
        sum.merges,
        sum.checkpoints,
        sum.destaged_blocks,
        sum.repaired_stripes,
        sum.reconstructions,
        sum.rebuilt_shards,
    ];
    assert!(alone || happened.iter().all(|count| *count > 0), "something never happened: {happened:?}");
}
