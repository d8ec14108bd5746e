use std::net::SocketAddr;
use std::time::Duration;

use weft_link::sim::{NodeState, SimLink, SimNet, SimNetOptions};
use weft_link::{Datagram, Link};
use weft_reactor::testing::VirtualTime;
use weft_reactor::{Clock, Instant};

fn addr(host: u8) -> SocketAddr {
    ([10, 0, 0, host], 7000).into()
}

fn send(link: &mut SimLink, to: SocketAddr, data: &[u8]) -> bool {
    link.send(&[Datagram { to, ecn: 0b10, segments: data, segment_size: data.len() }]) == 1
}

fn drain(link: &mut SimLink) -> Vec<(u8, Vec<u8>)> {
    let mut got = Vec::new();
    while link.receive(&mut |datagram| got.push((datagram.ecn, datagram.data.to_vec()))) > 0 {}
    got
}

/// Lets everything under way arrive.
fn settle(net: &SimNet) {
    while let Some(at) = net.next_event() {
        net.advance(at);
    }
}

#[test]
fn datagrams_arrive_when_their_delay_is_over() {
    let net = SimNet::new(1, SimNetOptions::calm());
    let (mut a, mut b) = (net.link(addr(1)).unwrap(), net.link(addr(2)).unwrap());
    assert!(net.link(addr(1)).is_err(), "in use");
    net.advance(Instant(1_000));
    let batch = [Datagram { to: addr(2), ecn: 1, segments: b"aabbc", segment_size: 2 }];
    assert_eq!(a.send(&batch), 1);
    assert_eq!(net.next_event(), Some(Instant(101_000)));
    assert_eq!(net.advance(Instant(100_999)), 0);
    assert!(drain(&mut b).is_empty());
    assert_eq!(net.advance(Instant(101_000)), 3);
    assert_eq!(net.take_arrived().into_iter().collect::<Vec<_>>(), [addr(2)]);
    assert_eq!(drain(&mut b), [(1, b"aa".to_vec()), (1, b"bb".to_vec()), (1, b"c".to_vec())]);
    assert_eq!(net.pending_count(), 0);
}

#[test]
fn a_rough_network_does_everything_and_repeats_it() {
    let run = |seed| {
        let net = SimNet::new(seed, SimNetOptions { corrupt: 0.05, ..SimNetOptions::rough() });
        let (mut a, mut b) = (net.link(addr(1)).unwrap(), net.link(addr(2)).unwrap());
        for number in 0..2000_u32 {
            assert!(send(&mut a, addr(2), &number.to_le_bytes()));
        }
        settle(&net);
        (drain(&mut b), net.stats())
    };
    let (got, stats) = run(1);
    assert_eq!((got.clone(), stats), run(1));
    assert_ne!(got, run(2).0);
    assert!(stats.lost > 20 && stats.duplicated > 10 && stats.corrupted > 50, "{stats:?}");
    assert_eq!(stats.delivered, 2000 - stats.lost + stats.duplicated);
    assert!(got.windows(2).any(|pair| pair[0].1 > pair[1].1), "reordered");
}

#[test]
fn partitions_cut_one_way_and_heal() {
    let net = SimNet::new(1, SimNetOptions::calm());
    let (mut a, mut b) = (net.link(addr(1)).unwrap(), net.link(addr(2)).unwrap());
    assert!(send(&mut a, addr(2), b"under way"));
    let cut = net.partition([addr(1)], [addr(2)]);
    assert!(send(&mut a, addr(2), b"cut"));
    assert!(send(&mut b, addr(1), b"back"));
    settle(&net);
    assert!(drain(&mut b).is_empty());
    assert_eq!(drain(&mut a).len(), 1);
    net.heal(cut);
    assert!(send(&mut a, addr(2), b"healed"));
    settle(&net);
    assert_eq!(drain(&mut b).len(), 1);
    assert!(a.take_unreachable().is_empty());
    net.set_path(addr(1), addr(2), Some(SimNetOptions { loss: 1.0, ..SimNetOptions::calm() }));
    assert!(send(&mut a, addr(2), b"lost"));
    net.set_path(addr(1), addr(2), None);
    assert!(send(&mut a, addr(2), b"found"));
    settle(&net);
    assert_eq!(drain(&mut b).len(), 1);
}

#[test]
fn a_dead_host_is_silent_and_a_dead_process_refuses() {
    let net = SimNet::new(1, SimNetOptions::calm());
    let (mut a, mut b) = (net.link(addr(1)).unwrap(), net.link(addr(2)).unwrap());
    net.set_node(addr(2), NodeState::Silent);
    assert!(send(&mut a, addr(2), b"x"));
    assert!(send(&mut b, addr(1), b"x"));
    settle(&net);
    assert!(a.take_unreachable().is_empty() && drain(&mut a).is_empty() && drain(&mut b).is_empty());

    net.set_node(addr(2), NodeState::Refusing);
    assert!(send(&mut a, addr(2), b"x"));
    settle(&net);
    assert_eq!(a.take_unreachable(), [addr(2)]);

    net.set_node(addr(2), NodeState::Up);
    assert!(send(&mut a, addr(2), b"x"));
    settle(&net);
    assert_eq!(drain(&mut b).len(), 1);

    drop(b);
    assert!(send(&mut a, addr(2), b"x"));
    settle(&net);
    assert_eq!(a.take_unreachable(), [addr(2)]);
    net.link(addr(2)).unwrap();
}

#[test]
fn bandwidth_queues_marks_and_drops() {
    // 1 MB/s, so that 1000 bytes take 1 ms.
    let options = SimNetOptions {
        delay_min: Duration::ZERO,
        delay_max: Duration::ZERO,
        bandwidth: Some(1_000_000),
        queue_bytes_max: 10_000,
        mark_above_bytes: 4_000,
        ..SimNetOptions::calm()
    };
    let net = SimNet::new(1, options);
    let (mut a, mut b) = (net.link(addr(1)).unwrap(), net.link(addr(2)).unwrap());
    let mut taken = 0;
    while send(&mut a, addr(2), &[0; 1000]) {
        taken += 1;
    }
    assert_eq!(taken, 10, "the sender's port is full");
    settle(&net);
    let got = drain(&mut b);
    assert_eq!(got.len(), 10);
    assert!(got.iter().all(|(ecn, _)| *ecn == 0b10), "one sender alone fills no queue at the receiver");
    assert!(send(&mut a, addr(2), &[0; 1000]), "and its own is free again");
    settle(&net);
    drain(&mut b);

    // Many to one.
    let mut senders: Vec<_> = (10..30).map(|host| net.link(addr(host)).unwrap()).collect();
    for sender in &mut senders {
        assert!(send(sender, addr(2), &[0; 1000]));
    }
    settle(&net);
    let got = drain(&mut b);
    assert_eq!(got.len(), 10, "the receiver's queue holds no more");
    assert_eq!(got.iter().filter(|(ecn, _)| *ecn == 0b11).count(), 5);
    assert_eq!(net.stats().overflowed, 10);
}

#[test]
fn large_datagrams_vanish_and_idle_receivers_drop() {
    let net = SimNet::new(1, SimNetOptions { datagram_bytes_max: 1500, ..SimNetOptions::calm() });
    let (mut a, mut b) = (net.link(addr(1)).unwrap(), net.link(addr(2)).unwrap());
    assert_eq!(a.datagram_bytes_max(), 1500);
    assert!(send(&mut a, addr(2), &[0; 1501]));
    assert!(send(&mut a, addr(2), &[0; 1500]));
    settle(&net);
    assert_eq!(drain(&mut b).len(), 1);
    for _ in 0..6000 {
        assert!(send(&mut a, addr(2), &[0; 1500]));
    }
    settle(&net);
    assert!(net.stats().overflowed > 0);
}

#[test]
fn a_virtual_time_drives_it() {
    let time = VirtualTime::new(1);
    let net = SimNet::new(1, SimNetOptions::calm());
    time.add_poller(net.poller());
    let (mut a, mut b) = (net.link(addr(1)).unwrap(), net.link(addr(2)).unwrap());
    let handle = time.handle();
    time.block_on(async {
        handle.sleep(Duration::from_millis(5)).await;
        assert!(send(&mut a, addr(2), b"ping"));
        handle.sleep(Duration::from_micros(101)).await;
        assert_eq!(drain(&mut b).len(), 1);
    });
    assert_eq!(time.clock().now(), Instant(5_101_000));
    assert_eq!(net.stats().delivered, 1);
}
