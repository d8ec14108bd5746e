//! What journals and drives say to each other, byte by byte: whoever changes it by accident learns it here, and whoever
//! means to raises `PROTOCOL_VERSION`. With `WEFT_BLESS=1` the golden file is written instead of compared.

use std::fmt::{Debug, Write};
use weft_wire::drive::*;
use weft_wire::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/drive-v1.txt");

/// A line for each message: its bytes, then what it is.
fn line<T>(text: &mut String, value: &T)
where
    T: Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    let bytes = encode(value);
    assert_eq!(decode::<T>(&bytes).as_ref(), Ok(value), "it is read as it was written");
    bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
    writeln!(text, " {value:?}").unwrap();
}

fn header(kind: RecordKind) -> RecordHeader {
    let (epoch, seq, acknowledged) = (Epoch(300), Seq(70_000), Seq(69_999));
    RecordHeader { epoch, seq, kind, acknowledged, len_bytes: 4096, checksum: 0xdead_beef }
}

fn requests() -> Vec<DriveOp> {
    let (epoch, zone, generation, zone_set) = (Epoch(300), ZoneIndex(5), Generation(2), ZoneSetId(17));
    let records = vec![header(RecordKind::Batch), header(RecordKind::EpochStart), header(RecordKind::Root)];
    vec![
        DriveOp::Append { as_epoch: epoch, records, trim_below: Seq(128), promise: true },
        DriveOp::Seal { epoch },
        DriveOp::ReadTail { from: Seq(1), bytes_max: 1 << 20 },
        DriveOp::OpenZone { epoch, zone_set, shard: 3 },
        DriveOp::FreeZone { epoch, zone, generation },
        DriveOp::ListZones,
        DriveOp::WriteShard { epoch, zone, generation, block: 64 },
        DriveOp::ReadShard { zone, generation, block: 64, blocks: 8 },
        DriveOp::Stat,
        DriveOp::Release { epoch },
    ]
}

fn replies() -> Vec<DriveReply> {
    let (zone, generation, zone_set) = (ZoneIndex(5), Generation(2), ZoneSetId(17));
    let tail = TailSummary { first: Seq(1), last: Seq(70_000), acknowledged: Seq(69_999), root: Some(Seq(128)) };
    let info = ZoneInfo { zone, generation, zone_set, shard: 3, epoch: Epoch(300), written_blocks: 72 };
    let refusals = [
        DriveRefusal::NotHere,
        DriveRefusal::OtherCluster,
        DriveRefusal::Sealed(Epoch(301)),
        DriveRefusal::Promised { retry_ms: 150 },
        DriveRefusal::Gone(Generation(3)),
        DriveRefusal::WrittenBefore,
        DriveRefusal::ZoneClosed,
        DriveRefusal::NoZone,
        DriveRefusal::RingFull,
        DriveRefusal::Bounds("block 300".into()),
        DriveRefusal::Io("EIO".into()),
        DriveRefusal::Failing("EIO".into()),
    ];
    let mut replies = vec![
        DriveReply::Appended { promised: true },
        DriveReply::Sealed { tail },
        DriveReply::Tail { records: vec![header(RecordKind::Root)], unreadable: vec![Seq(9)], more: true },
        DriveReply::Zone { zone, generation, blocks: 256 },
        DriveReply::Freed,
        DriveReply::Zones(vec![info]),
        DriveReply::Written,
        DriveReply::Blocks,
        DriveReply::Stat(DriveStat { zones: 2048, zones_free: 2000, zone_bytes: 1 << 20, ..DriveStat::default() }),
        DriveReply::Released,
    ];
    replies.extend(refusals.map(DriveReply::Refused));
    replies
}

#[test]
fn messages_of_drives_are_what_the_golden_file_says() {
    let mut text = format!("protocol version {PROTOCOL_VERSION}\n");
    for op in requests() {
        line(&mut text, &DriveRequest { cluster: Uuid(0xc1), drive: DriveId(4), bucket: BucketId(300), op });
    }
    replies().iter().for_each(|reply| line(&mut text, reply));
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(GOLDEN, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(GOLDEN).unwrap(), "messages changed; see the head of this file");
}
