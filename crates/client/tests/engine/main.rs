//! The engine against a cluster in memory, in virtual time: messages get lost, leaders move, maps age.

mod fake;

use bytes::Bytes;
use fake::{Cluster, FS, FS_NAME, ROOT, core};
use std::rc::Rc;
use std::time::Duration;
use weft_client::{Client, ConnectError, ConnectOptions, Errno, OpenMode};
use weft_reactor::testing::VirtualTime;
use weft_wire::InodeId;
use weft_wire::fs::{Attr, Caller, FileKind, FsOp, NewNode, SeekTarget, SetAttr};
use weft_wire::limits::{CLIENT_WINDOW_MAX, RENEW_SECONDS, SESSION_SECONDS_MAX, SLAB_BYTES};
use weft_wire::map::{Change, Client as MapClient, Filesystem, FilesystemState};

const SLAB: usize = SLAB_BYTES as usize;

fn file() -> NewNode {
    let caller = Caller { uid: 1, gid: 1 };
    NewNode { kind: FileKind::File, mode: 0o644, umask: 0, rdev: 0, caller, target: Vec::new() }
}

async fn create(client: &Rc<Client>, name: &str) -> Result<Attr, Errno> {
    Ok(client.create(ROOT, name.as_bytes(), file(), true, OpenMode::Keep).await?.attr)
}

async fn read(client: &Client, attr: &Attr, offset: u64, len: u32) -> Result<Vec<u8>, Errno> {
    Ok(client.read(attr.inode, offset, len).await?.concat())
}

/// Bytes that tell where they belong.
fn pattern(len: usize, seed: usize) -> Bytes {
    (0..len).map(|at| ((at + seed) * 31 / 7 % 251) as u8).collect::<Vec<_>>().into()
}

#[test]
fn lost_messages_repeat_nothing() {
    let time = VirtualTime::new(1);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        cluster.network.set_loss(200_000);
        let log = create(&client, "log").await.unwrap();
        for number in 0..100u32 {
            let line = Bytes::copy_from_slice(&number.to_le_bytes());
            assert_eq!(client.append(log.inode, line, false).await, Ok(4));
        }
        cluster.network.set_loss(0);
        let expected: Vec<u8> = (0..100u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(read(&client, &log, 0, 4096).await.unwrap(), expected);
        assert_eq!(cluster.count(|op| matches!(op, FsOp::Append { .. })), 100);
        assert_eq!(cluster.count(|op| matches!(op, FsOp::Create { .. })), 1);
    });
}

#[test]
fn many_at_once_stay_within_the_window() {
    let time = VirtualTime::new(2);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        cluster.network.set_loss(100_000);
        let tasks: Vec<_> = (0..4 * CLIENT_WINDOW_MAX)
            .map(|number| {
                let client = Rc::clone(&client);
                cluster.handle.spawn("create", async move { create(&client, &format!("f{number}")).await })
            })
            .collect();
        for task in tasks {
            assert!(task.await.unwrap().is_ok());
        }
        assert_eq!(cluster.world.borrow().names.len() as u64, 4 * CLIENT_WINDOW_MAX);
    });
}

#[test]
fn data_goes_to_the_slabs_owners_and_comes_back() {
    let time = VirtualTime::new(3);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let attr = create(&client, "large").await.unwrap();
        let data = pattern(2 * SLAB + 1000, 5);
        let offset = SLAB_BYTES - 300;
        assert_eq!(client.write(attr.inode, offset, data.clone(), false).await, Ok(data.len()));
        assert_eq!(cluster.count(|op| matches!(op, FsOp::Write { .. })), 4);
        assert_eq!(cluster.count(|op| matches!(op, FsOp::Publish { .. })), 1);
        let end = offset + data.len() as u64;
        assert_eq!(client.getattr(attr.inode).await.unwrap().size_bytes, end);
        // A hole, the data, the end of the file.
        let mut expected = vec![0; 300];
        expected.extend_from_slice(&data);
        assert_eq!(read(&client, &attr, offset - 300, 4 << 20).await.unwrap(), expected);
        assert_eq!(read(&client, &attr, end - 7, 100).await.unwrap(), data[data.len() - 7..]);
        assert!(read(&client, &attr, end, 100).await.unwrap().is_empty());
        assert!(read(&client, &attr, u64::MAX - 5, 100).await.unwrap().is_empty());
        // Another client sees it at once.
        let other = cluster.connect(2).await.unwrap();
        assert_eq!(read(&other, &attr, offset, 5 << 20).await.unwrap(), data);
        assert_eq!(client.lookup(ROOT, b"large").await.unwrap().attr.size_bytes, end);
    });
}

#[test]
fn unwritten_slabs_read_as_zeros_up_to_the_size() {
    let time = VirtualTime::new(4);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let attr = create(&client, "sparse").await.unwrap();
        client.write(attr.inode, 5 * SLAB_BYTES, pattern(10, 0), false).await.unwrap();
        client.write(attr.inode, 3, pattern(10, 0), false).await.unwrap();
        let all = read(&client, &attr, 0, 6 << 20).await.unwrap();
        assert_eq!(all.len(), 5 * SLAB + 10);
        assert_eq!(all[3..13], pattern(10, 0));
        assert!(all[13..5 * SLAB].iter().all(|byte| *byte == 0));
        assert_eq!(client.stat(attr.inode).await.unwrap().blocks, 2);
        assert_eq!(client.seek(attr.inode, 4096, SeekTarget::Data).await, Ok(5 * SLAB_BYTES));
        assert_eq!(client.seek(attr.inode, 0, SeekTarget::Hole).await, Ok(4096));
        assert_eq!(client.seek(attr.inode, 5 * SLAB_BYTES + 10, SeekTarget::Data).await, Err(Errno::ENXIO));
    });
}

#[test]
fn what_stands_in_the_first_slab_is_not_written_again_when_a_cut_took_the_rest() {
    let time = VirtualTime::new(15);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let attr = create(&client, "over").await.unwrap();
        let data = pattern(700, 3);
        cluster.world.borrow_mut().cut_next_growth = true;
        assert_eq!(client.write(attr.inode, SLAB_BYTES - 300, data.clone(), false).await, Ok(700));
        assert!(!cluster.world.borrow().cut_next_growth);
        assert_eq!(read(&client, &attr, SLAB_BYTES - 300, 4096).await.unwrap(), data);
        let first = |op: &FsOp| matches!(op, FsOp::Write { offset, .. } if *offset < SLAB_BYTES);
        let second = |op: &FsOp| matches!(op, FsOp::Write { offset, .. } if *offset >= SLAB_BYTES);
        assert_eq!((cluster.count(first), cluster.count(second)), (1, 2));
    });
}

#[test]
fn a_writer_that_missed_a_truncate_hears_of_it() {
    let time = VirtualTime::new(5);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let (one, two) = (cluster.connect(1).await.unwrap(), cluster.connect(2).await.unwrap());
        let attr = create(&one, "cut").await.unwrap();
        one.write(attr.inode, SLAB_BYTES, pattern(100, 1), false).await.unwrap();
        two.setattr(attr.inode, SetAttr { size_bytes: Some(0), ..SetAttr::default() }).await.unwrap();
        assert_eq!(one.write(attr.inode, SLAB_BYTES, pattern(50, 2), false).await, Ok(50));
        assert_eq!(read(&two, &attr, SLAB_BYTES, 4096).await.unwrap(), pattern(50, 2));
    });
}

#[test]
fn a_size_is_relied_on_until_a_cut_or_until_it_is_old() {
    let time = VirtualTime::new(14);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let (one, two) = (cluster.connect(1).await.unwrap(), cluster.connect(2).await.unwrap());
        let attr = create(&one, "f").await.unwrap();
        let data = pattern(3 * SLAB, 4);
        one.write(attr.inode, 0, data.clone(), false).await.unwrap();
        let asked = || cluster.count(|op| matches!(op, FsOp::GetAttr { .. }));
        let at = 2 * SLAB_BYTES + 10;
        let there = |len: usize| data[at as usize..at as usize + len].to_vec();

        assert_eq!(read(&one, &attr, at, 100).await.unwrap(), there(100));
        let before = asked();
        assert_eq!(read(&one, &attr, at, 200).await.unwrap(), there(200));
        assert_eq!(asked(), before, "a read before the end asks the slab alone");
        cluster.handle.sleep(Duration::from_secs(61)).await;
        read(&one, &attr, at, 200).await.unwrap();
        assert_eq!(asked(), before + 1);

        // Another client cuts through what is known.
        let cut = SetAttr { size_bytes: Some(at + 5), ..SetAttr::default() };
        two.setattr(attr.inode, cut).await.unwrap();
        assert_eq!(read(&one, &attr, at, 200).await.unwrap(), there(5));
        assert!(read(&one, &attr, at + 5, 200).await.unwrap().is_empty());

        // What it uncovers later is zeros, however long the file once was.
        two.write(attr.inode, at + 50, pattern(10, 9), false).await.unwrap();
        let mut expected = there(5);
        expected.resize(50, 0);
        expected.extend_from_slice(&pattern(10, 9));
        assert_eq!(read(&one, &attr, at, 200).await.unwrap(), expected);
    });
}

#[test]
fn the_first_overwrite_alone_publishes_its_times_unless_the_file_is_cut() {
    let time = VirtualTime::new(15);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let (one, two) = (cluster.connect(1).await.unwrap(), cluster.connect(2).await.unwrap());
        let attr = create(&one, "f").await.unwrap();
        one.write(attr.inode, 0, pattern(3 * SLAB, 4), false).await.unwrap();
        let published = || cluster.count(|op| matches!(op, FsOp::Publish { .. }));
        let before = published();
        assert_eq!(one.write(attr.inode, 2 * SLAB_BYTES, pattern(100, 5), false).await, Ok(100));
        assert_eq!(published(), before + 1);
        assert_eq!(one.write(attr.inode, 2 * SLAB_BYTES, pattern(100, 5), false).await, Ok(100));
        assert_eq!(one.write(attr.inode, SLAB_BYTES, pattern(3, 5), false).await, Ok(3));
        assert_eq!(published(), before + 1);
        assert_eq!(cluster.count(|op| matches!(op, FsOp::Overwrite { .. })), 2);
        assert_eq!(one.write(attr.inode, SLAB_BYTES, pattern(3, 5), true).await, Ok(3));
        assert_eq!(published(), before + 2, "the inode loses its set-id bits");
        assert_eq!(read(&two, &attr, 2 * SLAB_BYTES, 100).await.unwrap(), pattern(100, 5));

        let cut = SetAttr { size_bytes: Some(SLAB_BYTES + 1), ..SetAttr::default() };
        two.setattr(attr.inode, cut).await.unwrap();
        assert_eq!(one.write(attr.inode, 2 * SLAB_BYTES, pattern(70, 6), false).await, Ok(70));
        assert_eq!(published(), before + 3);
        assert_eq!(two.getattr(attr.inode).await.unwrap().size_bytes, 2 * SLAB_BYTES + 70);
        assert_eq!(read(&two, &attr, 2 * SLAB_BYTES, 100).await.unwrap(), pattern(70, 6));
    });
}

#[test]
fn appends_of_several_clients_do_not_overlap() {
    let time = VirtualTime::new(6);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let (one, two) = (cluster.connect(1).await.unwrap(), cluster.connect(2).await.unwrap());
        let attr = create(&one, "log").await.unwrap();
        let big = pattern(SLAB + 5, 0);
        let (first, second) = weft_reactor::join(
            one.append(attr.inode, big.clone(), false),
            two.append(attr.inode, pattern(1000, 9), false),
        )
        .await;
        assert_eq!((first, second), (Ok(big.len()), Ok(1000)));
        assert_eq!(one.getattr(attr.inode).await.unwrap().size_bytes, big.len() as u64 + 1000);
    });
}

#[test]
fn a_new_leader_is_found_and_told_what_is_open() {
    let time = VirtualTime::new(7);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let attr = create(&client, "open").await.unwrap();
        let closed = create(&client, "closed").await.unwrap();
        client.release(closed.inode);
        cluster.handle.sleep(Duration::from_secs(1)).await;
        let bucket = cluster.world.borrow().map.bucket_of(ROOT.position());
        let leader = cluster.world.borrow().map.buckets[bucket.0 as usize].leader;
        cluster.network.crash(leader);
        let writer = Rc::clone(&client);
        let write =
            cluster.handle.spawn("write", async move { writer.write(attr.inode, 0, pattern(10, 3), false).await });
        cluster.handle.sleep(Duration::from_secs(3)).await;
        assert!(!write.is_finished());
        assert!(client.waiting().is_some_and(|text| text.contains("can't be reached")), "{:?}", client.waiting());
        cluster.move_leaders(leader.node.0, leader.node.0 % 3 + 1);
        assert_eq!(write.await.unwrap(), Ok(10));
        assert_eq!(client.waiting(), None);
        cluster.handle.sleep(Duration::from_secs(1)).await;
        let epoch = cluster.world.borrow().map.buckets[bucket.0 as usize].epoch;
        let open = (bucket, epoch, attr.inode, client.id());
        assert!(cluster.world.borrow().opens.contains(&open));
        assert!(!cluster.world.borrow().opens.contains(&(bucket, epoch, closed.inode, client.id())));
        client.release(attr.inode);
        cluster.handle.sleep(Duration::from_secs(1)).await;
        assert!(!cluster.world.borrow().opens.contains(&open));
    });
}

#[test]
fn a_new_leader_hears_also_from_those_who_hold_nothing_any_more() {
    // They are listed as those who may: it would wait for them.
    let time = VirtualTime::new(7);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let closed = create(&client, "closed").await.unwrap();
        client.release(closed.inode);
        cluster.handle.sleep(Duration::from_secs(1)).await;
        let told = || cluster.count(|op| matches!(op, FsOp::Renew { holds: Some(holds) } if holds.opens.is_empty()));
        assert_eq!(told(), 0);
        let bucket = cluster.world.borrow().map.bucket_of(closed.inode.position());
        let leader = cluster.world.borrow().map.buckets[bucket.0 as usize].leader;
        let next = leader.node.0 % 3 + 1;
        cluster.move_leaders(leader.node.0, next);
        cluster.handle.sleep(Duration::from_secs(1)).await;
        assert_eq!(told(), 1);
        // Also if nobody can be told at first.
        cluster.world.borrow_mut().not_ready = true;
        cluster.move_leaders(next, next % 3 + 1);
        cluster.handle.sleep(Duration::from_secs(60)).await;
        cluster.world.borrow_mut().not_ready = false;
        cluster.handle.sleep(Duration::from_secs(RENEW_SECONDS + 1)).await;
        assert_eq!(told(), 2);
    });
}

#[test]
fn a_leader_that_is_away_keeps_no_signs_of_life_from_the_others() {
    let time = VirtualTime::new(7);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        // A file that is open in each bucket.
        let attr = create(&client, "f").await.unwrap();
        for bucket in 0..8 {
            let number = InodeId(bucket << 61 | 9);
            {
                let mut world = cluster.world.borrow_mut();
                let file = world.inodes[&attr.inode].clone();
                world.inodes.insert(number, fake::FakeInode { attr: Attr { inode: number, ..attr }, ..file });
            }
            client.open(number, OpenMode::Keep).await.unwrap();
        }
        let renewed = |node: u16| {
            let world = cluster.world.borrow();
            let led = |bucket: u32| world.map.buckets[bucket as usize].leader == core(node);
            world.ran.iter().filter(|(bucket, op)| led(bucket.0) && matches!(op, FsOp::Renew { .. })).count()
        };
        cluster.handle.sleep(Duration::from_secs(RENEW_SECONDS + 1)).await;
        assert!(renewed(1) > 0 && renewed(2) > 0, "both have something");
        cluster.network.crash(core(1));
        cluster.move_leaders(1, 1);
        cluster.handle.sleep(Duration::from_secs(10)).await;
        for _ in 0..5 {
            let before = renewed(2);
            cluster.handle.sleep(Duration::from_secs(SESSION_SECONDS_MAX / 2)).await;
            assert!(renewed(2) > before);
        }
    });
}

#[test]
fn a_power_loss_of_all_nodes_is_waited_out() {
    let time = VirtualTime::new(8);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let attr = create(&client, "f").await.unwrap();
        (1..=3).for_each(|node| cluster.network.crash(core(node)));
        let writer = Rc::clone(&client);
        let write = cluster
            .handle
            .spawn("write", async move { writer.write(attr.inode, 10, pattern(SLAB + 10, 3), false).await });
        cluster.handle.sleep(Duration::from_secs(120)).await;
        (1..=3).for_each(|node| {
            cluster.network.restart(core(node));
            cluster.serve(node);
        });
        // Each leads its buckets again, in a new epoch, and isn't ready at once.
        cluster.world.borrow_mut().not_ready = true;
        cluster.move_leaders(1, 1);
        cluster.move_leaders(2, 2);
        cluster.move_leaders(3, 3);
        cluster.handle.sleep(Duration::from_secs(5)).await;
        assert!(!write.is_finished());
        assert!(client.waiting().is_some_and(|text| text.contains("recovering")));
        cluster.world.borrow_mut().not_ready = false;
        assert_eq!(write.await.unwrap(), Ok(SLAB + 10));
        assert_eq!(read(&client, &attr, 10, 2 << 20).await.unwrap(), pattern(SLAB + 10, 3));
    });
}

#[test]
fn opens_and_closes_keep_their_order() {
    let time = VirtualTime::new(9);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let attr = create(&client, "f").await.unwrap();
        client.release(attr.inode);
        for _ in 0..20 {
            client.open(attr.inode, OpenMode::Keep).await.unwrap();
            // The leader is told once of both.
            client.open(attr.inode, OpenMode::Keep).await.unwrap();
            assert_eq!(cluster.world.borrow().opens.len(), 1);
            client.release(attr.inode);
            client.release(attr.inode);
        }
        client.open(attr.inode, OpenMode::Keep).await.unwrap();
        cluster.handle.sleep(Duration::from_secs(1)).await;
        assert_eq!(cluster.world.borrow().opens.len(), 1);
        client.release(attr.inode);
        cluster.handle.sleep(Duration::from_secs(1)).await;
        assert!(cluster.world.borrow().opens.is_empty());
    });
}

/// The second waits for the first; what is gone for the one is not open for the other.
#[test]
fn nobody_has_open_what_is_gone() {
    let time = VirtualTime::new(18);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let gone = InodeId(ROOT.0 + (1 << 20));
        let opens = (0..2).map(|_| client.open(gone, OpenMode::Keep));
        let opened = weft_reactor::join_all(opens.collect::<Vec<_>>()).await;
        assert!(opened.iter().all(|opened| *opened == Err(Errno::ESTALE)), "{opened:?}");
    });
}

#[test]
fn a_limit_turns_waiting_into_an_error_and_nothing_happens_late() {
    let time = VirtualTime::new(10);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let options = ConnectOptions { fail_after: Some(Duration::from_secs(3)), ..cluster.options() };
        let client = Client::connect(cluster.client_network(1), cluster.handle.clone(), options).await.unwrap();
        let attr = create(&client, "f").await.unwrap();
        cluster.world.borrow_mut().not_ready = true;
        let before = cluster.handle.now();
        assert_eq!(client.write(attr.inode, 0, pattern(10, 1), false).await, Err(Errno::EIO));
        assert_eq!(cluster.handle.now().since(before), Duration::from_secs(3));
        cluster.world.borrow_mut().not_ready = false;
        assert_eq!(client.write(attr.inode, 0, pattern(10, 2), false).await, Ok(10));
        cluster.handle.sleep(Duration::from_secs(60)).await;
        assert_eq!(read(&client, &attr, 0, 100).await.unwrap(), pattern(10, 2));
    });
}

#[test]
fn an_operation_that_is_given_up_holds_nothing_back() {
    let time = VirtualTime::new(11);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let attr = create(&client, "f").await.unwrap();
        cluster.world.borrow_mut().not_ready = true;
        for _ in 0..2 * CLIENT_WINDOW_MAX {
            let write = client.write(attr.inode, 0, pattern(10, 1), false);
            assert!(cluster.handle.timeout(Duration::from_millis(50), write).await.is_err());
        }
        assert_eq!(client.waiting(), None);
        cluster.world.borrow_mut().not_ready = false;
        assert_eq!(client.write(attr.inode, 0, pattern(10, 2), false).await, Ok(10));
    });
}

#[test]
fn a_fenced_client_fails_for_ever() {
    let time = VirtualTime::new(12);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let attr = create(&client, "f").await.unwrap();
        cluster.commit(vec![Change::Client(MapClient { id: client.id(), host: "test".into(), fenced: true })]);
        assert_eq!(client.write(attr.inode, 0, pattern(10, 1), false).await, Err(Errno::ESTALE));
        assert_eq!(client.fsync(), Err(Errno::ESTALE));
        assert_eq!(client.getattr(attr.inode).await, Err(Errno::ESTALE));
    });
}

#[test]
fn connecting_waits_for_the_filesystem_and_refuses_what_is_not_there() {
    let time = VirtualTime::new(13);
    let cluster = Cluster::start(&time);
    let state =
        |state| Change::Filesystem(Filesystem { id: FS, name: FS_NAME.into(), root: ROOT, size_bytes: 0, state });
    time.block_on(async {
        cluster.commit(vec![state(FilesystemState::Creating)]);
        cluster.world.borrow_mut().quorum = false;
        let (copy, handle) = (cluster.clone(), cluster.handle.clone());
        let connect = handle.spawn("connect", async move { copy.connect(1).await.map(|client| client.id()) });
        handle.sleep(Duration::from_secs(10)).await;
        cluster.commit(vec![state(FilesystemState::Ready)]);
        handle.sleep(Duration::from_secs(10)).await;
        assert!(!connect.is_finished());
        cluster.world.borrow_mut().quorum = true;
        assert!(connect.await.unwrap().is_ok());
        let options = ConnectOptions { fs_name: "nosuch".into(), ..cluster.options() };
        let refused = weft_client::probe(cluster.client_network(2), handle.clone(), &options).await;
        let expected = ConnectError::NoSuchFilesystem { name: "nosuch".into(), known: FS_NAME.into() };
        assert_eq!(refused, Err(expected));
        cluster.commit(vec![state(FilesystemState::Deleting)]);
        let refused = cluster.connect(3).await.map(|client| client.id());
        assert_eq!(refused, Err(ConnectError::Deleting(FS_NAME.into())));
    });
}

#[test]
fn space_is_summed_over_buckets() {
    let time = VirtualTime::new(14);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        let space = client.statfs().await.unwrap();
        assert_eq!((space.blocks, space.blocks_free, space.blocks_available), (800, 480, 400));
        client.statfs().await.unwrap();
        assert_eq!(cluster.count(|op| *op == FsOp::StatFs), 8);
    });
}

#[test]
fn closing_gives_the_id_back() {
    let time = VirtualTime::new(15);
    let cluster = Cluster::start(&time);
    time.block_on(async {
        let client = cluster.connect(1).await.unwrap();
        assert!(cluster.world.borrow().map.clients.contains_key(&client.id()));
        client.close().await;
        assert!(cluster.world.borrow().map.clients.is_empty());
    });
}

#[test]
fn an_idle_client_sends_next_to_nothing() {
    let time = VirtualTime::new(16);
    let cluster = Cluster::start(&time);
    let client = time.block_on(cluster.connect(1)).unwrap();
    let before = time.handle().task_stats();
    time.run_for(Duration::from_secs(200));
    let polls = |stats: &[weft_reactor::TaskStats]| {
        stats.iter().filter(|task| task.name == "follow the map").map(|task| task.polls).sum::<u64>()
    };
    let polls = polls(&time.handle().task_stats()) - polls(&before);
    assert!(polls <= 80, "{polls} polls");
    drop(client);
}
