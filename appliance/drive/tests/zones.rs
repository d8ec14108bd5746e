//! Zones as leaders see them: handed out durably, written once, gone when freed.

mod common;

use bytes::Bytes;
use common::*;
use weft_drive::mem::CrashKeeps;
use weft_reactor::testing::VirtualTime;
use weft_wire::drive::*;
use weft_wire::*;

#[test]
fn shards_survive_a_power_loss_and_old_zones_are_closed() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        let zone = open_zone(&server, 3, 1, 10).await;
        assert_eq!(open_zone(&server, 3, 1, 10).await, zone, "asked again, answered the same");
        let other = open_zone(&server, 3, 1, 11).await;
        assert_ne!(zone, other);
        let before = media.counters();
        let writes = (0..32).map(|n| write_shard(&server, 3, 1, zone, n * 2, payload(u64::from(n), 8192)));
        assert!(weft_reactor::join_all(writes).await.iter().all(|reply| *reply == DriveReply::Written));
        let flushes = media.counters().flushes - before.flushes;
        assert!(flushes <= 2, "{flushes} flushes");
        drop(server);
        media.crash(CrashKeeps::Nothing);
        let server = serve(&media, &handle, 2).await;
        for n in 0..32 {
            let (reply, body) = read_shard(&server, 3, zone, n * 2, 2).await;
            assert_eq!((reply, body), (DriveReply::Blocks, payload(u64::from(n), 8192)));
        }
        assert_eq!(open_zone(&server, 3, 1, 10).await, zone);
        let closed = DriveReply::Refused(DriveRefusal::ZoneClosed);
        assert_eq!(write_shard(&server, 3, 1, zone, 100, payload(1, 4096)).await, closed);
        let DriveReply::Zones(zones) = ask(&server, 3, DriveOp::ListZones, Bytes::new()).await.0 else { panic!() };
        assert_eq!(zones.iter().map(|info| info.zone_set).collect::<Vec<_>>(), [ZoneSetId(10), ZoneSetId(11)]);
        assert_eq!(zones[0].written_blocks, 256);
    });
}

#[test]
fn a_location_is_written_once() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        let zone = open_zone(&server, 3, 2, 10).await;
        let data = payload(5, 16384);
        let twice = [(); 2].map(|()| write_shard(&server, 3, 2, zone, 4, data.clone()));
        assert_eq!(weft_reactor::join_all(twice).await, [DriveReply::Written, DriveReply::Written]);
        assert_eq!(write_shard(&server, 3, 2, zone, 5, data.slice(4096..8192)).await, DriveReply::Written);
        let before = DriveReply::Refused(DriveRefusal::WrittenBefore);
        assert_eq!(write_shard(&server, 3, 2, zone, 4, payload(6, 16384)).await, before);
        assert_eq!(write_shard(&server, 3, 2, zone, 6, payload(5, 16384)).await, before);
        assert_eq!(read_shard(&server, 3, zone, 4, 4).await.1, data);
        // Only by the epoch that opened it.
        let closed = DriveReply::Refused(DriveRefusal::ZoneClosed);
        assert_eq!(write_shard(&server, 3, 3, zone, 20, payload(7, 4096)).await, closed);
        let sealed = DriveReply::Refused(DriveRefusal::Sealed(Epoch(3)));
        assert_eq!(write_shard(&server, 3, 2, zone, 20, payload(7, 4096)).await, sealed);
        assert_eq!(free_zone(&server, 3, 2, zone).await, sealed);
        for (block, len) in [(256, 4096), (255, 8192), (0, 100), (0, 0), (u32::MAX, 4096)] {
            let reply = write_shard(&server, 3, 3, zone, block, payload(7, len)).await;
            assert!(matches!(reply, DriveReply::Refused(DriveRefusal::Bounds(_))), "{block} {len}: {reply:?}");
        }
    });
}

#[test]
fn no_zone_is_told_of_before_it_is_durable() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        let free = stat(&server, 3).await.zones_free;
        let list = || ask(&server, 3, DriveOp::ListZones, Bytes::new());
        media.set_failing(true);
        let open = DriveOp::OpenZone { epoch: Epoch(2), zone_set: ZoneSetId(10), shard: 0 };
        let io = |reply: DriveReply| matches!(reply, DriveReply::Refused(DriveRefusal::Io(_)));
        assert!(io(ask(&server, 3, open, Bytes::new()).await.0));
        // If the drive is opened again now, the next one who opens a zone gets the same generation of it.
        assert!(io(list().await.0));
        assert_eq!(stat(&server, 3).await.zones_free, free, "openings that failed use the drive up");
        media.set_failing(false);
        assert_eq!(list().await.0, DriveReply::Zones(Vec::new()));
        let zone = open_zone(&server, 3, 2, 11).await;
        media.crash(CrashKeeps::Nothing);
        let server = serve(&media, &handle, 2).await;
        let DriveReply::Zones(zones) = ask(&server, 3, DriveOp::ListZones, Bytes::new()).await.0 else { panic!() };
        assert_eq!(zones.iter().map(|info| (info.zone, info.generation)).collect::<Vec<_>>(), [zone]);
    });
}

#[test]
fn a_freed_zone_is_gone() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        let free = stat(&server, 3).await.zones_free;
        let zone = open_zone(&server, 3, 1, 10).await;
        assert_eq!(write_shard(&server, 3, 1, zone, 0, payload(1, 4096)).await, DriveReply::Written);
        assert_eq!(read_shard(&server, 4, zone, 0, 1).await.0, DriveReply::Refused(DriveRefusal::Gone(zone.1)));
        assert_eq!(free_zone(&server, 4, 1, zone).await, DriveReply::Freed, "another bucket's order changes nothing");
        assert_eq!(read_shard(&server, 3, zone, 0, 1).await.0, DriveReply::Blocks);
        assert_eq!(free_zone(&server, 3, 1, zone).await, DriveReply::Freed);
        assert_eq!(free_zone(&server, 3, 1, zone).await, DriveReply::Freed);
        assert_eq!(stat(&server, 3).await.zones_free, free);
        drop(server);
        media.crash(CrashKeeps::Nothing);
        let server = serve(&media, &handle, 2).await;
        let mut opened = 0;
        let again = loop {
            opened += 1;
            let got = open_zone(&server, 5, 1, opened).await;
            if got.0 == zone.0 {
                break got;
            }
        };
        assert_eq!(again.1, Generation(zone.1.0 + 1));
        let gone = DriveReply::Refused(DriveRefusal::Gone(again.1));
        assert_eq!(read_shard(&server, 3, zone, 0, 1).await.0, gone);
        assert_eq!(write_shard(&server, 3, 1, zone, 1, payload(1, 4096)).await, gone);
        assert_eq!(free_zone(&server, 3, 1, zone).await, DriveReply::Freed);
        assert_eq!(read_shard(&server, 5, again, 0, 1).await.0, DriveReply::Blocks);
        for zone_set in opened + 1.. {
            let op = DriveOp::OpenZone { epoch: Epoch(1), zone_set: ZoneSetId(zone_set), shard: 0 };
            match ask(&server, 5, op, Bytes::new()).await.0 {
                DriveReply::Zone { .. } => assert!(zone_set < 1000),
                other => {
                    assert_eq!(other, DriveReply::Refused(DriveRefusal::NoZone));
                    break;
                }
            }
        }
        assert_eq!(stat(&server, 3).await.zones_free, 0);
    });
}
