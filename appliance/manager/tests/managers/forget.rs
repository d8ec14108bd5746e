//! Lost copies: what may go on, and who must not vote as who it was.

use crate::cluster::*;
use std::time::Duration;
use weft_manager::testing::MemStore;
use weft_manager::{Role, Slot};
use weft_wire::NodeId;

fn wipe(store: &MemStore, number: u16, index: u16) {
    store.wipe(drive(number, index));
}

#[test]
fn a_failed_copy_is_struck_before_the_manager_goes_on() {
    let cluster = Cluster::formed(6, 60);
    cluster.store(2).fail(drive(2, 0));
    cluster.create(1, "data");
    cluster.until("the copy is struck", |cluster| cluster.manager(2).status().copies == [drive(2, 1)]);
    assert_eq!(cluster.agreed().filesystems.len(), 1);
}

#[test]
fn a_struck_copy_that_comes_back_is_not_believed() {
    let mut cluster = Cluster::formed(6, 61);
    cluster.store(2).fail(drive(2, 0));
    cluster.create(1, "data");
    cluster.until("the copy is struck", |cluster| cluster.manager(2).status().copies == [drive(2, 1)]);
    cluster.crash(2);
    cluster.store(2).mend(drive(2, 0));
    cluster.start_all([2]);
    assert_eq!(cluster.manager(2).status().role, Role::Follower, "the list says that nothing is missing");
    cluster.create(1, "more");
    cluster.until("it is a copy again", |cluster| cluster.manager(2).status().copies.len() == 2);

    // The other way round: the drive that knew of the striking is lost, the stale one names it and can't vouch for it.
    cluster.store(2).fail(drive(2, 1));
    cluster.create(1, "again");
    cluster.until("the other copy is struck", |cluster| cluster.manager(2).status().copies == [drive(2, 0)]);
    cluster.crash(2);
    cluster.store(2).mend(drive(2, 1));
    cluster.store(2).fail(drive(2, 0));
    cluster.start(2);
    assert_eq!(cluster.manager(2).status().role, Role::Amnesiac);
}

#[test]
fn a_manager_without_memory_gets_a_new_vote_and_never_uses_the_old() {
    let mut cluster = Cluster::formed(6, 62);
    cluster.create(1, "data");
    cluster.settle();
    cluster.crash(3);
    // The map survives on one drive; vote and log are gone with the other's contents.
    let (store, map) = (cluster.store(3), cluster.store(3).contents(drive(3, 1), Slot::Map).unwrap());
    wipe(&store, 3, 0);
    wipe(&store, 3, 1);
    use weft_manager::ConfigStore;
    cluster.time.block_on(store.store(drive(3, 1), Slot::Map, map)).unwrap().unwrap();
    cluster.start(3);
    assert_eq!(cluster.manager(3).status().role, Role::Amnesiac);
    assert!(cluster.manager(3).status().waiting.is_some());
    cluster.until("it votes again", |cluster| cluster.manager(3).status().role == Role::Follower);
    assert_eq!(cluster.manager(3).status().waiting, None);
    cluster.admit(3);

    // The vote counts: with two others gone, it is needed.
    cluster.settle();
    let gone: Vec<u16> = [1, 2, 4, 5].into_iter().filter(|number| cluster.leader() != Some(*number)).take(2).collect();
    for number in gone {
        cluster.crash(number);
    }
    cluster.create(6, "needed");
    // And it remembers from now on.
    cluster.crash(3);
    cluster.start_all([3]);
    assert!(cluster.agreed().filesystem_named("needed").is_some());
}

#[test]
fn one_listed_copy_lost_is_memory_lost() {
    let mut cluster = Cluster::formed(6, 63);
    cluster.create(1, "data");
    cluster.settle();
    cluster.crash(4);
    wipe(&cluster.store(4), 4, 1);
    cluster.start(4);
    assert_eq!(cluster.manager(4).status().role, Role::Amnesiac);
    cluster.until("it votes again", |cluster| cluster.manager(4).status().role == Role::Follower);
}

#[test]
fn forgetting_twice_gives_two_new_votes() {
    let mut cluster = Cluster::formed(6, 64);
    for _ in 0..2 {
        cluster.settle();
        cluster.crash(5);
        wipe(&cluster.store(5), 5, 0);
        cluster.start(5);
        assert_eq!(cluster.manager(5).status().role, Role::Amnesiac);
        cluster.until("it votes again", |cluster| cluster.manager(5).status().role == Role::Follower);
        cluster.admit(5);
    }
    cluster.create(5, "data");
    cluster.agreed();
}

#[test]
fn managers_that_forgot_are_no_majority() {
    let mut cluster = Cluster::formed(6, 65);
    cluster.create(1, "data");
    cluster.settle();
    for number in 1..=6 {
        cluster.crash(number);
    }
    for number in [1, 2, 3] {
        wipe(&cluster.store(number), number, 0);
    }
    for number in 1..=6 {
        cluster.start(number);
    }
    cluster.time.run_for(Duration::from_secs(60));
    assert_eq!(cluster.leader(), None, "two that remember can't speak for three that don't");
    for number in [1, 2, 3] {
        assert_eq!(cluster.manager(number).status().role, Role::Amnesiac);
    }
}

#[test]
fn all_copies_lost_while_running_ends_the_vote_but_not_the_node() {
    let cluster = Cluster::formed(6, 66);
    let lost = if cluster.leader() == Some(2) { 3 } else { 2 };
    cluster.store(lost).fail(drive(lost, 0));
    cluster.store(lost).fail(drive(lost, 1));
    cluster.create(1, "data");
    cluster.until("it gave up voting", |cluster| cluster.manager(lost).status().role == Role::None);
    assert!(cluster.manager(lost).status().waiting.unwrap().contains("every copy"));
    cluster.create(6, "more");
    assert_eq!(cluster.agreed().filesystems.len(), 2, "it still follows");
}

#[test]
fn a_long_log_is_cut_and_a_manager_that_missed_it_gets_the_map() {
    let mut cluster = Cluster::formed(6, 67);
    cluster.settle();
    let missing = if cluster.leader() == Some(2) { 3 } else { 2 };
    cluster.crash(missing);
    for index in 0..300u32 {
        cluster.commit(1, weft_wire::manager::Proposal::NewClient { host: format!("h{index}") });
    }
    let stored = cluster.store(1).contents(drive(1, 0), Slot::Raft).unwrap();
    assert!(stored.len() < 64 << 10, "the stored log is {} bytes", stored.len());
    cluster.start_all([missing]);
    assert_eq!(cluster.manager(missing).status().role, Role::Follower, "{:?}", cluster.manager(missing).status());
    assert_eq!(cluster.agreed().clients.len(), 300);
    // What it got is durable.
    cluster.crash(missing);
    cluster.start(missing);
    assert_eq!(cluster.manager(missing).status().role, Role::Follower);
    assert!(cluster.manager(missing).map().unwrap().nodes.contains_key(&NodeId(missing)));
}
