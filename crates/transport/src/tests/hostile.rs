//! Datagrams that no well-meaning peer sends.

use super::*;
use crate::packet::{self, Hello, Kind, OVERHEAD_BYTES, Refuse, TAG_BYTES};
use weft_wire::PROTOCOL_VERSION;

/// Gives a changed packet the right tag again.
fn reseal(data: &mut Vec<u8>) {
    data.truncate(data.len().saturating_sub(TAG_BYTES));
    packet::seal(data, 0);
}

/// All packets of a few calls in both directions.
fn captured() -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
    let mut pair = Pair::new(1, Faults { loss: 0.05, ..Faults::default() });
    pair.capture = Some(Vec::new());
    for n in 0..10 {
        pair.call(a(), b(), b"head", body(n, n as usize * 2000));
        pair.call(b(), a(), b"head", body(n, n as usize * 100));
    }
    pair.run_until_ended(20);
    pair.capture.take().unwrap_or_default()
}

#[test]
fn strangers_get_no_memory_and_no_amplification() {
    let mut pair = Pair::new(2, Faults::default());
    let mut random = Random::new(9);
    let now = pair.now;
    for n in 0..10_000_u32 {
        let from: SocketAddr = ([10, 1, (n >> 8) as u8, n as u8], 999).into();
        let hello = Hello {
            protocol: PROTOCOL_VERSION.into(),
            reserved: 0.into(),
            window_bytes: 1.into(),
            nonce: random.next_u64().into(),
            session: random.next_u64().into(),
            order: 1.into(),
            cookie: if n % 2 == 0 { [0; 16] } else { [n as u8; 16] },
        };
        let datagram = match n % 3 {
            0 => packet::whole(Kind::Hello, 0, 0, &hello),
            1 => packet::whole(Kind::Data, random.next_u64() & 0xffff_ffff_0000_0001, 5, &hello.cookie),
            _ => packet::whole(Kind::Reset, random.next_u64(), 5, &()),
        };
        pair.at(b()).handle_datagram(now, from, 0, &datagram);
        let mut out = Vec::new();
        while pair.at(b()).poll_transmit(now, &mut out).is_some() {}
        assert!(out.len() <= datagram.len());
    }
    assert_eq!(pair.at(b()).session_count(), 0);
    assert_eq!(pair.at(b()).next_timeout(now), None);
}

#[test]
fn every_kind_of_nonsense_leaves_a_session_alive_and_bounded() {
    let captured = captured();
    for seed in 0..6 {
        let mut pair = Pair::new(seed, Faults::default());
        for round in 0..40_u64 {
            pair.call(a(), b(), b"head", body(round, 5000));
            for _ in 0..100 {
                let pick = pair.random.below(captured.len() as u64) as usize;
                let (from, to, mut data) = captured[pick].clone();
                match pair.random.below(5) {
                    // Random bytes.
                    0 => data.iter_mut().for_each(|byte| *byte = pair.random.next_u64() as u8),
                    // Cut short, with and without a right tag.
                    1 => data.truncate(pair.random.below(data.len() as u64) as usize),
                    2 => {
                        data.truncate(pair.random.below(data.len() as u64) as usize);
                        reseal(&mut data);
                    }
                    // Changed, with a right tag; session ids of earlier endpoints fit these ones, since they share their secrets.
                    3 => {
                        let at = pair.random.below(data.len() as u64) as usize;
                        data[at] = pair.random.next_u64() as u8;
                        reseal(&mut data);
                    }
                    _ => {}
                }
                let now = pair.now;
                pair.at(to).handle_datagram(now, from, 3, &data);
                pair.take_events();
            }
            pair.run_for(Duration::from_millis(50));
            assert!(pair.endpoints.values().all(|endpoint| endpoint.session_count() <= 2), "one each way");
            assert!(pair.endpoints.values().all(|endpoint| endpoint.assembly_bytes() <= 16 << 20));
        }
        // Forgeries with the right session, number and tag may break a session; the next one works.
        pair.run_for(Duration::from_secs(20));
        let works = (0..3).any(|_| {
            let call = pair.call(a(), b(), b"head", body(1, 5000));
            pair.run_for(Duration::from_secs(20));
            matches!(pair.outcomes.get(&call), Some(Ok(_)))
        });
        assert!(works, "seed {seed}");
    }
}

#[test]
fn replayed_packets_run_nothing_twice() {
    let mut pair = Pair::new(3, Faults::default());
    pair.capture = Some(Vec::new());
    for n in 0..20 {
        pair.call(a(), b(), b"head", body(n, n as usize * 3000));
    }
    pair.run_until_ended(20);
    for (from, to, data) in pair.capture.take().unwrap_or_default() {
        for _ in 0..3 {
            pair.send(from, to, 0, data.clone());
        }
    }
    pair.run_for(Duration::from_secs(1));
    assert_eq!(pair.requests.len(), 20);
    assert_eq!(pair.at(a()).stats().sessions_lost + pair.at(b()).stats().sessions_lost, 0);
    let call = pair.call(a(), b(), b"", Bytes::new());
    pair.run_until_ended(21);
    assert!(pair.outcome(call).is_ok());
}

#[test]
fn packets_of_wrong_sessions_and_senders_change_nothing() {
    let mut pair = Pair::new(4, Faults::default());
    pair.capture = Some(Vec::new());
    pair.echo = false;
    pair.call(a(), b(), b"head", body(1, 100));
    pair.run_for(Duration::from_millis(50));
    let stranger: SocketAddr = ([10, 0, 0, 9], 7000).into();
    let packets = pair.capture.take().unwrap_or_default();
    for (from, to, data) in packets {
        let now = pair.now;
        pair.at(to).handle_datagram(now, stranger, 0, &data);
        for byte in 4..OVERHEAD_BYTES - TAG_BYTES {
            let mut wrong = data.clone();
            wrong[byte] ^= 0x40;
            reseal(&mut wrong);
            let is_session = byte < 12;
            if is_session {
                pair.at(to).handle_datagram(now, from, 0, &wrong);
            }
        }
        // Resets for sessions and packets that don't exist.
        let reset = packet::whole(Kind::Reset, 77, 0, &());
        pair.at(to).handle_datagram(now, from, 0, &reset);
    }
    pair.run_for(Duration::from_secs(1));
    assert_eq!(pair.requests.len(), 1);
    assert!(pair.outcomes.is_empty());
    let (request, now) = (pair.requests[0].id, pair.now);
    pair.at(b()).respond(now, request, Response::default());
    pair.run_until_ended(1);
    assert!(pair.outcomes.values().all(Result::is_ok));
    assert_eq!(pair.requests[0].body, body(1, 100));
}

#[test]
fn another_version_is_refused_by_name_on_both_sides() {
    let mut pair = Pair::new(5, Faults::default());
    let now = pair.now;
    // A caller of another version is told ours.
    let hello = Hello {
        protocol: (PROTOCOL_VERSION + 1).into(),
        reserved: 0.into(),
        window_bytes: 1.into(),
        nonce: 5.into(),
        session: 6.into(),
        order: 1.into(),
        cookie: [0; 16],
    };
    pair.at(b()).handle_datagram(now, a(), 0, &packet::whole(Kind::Hello, 0, 0, &hello));
    let mut out = Vec::new();
    assert!(pair.at(b()).poll_transmit(now, &mut out).is_some());
    let refusal = packet::parse(&out).unwrap();
    assert_eq!((refusal.kind, refusal.session), (Kind::Refuse, 6));
    assert_eq!(pair.at(b()).session_count(), 0);
    // Our call is told theirs: the refusal must echo our nonce and name our session, which the hello shows.
    let call = pair.call(a(), b(), b"", Bytes::new());
    let mut out = Vec::new();
    assert!(pair.at(a()).poll_transmit(now, &mut out).is_some());
    let sent = packet::parse(&out).unwrap();
    let (ours, _) = <Hello as zerocopy::FromBytes>::read_from_prefix(sent.payload).unwrap();
    let wrong = Refuse { protocol: 9.into(), reason: packet::REFUSE_VERSION.into(), echo: 1.into() };
    pair.at(a()).handle_datagram(now, b(), 0, &packet::whole(Kind::Refuse, ours.session.get(), 0, &wrong));
    pair.take_events();
    assert!(pair.outcomes.is_empty());
    let right = Refuse { echo: ours.nonce, ..wrong };
    pair.at(a()).handle_datagram(now, b(), 0, &packet::whole(Kind::Refuse, ours.session.get(), 0, &right));
    pair.take_events();
    assert_eq!(pair.outcome(call), Err(CallError::VersionMismatch));
}
