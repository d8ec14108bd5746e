//! How many operations a second one thread does on its hot paths, over drives and a network in memory that take no
//! time: the bucket's own cost, the journal's and the drives' included. Under callgrind, name one path:
//!
//! `cargo run --release -p weft-bucket --example hot_paths -- [commit|read|put|get|rebuild] [operations]`

use bytes::Bytes;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use weft_bucket::{Batch, Bucket, BucketError, BucketParams, KeyBuilder, Object, Tag, Tunables};
use weft_drive::mem::{MemMedia, MemOptions};
use weft_drive::{Drive, DriveOptions, DriveServer, DriveService, FormatOptions, FormattedDrive};
use weft_reactor::Handle;
use weft_reactor::testing::VirtualTime;
use weft_transport::memory::MemoryNetwork;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::map::{Ensemble, Protection, State};
use weft_wire::*;

const CLUSTER: Uuid = Uuid(0xc1);
const NODES: u16 = 7;
/// The first of them are members; the last one takes the place of one that is lost.
const SHARDS: u16 = 6;
const FILE: Object = Object { fs: FsId(1), inode: InodeId(7) };
/// Blocks of the file that is written and read.
const FILE_BLOCKS: u64 = 16384;
/// Operations under way at a time.
const DEPTH: u64 = 32;

fn core(node: u16) -> CoreId {
    CoreId { node: NodeId(node), core: 0 }
}

async fn open(handle: &Handle) -> Bucket {
    let network = MemoryNetwork::new(handle.clone());
    // A nanosecond: virtual time must go on.
    network.set_latency(Duration::from_nanos(1), Duration::from_nanos(1));
    let mut leader = None;
    for node in 0..NODES {
        let drive: Rc<dyn Drive> = MemMedia::new(MemOptions::instant(1 << 30)).open(handle);
        let (uuid, drive_id) = (Uuid(u128::from(node) + 1), DriveId(u32::from(node)));
        let options = FormatOptions { cluster: CLUSTER, node: NodeId(node), drive: drive_id, uuid, force: false };
        FormattedDrive::format(&drive, options).await.expect("format");
        let formatted = FormattedDrive::open(drive).await.expect("open");
        let service = DriveService::new();
        service.add(DriveServer::new(formatted, handle.clone(), Incarnation(1), DriveOptions::default()));
        let here = network.node(core(node));
        service.serve(&*here);
        leader.get_or_insert(here);
    }
    let params = BucketParams {
        cluster: CLUSTER,
        id: BucketId(0),
        epoch: Epoch(1),
        protection: Protection { data: 4, parity: 2 },
        members: (0..u32::from(SHARDS)).map(DriveId).collect(),
        states: Rc::new((0..u32::from(NODES)).map(|drive| (DriveId(drive), State::Up)).collect()),
        ensembles: vec![Ensemble { since: Epoch(1), drives: (0..4).map(DriveId).collect() }],
        zone_rows: 256,
        find: Rc::new(|drive| Some(core(drive.0 as u16))),
        beats: Rc::default(),
        journal: Default::default(),
        tunables: Tunables { zone_sets_max: 200, ..Tunables::default() },
    };
    let network = leader.expect("the first node");
    Bucket::open(params, network, handle.clone(), |_| {}).await.expect("open")
}

/// Loses a member and waits until all it had is on another drive.
async fn rebuild(bucket: &Bucket) {
    let lost = DriveId(u32::from(SHARDS) - 1);
    let mut members: Vec<DriveId> = (0..u32::from(SHARDS)).map(DriveId).collect();
    let mut states: BTreeMap<DriveId, State> = (0..u32::from(NODES)).map(|id| (DriveId(id), State::Up)).collect();
    states.insert(lost, State::Failed);
    members.iter_mut().filter(|member| **member == lost).for_each(|member| *member = DriveId(u32::from(SHARDS)));
    let start = Instant::now();
    bucket.set_members(members, Rc::new(states));
    while bucket.stats().stripes_by_missing[0] < bucket.stats().stripes {
        bucket.handle().sleep(Duration::from_micros(10)).await;
    }
    let (bytes, took) = (bucket.stats().rebuilt_bytes, start.elapsed());
    println!(" rebuild: {bytes} bytes in {took:?}: {:.2} s a GB", took.as_secs_f64() * 1e9 / bytes as f64);
}

fn key(number: u64) -> Bytes {
    KeyBuilder::new(FsId(1), Tag::Inode).u64(number).build()
}

/// Scatters numbers over 0..end.
fn scatter(number: u64, end: u64) -> u64 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % end
}

async fn operate(bucket: &Bucket, path: &str, number: u64, data: &Bytes) -> Result<(), BucketError> {
    match path {
        "commit" => {
            let mut batch = Batch::new();
            batch.write_blocks(FILE, scatter(number, FILE_BLOCKS), data.clone());
            batch.put(key(1), data.slice(..200));
            bucket.settled(bucket.commit(batch).await?).await
        }
        "read" => {
            let block = scatter(number, FILE_BLOCKS);
            bucket.read_blocks(FILE, block..block + 1).await?;
            bucket.readable().await
        }
        "put" => {
            let mut batch = Batch::new();
            batch.put(key(number), data.slice(..200));
            bucket.settled(bucket.commit(batch).await?).await
        }
        _ => {
            bucket.get(&key(scatter(number, 100_000))).await?;
            bucket.readable().await
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let wanted = arguments.next();
    let operations: u64 = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(20_000);
    let paths = ["commit", "read", "put", "get"];
    let time = VirtualTime::new(1);
    let handle = time.handle();
    time.block_on(async {
        let bucket = open(&handle).await;
        let data = Bytes::from(vec![7; BLOCK_BYTES]);
        for slab in 0..FILE_BLOCKS / 256 {
            let contents = Bytes::from(vec![slab as u8; 256 * BLOCK_BYTES]);
            let staged = bucket.stage(FILE, slab * 256, contents).await.expect("stage");
            let mut batch = Batch::new();
            batch.place(FILE, slab * 256, staged);
            bucket.commit(batch).await.expect("commit");
        }
        for path in paths.into_iter().filter(|path| wanted.as_deref().is_none_or(|wanted| wanted == *path)) {
            let start = Instant::now();
            let workers: Vec<_> = (0..DEPTH)
                .map(|worker| {
                    let (bucket, data) = (bucket.clone(), data.clone());
                    handle.spawn("worker", async move {
                        for number in (worker..operations).step_by(DEPTH as usize) {
                            operate(&bucket, path, number, &data).await.expect("done");
                        }
                    })
                })
                .collect();
            for worker in workers {
                worker.await.expect("nobody stops it");
            }
            let each = start.elapsed() / operations.max(1) as u32;
            println!("{path:>8}: {:>8.0} a second, {each:?} each", 1.0 / each.as_secs_f64().max(1e-9));
        }
        if wanted.as_deref().is_none_or(|wanted| wanted == "rebuild") {
            rebuild(&bucket).await;
        }
        println!("{:?}", bucket.stats());
    });
}
