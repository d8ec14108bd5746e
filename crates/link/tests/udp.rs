use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_link::udp::UdpLink;
use weft_link::{Datagram, Link, LinkKind};

const LOCALHOST: &str = "127.0.0.1:0";
/// For tests that hang if the product is broken.
const GIVE_UP_MS: u16 = 20_000;

fn bind(addr: &str) -> UdpLink {
    UdpLink::bind(addr.parse().unwrap()).unwrap()
}

/// Waits as a core does: until the link's descriptor has something to tell.
fn wait(link: &UdpLink) {
    let mut fds = [PollFd::new(link.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(GIVE_UP_MS)), Ok(1), "nothing came");
}

fn receive(link: &mut UdpLink, count: usize) -> Vec<(SocketAddr, u8, Vec<u8>)> {
    let mut got = Vec::new();
    while got.len() < count {
        wait(link);
        link.receive(&mut |datagram| got.push((datagram.from, datagram.ecn, datagram.data.to_vec())));
    }
    got
}

#[test]
fn bursts_arrive_whole_in_order_and_marked() {
    for addr in [LOCALHOST, "[::1]:0"] {
        let (mut sender, mut receiver) = (bind(addr), bind(addr));
        assert_eq!(sender.kind(), LinkKind::Udp);
        let to = receiver.local_addr();
        // More than a call can carry: the link splits it.
        let segments: Vec<u8> = (0..150_u8).flat_map(|number| [number; 1000]).chain([255; 10]).collect();
        let large = vec![7; sender.datagram_bytes_max()];
        let batch = [
            Datagram { to, ecn: 0b10, segments: &segments, segment_size: 1000 },
            Datagram { to, ecn: 0, segments: b"small", segment_size: 1000 },
            Datagram { to, ecn: 0b11, segments: &large, segment_size: large.len() },
        ];
        assert_eq!(sender.send(&batch), 3);
        let got = receive(&mut receiver, 153);
        assert_eq!(got.len(), 153);
        for (number, (from, ecn, data)) in got.iter().enumerate().take(150) {
            assert_eq!((*from, *ecn, data.as_slice()), (sender.local_addr(), 0b10, [number as u8; 1000].as_slice()));
        }
        assert_eq!(got[150].2, [255; 10]);
        assert_eq!((got[151].1, got[151].2.as_slice()), (0, b"small".as_slice()));
        assert_eq!((got[152].1, &got[152].2), (0b11, &large));
        assert!(receiver.take_unreachable().is_empty());
        assert_eq!(receiver.receive(&mut |_| unreachable!()), 0);
    }
}

#[test]
fn a_closed_port_is_reported_and_harms_no_other_traffic() {
    for addr in [LOCALHOST, "[::1]:0"] {
        let (mut sender, mut receiver) = (bind(addr), bind(addr));
        let closed = [bind(addr).local_addr(), bind(addr).local_addr()];
        let to = |to| Datagram { to, ecn: 0, segments: b"hello", segment_size: 5 };
        // The refusals come back while the batch is still being sent.
        let batch = [to(closed[0]), to(receiver.local_addr()), to(closed[1]), to(receiver.local_addr())];
        assert_eq!(sender.send(&batch), 4);
        assert_eq!(receive(&mut receiver, 2).len(), 2);
        assert_eq!(receiver.send(&[to(sender.local_addr())]), 1);
        assert_eq!(receive(&mut sender, 1).len(), 1);
        sender.receive(&mut |_| ());
        let mut unreachable = sender.take_unreachable();
        unreachable.sort_by_key(|addr| closed.iter().position(|closed| closed == addr));
        assert_eq!(unreachable, closed);
        assert!(sender.take_unreachable().is_empty());
        assert!(receiver.take_unreachable().is_empty());
    }
}

#[test]
fn a_refusal_wakes_who_waits() {
    let mut sender = bind(LOCALHOST);
    let closed = bind(LOCALHOST).local_addr();
    sender.send(&[Datagram { to: closed, ecn: 0, segments: b"x", segment_size: 1 }]);
    wait(&sender);
    assert_eq!(sender.receive(&mut |_| unreachable!()), 0);
    assert_eq!(sender.take_unreachable(), [closed]);
}

#[test]
fn what_can_not_be_sent_is_lost_and_does_not_block() {
    let mut sender = bind(LOCALHOST);
    let mut receiver = bind(LOCALHOST);
    let too_large = vec![0; 70_000];
    let batch = [
        Datagram { to: receiver.local_addr(), ecn: 0, segments: &too_large, segment_size: too_large.len() },
        Datagram { to: "[::1]:9".parse().unwrap(), ecn: 0, segments: b"other family", segment_size: 20 },
        Datagram { to: receiver.local_addr(), ecn: 0, segments: b"fine", segment_size: 20 },
    ];
    assert_eq!(sender.send(&batch), 3);
    assert_eq!(receive(&mut receiver, 1)[0].2, b"fine");
}

#[test]
fn a_dual_stack_socket_speaks_with_both() {
    let mut dual = bind("[::]:0");
    let mut v4 = bind(LOCALHOST);
    let dual_port = dual.local_addr().port();
    v4.send(&[Datagram { to: ([127, 0, 0, 1], dual_port).into(), ecn: 0b01, segments: b"ping", segment_size: 4 }]);
    let got = receive(&mut dual, 1);
    assert_eq!((got[0].0, got[0].1), (v4.local_addr(), 0b01));
    dual.send(&[Datagram { to: v4.local_addr(), ecn: 0b01, segments: b"pong", segment_size: 4 }]);
    let got = receive(&mut v4, 1);
    assert_eq!((got[0].1, got[0].2.as_slice()), (0b01, b"pong".as_slice()));
}

#[test]
fn an_address_in_use_is_named() {
    let first = bind(LOCALHOST);
    let error = UdpLink::bind(first.local_addr()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&first.local_addr().to_string()), "{error}");
    let (receive, send) = first.socket_buffer_bytes().unwrap();
    assert!(receive >= 128 << 10 && send >= 128 << 10);
}
