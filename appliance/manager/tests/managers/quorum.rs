//! Forming, losing and regaining a majority.

use crate::cluster::*;
use std::collections::BTreeSet;
use std::time::Duration;
use weft_manager::{BootstrapError, Role};
use weft_wire::manager::{ManagerReply, Proposal};
use weft_wire::map::{FilesystemState, State};
use weft_wire::{BucketId, Epoch, Incarnation, NodeId, Uuid};

#[test]
fn forming_gives_every_node_an_incarnation_and_epochs() {
    let cluster = Cluster::formed(6, 1);
    let map = cluster.agreed();
    assert!(map.nodes.values().all(|node| node.incarnation == Incarnation(2) && node.state == State::Up));
    assert!(map.buckets.iter().all(|bucket| bucket.epoch == Epoch(2) && bucket.incarnation == Incarnation(2)));
    assert!(map.buckets.iter().all(|bucket| bucket.ensembles.len() == 1 && bucket.ensembles[0].since == Epoch(1)));
    let roles: Vec<Role> = cluster.running().map(|(_, manager)| manager.status().role).collect();
    assert_eq!(roles.iter().filter(|role| **role == Role::Leader).count(), 1);
    assert_eq!(roles[5], Role::None, "the sixth node doesn't vote");
    assert_eq!(cluster.manager(1).status().copies, [drive(1, 0), drive(1, 1)]);
}

#[test]
fn bootstrap_again_is_harmless_and_another_cluster_is_refused() {
    let cluster = Cluster::formed(6, 2);
    cluster.create(1, "data");
    cluster.time.block_on(cluster.manager(1).bootstrap(NodeId(1), cluster.first.clone())).unwrap();
    assert!(cluster.manager(1).map().unwrap().filesystem_named("data").is_some());
    let mut other = cluster.first.clone();
    other.cluster = Uuid(5);
    let refused = cluster.time.block_on(cluster.manager(1).bootstrap(NodeId(1), other));
    assert_eq!(refused, Err(BootstrapError::OtherCluster(cluster.first.cluster)));
    let blank = Cluster::blank(6, 2);
    let stranger = blank.time.block_on(blank.manager(1).bootstrap(NodeId(9), blank.first.clone()));
    assert_eq!(stranger, Err(BootstrapError::NoSuchNode(NodeId(9))));
}

#[test]
fn a_filesystem_lives_and_goes() {
    let cluster = Cluster::formed(6, 3);
    let created = cluster.propose(6, Proposal::CreateFilesystem { name: "data".into(), size_bytes: 9 });
    let ManagerReply::Committed { fs, .. } = created else { panic!("{created:?}") };
    let again = cluster.propose(2, Proposal::CreateFilesystem { name: "data".into(), size_bytes: 9 });
    assert!(
        matches!(again, ManagerReply::Committed { fs: same, .. } if same == fs),
        "a lost answer can be asked for again"
    );
    let map = cluster.agreed();
    let root = map.filesystems[&fs].root;
    assert_ne!(root.0, 0);
    assert_eq!(map.filesystems[&fs].state, FilesystemState::Creating);
    cluster.commit(3, Proposal::FilesystemReady { fs });
    let exists = cluster.propose(1, Proposal::CreateFilesystem { name: "data".into(), size_bytes: 9 });
    assert_eq!(exists, ManagerReply::Refused("a filesystem \"data\" exists".into()));
    assert!(matches!(cluster.propose(1, Proposal::FilesystemGone { fs }), ManagerReply::Refused(_)), "it is in use");
    cluster.commit(4, Proposal::DeleteFilesystem { name: "data".into() });
    cluster.commit(4, Proposal::FilesystemGone { fs });
    assert!(cluster.agreed().filesystems.is_empty());
    let next = cluster.propose(5, Proposal::CreateFilesystem { name: "data".into(), size_bytes: 0 });
    assert!(matches!(next, ManagerReply::Committed { fs: other, .. } if other > fs), "ids are never given twice");
}

#[test]
fn clients_get_ids_and_lose_them() {
    let cluster = Cluster::formed(6, 4);
    let new = || match cluster.propose(6, Proposal::NewClient { host: "host".into() }) {
        ManagerReply::Committed { client, .. } => client,
        other => panic!("{other:?}"),
    };
    let (one, two) = (new(), new());
    assert!(two > one && one.0 > 0);
    cluster.commit(1, Proposal::FenceClient { client: one });
    cluster.commit(2, Proposal::RemoveClient { client: two });
    let map = cluster.agreed();
    assert!(map.clients[&one].fenced && !map.clients.contains_key(&two));
    assert!(new() > two, "ids are never given twice");
}

#[test]
fn new_epochs_are_for_the_living_leader() {
    let cluster = Cluster::formed(6, 5);
    let map = cluster.agreed();
    let led: Vec<BucketId> = (0..map.buckets.len() as u32)
        .map(BucketId)
        .filter(|id| map.bucket(*id).unwrap().leader.node == NodeId(2))
        .collect();
    let incarnation = map.nodes[&NodeId(2)].incarnation;
    cluster.commit(2, Proposal::NewEpochs { node: NodeId(2), incarnation, buckets: vec![led[0]] });
    let next = cluster.agreed();
    assert_eq!(next.bucket(led[0]).unwrap().epoch, Epoch(3));
    assert_eq!(next.bucket(led[1]).unwrap().epoch, Epoch(2));
    let dead = Proposal::NewEpochs { node: NodeId(2), incarnation: Incarnation(1), buckets: vec![led[0]] };
    assert!(matches!(cluster.propose(2, dead), ManagerReply::Refused(_)));
    let foreign = Proposal::NewEpochs { node: NodeId(3), incarnation, buckets: vec![led[0]] };
    assert!(matches!(cluster.propose(3, foreign), ManagerReply::Refused(_)));
}

#[test]
fn power_loss_of_all_loses_nothing_whatever_the_order_of_starting() {
    for (seed, order) in [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [3, 6, 1, 5, 2, 4]].into_iter().enumerate() {
        let mut cluster = Cluster::formed(6, 6 + seed as u64);
        let version = cluster.create(6, "data");
        for number in 1..=6 {
            cluster.crash(number);
        }
        let handle = cluster.time.handle();
        let mut tasks = Vec::new();
        for number in order {
            cluster.start(number);
            tasks.push(handle.spawn("starting", cluster.starting(number)));
            cluster.time.run_for(Duration::from_millis(700));
        }
        for task in tasks {
            assert_eq!(cluster.time.block_on(task), Ok(Incarnation(3)));
        }
        let map = cluster.agreed();
        assert!(map.version > version && map.filesystem_named("data").is_some());
        assert!(map.buckets.iter().all(|bucket| bucket.epoch == Epoch(3) && bucket.incarnation == Incarnation(3)));
    }
}

#[test]
fn acknowledged_means_it_survives_an_immediate_loss_of_power() {
    for seed in 0..8 {
        let mut cluster = Cluster::formed(6, 100 + seed);
        let reply = cluster.propose(6, Proposal::CreateFilesystem { name: "data".into(), size_bytes: 0 });
        assert!(matches!(reply, ManagerReply::Committed { .. }));
        for number in 1..=6 {
            cluster.crash(number);
        }
        // The leader and one more manager don't come back.
        cluster.start_all(2..=4);
        assert!(cluster.agreed().filesystem_named("data").is_some());
    }
}

#[test]
fn the_leader_crashes_and_another_goes_on() {
    let mut cluster = Cluster::formed(6, 20);
    cluster.create(6, "before");
    let leader = cluster.leader().unwrap();
    cluster.crash(leader);
    let other = if leader == 1 { 2 } else { 1 };
    cluster.create(other, "after");
    let next = cluster.leader().unwrap();
    assert_ne!(next, leader);
    assert!(cluster.agreed().filesystem_named("before").is_some());
    cluster.until("the silent node is away", |cluster| {
        cluster.manager(other).map().unwrap().nodes[&NodeId(leader)].state == State::Away
    });
    cluster.start_all([leader]);
    let map = cluster.agreed();
    assert_eq!(map.nodes[&NodeId(leader)].state, State::Up);
    assert!(map.filesystem_named("after").is_some());
}

#[test]
fn two_managers_down_stop_nothing() {
    let mut cluster = Cluster::formed(7, 21);
    for number in [1, 4] {
        cluster.crash(number);
    }
    cluster.create(7, "one");
    cluster.create(2, "two");
    cluster.until("both are away", |cluster| {
        let map = cluster.manager(6).map().unwrap();
        let away: BTreeSet<NodeId> =
            map.nodes.values().filter(|node| node.state == State::Away).map(|node| node.id).collect();
        away == BTreeSet::from([NodeId(1), NodeId(4)])
    });
    assert_eq!(cluster.agreed().filesystems.len(), 2);
}

#[test]
fn without_a_majority_nothing_is_decided_and_the_reason_is_said() {
    let mut cluster = Cluster::formed(6, 22);
    cluster.create(1, "before");
    let version = cluster.agreed().version;
    for number in [1, 2, 3] {
        cluster.crash(number);
    }
    assert_eq!(
        cluster.propose(6, Proposal::CreateFilesystem { name: "x".into(), size_bytes: 0 }),
        ManagerReply::NoQuorum
    );
    assert_eq!(
        cluster.propose(4, Proposal::CreateFilesystem { name: "x".into(), size_bytes: 0 }),
        ManagerReply::NoQuorum
    );
    assert_eq!(cluster.manager(5).map().unwrap().version, version, "the map stays as it is, and is served");
    assert_eq!(cluster.leader(), None, "a leader without a majority steps down");

    cluster.crash(5);
    cluster.start(5);
    let waiting = cluster.time.handle().spawn("starting", cluster.starting(5));
    cluster.time.run_for(Duration::from_secs(15));
    let reason = cluster.manager(5).status().waiting.unwrap();
    assert!(reason.contains("3 of 5 are needed (n1, n2, n3, n4, n5)"), "{reason}");
    cluster.start_all([2]);
    assert_eq!(cluster.time.block_on(waiting), Ok(Incarnation(3)));
    assert_eq!(cluster.manager(5).status().waiting, None);
}

#[test]
fn a_leader_cut_off_from_the_others_decides_nothing() {
    let cluster = Cluster::formed(6, 23);
    let leader = cluster.leader().unwrap();
    for other in (1..=6).filter(|other| *other != leader) {
        cluster.net.cut(core(NodeId(leader)), core(NodeId(other)));
        cluster.net.cut(core(NodeId(other)), core(NodeId(leader)));
    }
    let lonely = cluster.propose(leader, Proposal::CreateFilesystem { name: "lonely".into(), size_bytes: 0 });
    assert_eq!(lonely, ManagerReply::NoQuorum);
    let other = if leader == 6 { 5 } else { 6 };
    cluster.create(other, "together");
    cluster.net.mend_all();
    let map = cluster.agreed();
    assert!(map.filesystem_named("lonely").is_none() && map.filesystem_named("together").is_some());
}

#[test]
fn many_propose_at_once() {
    let cluster = Cluster::formed(7, 24);
    let handle = cluster.time.handle();
    let tasks: Vec<_> = (0..70u16)
        .map(|index| {
            let manager = cluster.manager(index % 7 + 1);
            let proposal = Proposal::NewClient { host: format!("host{index}") };
            handle.spawn("proposing", async move { manager.propose(proposal, weft_manager::Patience::default()).await })
        })
        .collect();
    let ids: BTreeSet<_> = tasks
        .into_iter()
        .map(|task| match cluster.time.block_on(task) {
            Ok(ManagerReply::Committed { client, .. }) => client,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids.len(), 70);
    assert_eq!(cluster.agreed().clients.len(), 70);
}

#[test]
fn proposals_get_through_a_lossy_network() {
    let cluster = Cluster::formed(6, 25);
    cluster.net.set_loss(100_000);
    for index in 0..10 {
        cluster.create(index % 6 + 1, &format!("fs{index}"));
    }
    cluster.net.set_loss(0);
    assert_eq!(cluster.agreed().filesystems.len(), 10);
}

#[test]
fn an_idle_group_does_little() {
    let cluster = Cluster::formed(6, 26);
    cluster.settle();
    let polls = |cluster: &Cluster| cluster.time.handle().task_stats().iter().map(|stats| stats.polls).sum::<u64>();
    let writes = |cluster: &Cluster| (1..=6).map(|number| cluster.store(number).writes()).sum::<u64>();
    let (before, written) = (polls(&cluster), writes(&cluster));
    cluster.time.run_for(Duration::from_secs(10));
    assert_eq!(writes(&cluster), written, "an idle group writes nothing");
    let per_second = (polls(&cluster) - before) / 10;
    assert!(per_second < 600, "{per_second} polls per second in six processes");
}

#[test]
fn a_leader_is_found_soon() {
    for seed in 0..10 {
        let mut cluster = Cluster::formed(6, 300 + seed);
        cluster.settle();
        for number in 1..=6 {
            cluster.crash(number);
        }
        let start = cluster.time.handle().now();
        cluster.start_all(1..=6);
        let took = cluster.time.handle().now().since(start);
        assert!(took < Duration::from_secs(1), "{took:?} until all were admitted after a loss of power");

        let leader = cluster.leader().unwrap();
        cluster.crash(leader);
        let start = cluster.time.handle().now();
        cluster.create(if leader == 6 { 5 } else { 6 }, "data");
        let took = cluster.time.handle().now().since(start);
        assert!(took < Duration::from_secs(3), "{took:?} until another led");
    }
}
