//! Drives on real files: what is written is there, who has it has it alone, and errors say what to do.

mod common;

use bytes::Bytes;
use common::*;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use weft_drive::device::outcome;
use weft_drive::inspect::inspect_file;
use weft_drive::uring::{ClaimError, UringDrive};
use weft_drive::volatile::VolatileCache;
use weft_drive::{Drive, DriveError, DriveOptions, DriveServer, FormattedDrive, OpenError};
use weft_reactor::{AlignedBuf, Core, CoreOptions, Handle, Idle};
use weft_wire::drive::*;
use weft_wire::*;

/// A path that nobody uses; removed in the end.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Handle) -> F) {
    let idle = Idle::Adaptive { spin: Duration::ZERO };
    let mut core = Core::new(CoreOptions { name: "test".into(), idle, seed: 1, pin: None }).unwrap();
    let handle = core.handle();
    let task = handle.spawn("test", test(handle.clone()));
    let watch = handle.clone();
    let watched = handle.spawn("watch", async move {
        let ended = task.await;
        watch.shutdown();
        ended
    });
    core.run().unwrap();
    assert!(watched.is_finished());
}

fn claim(path: &Path, handle: &Handle) -> Rc<UringDrive> {
    let drive = UringDrive::open(path).unwrap();
    handle.add_poller(drive.poller());
    drive
}

fn block(fill: u8, blocks: usize) -> Bytes {
    let mut buffer = AlignedBuf::with_len(blocks * 4096);
    buffer.as_mut_slice().fill(fill);
    buffer.freeze()
}

#[test]
fn blocks_are_read_as_written() {
    let file = TempFile::new("blocks");
    UringDrive::create(&file.0, 64 << 20).unwrap();
    let path = file.0.clone();
    run(move |handle| async move {
        let drive = claim(&path, &handle);
        assert_eq!(drive.capacity_bytes(), 64 << 20);
        let many = (0..600_u64).map(|n| outcome(drive.write(n * 8192, vec![block(n as u8, 1), block(1, 1)])));
        assert!(weft_reactor::join_all(many).await.iter().all(Result::is_ok));
        outcome(drive.flush()).await.unwrap();
        outcome(drive.write_durable(8192, vec![block(77, 2)])).await.unwrap();
        for n in [0_u64, 1, 300, 599] {
            let content = outcome(drive.read(n * 8192, 8192)).await.unwrap();
            let expected = if n == 1 { block(77, 2) } else { [block(n as u8, 1), block(1, 1)].concat().into() };
            assert_eq!(content, expected, "{n}");
        }
        outcome(drive.discard(8192, 4096)).await.unwrap();
        assert_eq!(outcome(drive.read(8192, 8192)).await.unwrap(), [block(0, 1), block(77, 1)].concat());
        let beyond = outcome(drive.read(64 << 20, 4096)).await;
        assert!(matches!(beyond, Err(DriveError::Bounds { .. })));
        let unaligned = outcome(drive.write(0, vec![block(1, 2).slice(1..4097)])).await;
        assert!(matches!(unaligned, Err(DriveError::Bounds { .. })));
    });
}

#[test]
fn a_server_on_a_file_serves_what_it_stored() {
    let file = TempFile::new("server");
    UringDrive::create(&file.0, 64 << 20).unwrap();
    let path = file.0.clone();
    run(move |handle| async move {
        let drive: Rc<dyn Drive> = claim(&path, &handle);
        FormattedDrive::format(&drive, format_options()).await.unwrap();
        let formatted = FormattedDrive::open(drive).await.unwrap();
        let server =
            DriveServer::new(formatted, handle.clone(), Incarnation(1), DriveOptions { lease: Duration::ZERO });
        let appends = (0..40).map(|bucket| Appending::batch(bucket, 1, 1, 5000).to(&server));
        assert!(weft_reactor::join_all(appends).await.iter().all(|reply| *reply == APPENDED));
        assert_eq!(Appending::batch(0, 1, 2, 300_000).to(&server).await, APPENDED);
        let zone = open_zone(&server, 3, 1, 10).await;
        assert_eq!(write_shard(&server, 3, 1, zone, 4, payload(9, 65536)).await, DriveReply::Written);
        drop(server);

        let report = inspect_file(&path).unwrap();
        assert_eq!(report.problem, None);
        let found = report.drive.unwrap();
        assert_eq!((found.buckets.len(), found.buckets[0].records, found.buckets[3].zones), (40, 2, 1));
        assert!(found.buckets.iter().all(|bucket| bucket.records_damaged == 0));
        let formatted = FormattedDrive::open(claim(&path, &handle)).await.unwrap();
        let server = DriveServer::new(formatted, handle, Incarnation(2), DriveOptions { lease: Duration::ZERO });
        assert_eq!(read_tail(&server, 0, 1).await.seqs(), [1, 2]);
        assert_eq!(read_tail(&server, 39, 1).await.seqs(), [1]);
        assert_eq!(read_shard(&server, 3, zone, 4, 16).await, (DriveReply::Blocks, payload(9, 65536)));
    });
}

#[test]
fn a_volatile_cache_loses_exactly_what_was_not_flushed() {
    let file = TempFile::new("volatile");
    UringDrive::create(&file.0, 64 << 20).unwrap();
    let path = file.0.clone();
    run(move |handle| async move {
        let cache = VolatileCache::new(claim(&path, &handle), handle.clone());
        outcome(cache.write(0, vec![block(1, 3)])).await.unwrap();
        outcome(cache.flush()).await.unwrap();
        assert_eq!(cache.unflushed_blocks(), 0);
        outcome(cache.write(4096, vec![block(2, 1)])).await.unwrap();
        outcome(cache.write_durable(8192, vec![block(3, 1)])).await.unwrap();
        let all = [block(1, 1), block(2, 1), block(3, 1)].concat();
        assert_eq!(outcome(cache.read(0, 12288)).await.unwrap(), all);
        assert_eq!(cache.unflushed_blocks(), 1);
        drop(cache);
        let drive = claim(&path, &handle);
        let kept = [block(1, 2), block(3, 1)].concat();
        assert_eq!(outcome(drive.read(0, 12288)).await.unwrap(), kept);
    });
}

#[test]
fn a_drive_belongs_to_one_process() {
    let file = TempFile::new("claimed");
    UringDrive::create(&file.0, 64 << 20).unwrap();
    let first = UringDrive::open(&file.0).unwrap();
    assert!(matches!(UringDrive::open(&file.0), Err(ClaimError::InUse { .. })));
    drop(first);
    assert!(UringDrive::open(&file.0).is_ok());
}

#[test]
fn what_is_no_drive_is_refused() {
    let file = TempFile::new("refused");
    assert!(matches!(UringDrive::open(&file.0), Err(ClaimError::Open { .. })));
    assert!(matches!(UringDrive::open(Path::new("/dev/null")), Err(ClaimError::NotADrive { .. })));
    UringDrive::create(&file.0, 64 << 20).unwrap();
    assert!(matches!(UringDrive::create(&file.0, 64 << 20), Err(ClaimError::Create { .. })));
}

#[test]
fn a_truncated_file_is_told_from_a_blank_and_a_foreign_one() {
    let file = TempFile::new("truncated");
    let path = file.0.clone();
    run(move |handle| async move {
        let resize = |bytes| std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        std::fs::write(&path, b"").unwrap();
        assert_eq!(FormattedDrive::open(claim(&path, &handle)).await.err(), Some(OpenError::Blank));
        resize(64 << 20);
        assert_eq!(FormattedDrive::open(claim(&path, &handle)).await.err(), Some(OpenError::Blank));
        let drive: Rc<dyn Drive> = claim(&path, &handle);
        FormattedDrive::format(&drive, format_options()).await.unwrap();
        drop(drive);
        resize(48 << 20);
        let truncated = OpenError::Truncated { expected_bytes: 64 << 20, actual_bytes: 48 << 20 };
        assert_eq!(FormattedDrive::open(claim(&path, &handle)).await.err(), Some(truncated));
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(FormattedDrive::open(claim(&path, &handle)).await.err(), Some(OpenError::Foreign));
    });
}
