//! The format as it stands in docs/on-drive-format.md: a small drive, byte by byte.
//! With `WEFT_BLESS=1` the golden file is written instead of compared.

mod common;

use common::*;
use std::fmt::Write;
use weft_drive::mem::{MemMedia, MemOptions};
use weft_drive::{ConfigSlot, Drive, FormattedDrive};
use weft_reactor::AlignedBuf;
use weft_reactor::testing::VirtualTime;
use weft_wire::drive::*;
use weft_wire::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/format-v1.txt");
const LINE_BYTES: usize = 32;

async fn make(media: &MemMedia, handle: &weft_reactor::Handle) {
    format(media, handle).await;
    let server = serve(media, handle, 7).await;
    server.formatted().config_store(ConfigSlot::Map, b"a map").await.unwrap();
    server.formatted().config_store(ConfigSlot::Map, b"a newer map").await.unwrap();
    assert_eq!(Appending::batch(3, 1, 1, 100).to(&server).await, APPENDED);
    let root = Appending { kind: RecordKind::Root, trim_below: 1, as_epoch: 2, ..Appending::batch(3, 1, 2, 50) };
    assert_eq!(root.to(&server).await, APPENDED);
    tail(&server, 5, 9).await;
    let first = open_zone(&server, 3, 2, 10).await;
    open_zone(&server, 5, 9, 11).await;
    assert_eq!(free_zone(&server, 3, 2, first).await, DriveReply::Freed);
}

/// Lines of blocks that aren't zero: byte of the drive, content.
fn dump(media: &MemMedia) -> String {
    let all = media.peek(0, SMALLEST_BYTES as usize);
    let mut text = String::new();
    for (index, line) in all.chunks(LINE_BYTES).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0)) {
        write!(text, "{:08x} ", index * LINE_BYTES).unwrap();
        line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    text
}

fn load(text: &str) -> Vec<u8> {
    let mut all = vec![0; SMALLEST_BYTES as usize];
    for line in text.lines() {
        let (at, bytes) = line.split_once(' ').unwrap();
        let at = usize::from_str_radix(at, 16).unwrap();
        for (index, byte) in bytes.as_bytes().chunks(2).enumerate() {
            all[at + index] = u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 16).unwrap();
        }
    }
    all
}

#[test]
fn the_format_is_what_the_golden_file_says() {
    let time = VirtualTime::new(1);
    let handle = time.handle();
    let media = MemMedia::new(MemOptions::instant(SMALLEST_BYTES));
    time.block_on(make(&media, &handle));
    let made = dump(&media);
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(GOLDEN, &made).unwrap();
    }
    assert!(made == std::fs::read_to_string(GOLDEN).unwrap(), "the format changed; see the head of this file");
}

#[test]
fn the_golden_drive_is_read() {
    let time = VirtualTime::new(1);
    let handle = time.handle();
    let media = MemMedia::new(MemOptions::instant(SMALLEST_BYTES));
    time.block_on(async {
        let all = AlignedBuf::copy_of(&load(&std::fs::read_to_string(GOLDEN).unwrap())).freeze();
        let drive = media.open(&handle);
        weft_drive::device::outcome(drive.write_durable(0, vec![all])).await.unwrap();
        let formatted = FormattedDrive::open(drive).await.unwrap();
        assert_eq!((formatted.cluster(), formatted.id()), (CLUSTER, DRIVE));
        assert_eq!(formatted.config_load(ConfigSlot::Map).await.unwrap().as_deref(), Some(&b"a newer map"[..]));
        let server = serve(&media, &handle, 8).await;
        let held = tail(&server, 3, 2).await;
        assert_eq!((held.first, held.last, held.root), (Seq(1), Seq(2), Some(Seq(2))));
        assert_eq!(read_tail(&server, 3, 1).await.seqs(), [1, 2]);
        assert_eq!(seal(&server, 5, 8).await, DriveReply::Refused(DriveRefusal::Sealed(Epoch(9))));
        let DriveReply::Zones(zones) = ask(&server, 5, DriveOp::ListZones, bytes::Bytes::new()).await.0 else {
            panic!()
        };
        assert_eq!((zones.len(), zones[0].zone_set, zones[0].epoch), (1, ZoneSetId(11), Epoch(9)));
    });
}
