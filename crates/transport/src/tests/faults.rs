//! What networks do by themselves.

use super::*;
use crate::options::MTU_BASE_BYTES;

fn bad_network() -> Faults {
    Faults { loss: 0.1, duplicate: 0.05, corrupt: 0.02, jitter: Duration::from_micros(100), ..Faults::default() }
}

#[test]
fn calls_take_two_round_trips_and_then_one() {
    let mut pair = Pair::new(1, Faults::default());
    let began = pair.now;
    let first = pair.call(a(), b(), b"head", body(1, 100));
    pair.run_until_ended(1);
    // Hello, cookie, hello, accept, request, response.
    assert_eq!(pair.now.since(began), LATENCY * 6);
    assert_eq!(pair.outcome(first).unwrap().head, &b"head"[..]);
    assert_eq!(pair.outcome(first).unwrap().body, body(1, 100));
    pair.run_for(Duration::from_millis(10));
    let began = pair.now;
    pair.call(a(), b(), b"", Bytes::new());
    pair.run_until_ended(2);
    assert_eq!(pair.now.since(began), LATENCY * 2);
}

#[test]
fn every_call_on_a_bad_network_ends_well_and_runs_once() {
    for seed in 0..12 {
        let mut pair = Pair::new(seed, bad_network());
        let mut calls = Vec::new();
        for n in 0..60_u64 {
            let len = match n % 4 {
                0 => 0,
                1 => pair.random.below(300),
                2 => pair.random.below(20_000),
                _ => pair.random.below(300_000),
            };
            let (from, to) = if n % 3 == 0 { (b(), a()) } else { (a(), b()) };
            calls.push((pair.call(from, to, &n.to_le_bytes(), body(n, len as usize)), n, len as usize));
            let pause = pair.random.below(200);
            pair.run_for(Duration::from_micros(pause));
        }
        pair.run_until_ended(calls.len());
        for (call, n, len) in calls {
            let response = pair.outcome(call).unwrap();
            assert_eq!(response.head, &n.to_le_bytes()[..], "seed {seed}");
            assert!(response.body == body(n, len), "seed {seed}: body of call {n}");
        }
        assert_eq!(pair.requests.len(), 60, "seed {seed}: each request runs once");
        assert!(pair.endpoints.values().all(|endpoint| endpoint.assembly_bytes() == 0));
    }
}

#[test]
fn the_largest_message_gets_through() {
    let mut pair = Pair::new(3, Faults { loss: 0.01, ..Faults::default() });
    let head = body(1, weft_wire::limits::MESSAGE_HEAD_BYTES_MAX);
    let whole = body(2, weft_wire::limits::MESSAGE_BODY_BYTES_MAX);
    let call = pair.call(a(), b(), &head, whole.clone());
    pair.run_until_ended(1);
    assert!(pair.outcome(call).unwrap().body == whole && pair.outcome(call).unwrap().head == head);
    let now = pair.now;
    let more = body(3, weft_wire::limits::MESSAGE_BODY_BYTES_MAX + 1);
    assert_eq!(pair.at(a()).call(now, b(), Service::Drive, Bytes::new(), more), Err(CallError::TooLarge));
}

#[test]
fn a_large_message_does_not_hold_up_a_small_one() {
    // 10 Gbit/s: 2 MiB take 1.7 ms.
    let mut pair = Pair::new(4, Faults { byte_ps: 800, ..Faults::default() });
    pair.call(a(), b(), b"", Bytes::new());
    pair.run_until_ended(1);
    let large = pair.call(a(), b(), b"", body(1, 2 << 20));
    pair.run_for(Duration::from_micros(300));
    let began = pair.now;
    let small = pair.call(a(), b(), b"", body(2, 100));
    pair.run_until_ended(2);
    assert!(pair.outcomes.contains_key(&small) && !pair.outcomes.contains_key(&large));
    // What is in flight already goes first, the rest of the large message doesn't.
    assert!(pair.now.since(began) < Duration::from_millis(1), "{:?}", pair.now.since(began));
}

#[test]
fn loss_of_one_percent_costs_little() {
    let mut times = Vec::new();
    for loss in [0.0, 0.01] {
        let mut pair = Pair::new(5, Faults { loss, byte_ps: 800, ..Faults::default() });
        let began = pair.now;
        for n in 0..40 {
            pair.call(a(), b(), b"", body(n, 1 << 20));
        }
        pair.echo = false;
        while pair.requests.len() < 40 {
            assert!(pair.step(began + Duration::from_secs(10)));
        }
        times.push(pair.now.since(began));
    }
    assert!(times[0] * 10 >= times[1] * 8, "{times:?}");
}

#[test]
fn the_path_is_measured_and_a_black_hole_noticed() {
    let mut pair = Pair::new(6, Faults::default());
    pair.capture = Some(Vec::new());
    pair.call(a(), b(), b"", body(1, 1 << 20));
    pair.run_until_ended(1);
    let longest = |pair: &Pair| {
        let full: Vec<_> = pair.capture.iter().flatten().map(|sent| sent.2.len()).collect();
        full.into_iter().max().unwrap()
    };
    assert_eq!(longest(&pair), 8952);
    for mtu in [1472, MTU_BASE_BYTES] {
        pair.faults.mtu = mtu;
        let calls = pair.outcomes.len();
        let began = pair.now;
        for n in 0..4 {
            pair.call(a(), b(), b"", body(n, 500_000));
        }
        pair.run_until_ended(calls + 4);
        assert!(pair.now.since(began) < Duration::from_secs(1), "{mtu}: {:?}", pair.now.since(began));
        pair.capture = Some(Vec::new());
        pair.call(a(), b(), b"", body(9, 500_000));
        pair.run_until_ended(calls + 5);
        let sizes: Vec<_> = pair.capture.iter().flatten().map(|sent| sent.2.len()).collect();
        assert!(sizes.iter().filter(|size| **size <= mtu).max() >= Some(&(mtu - 100)), "{mtu}");
    }
}

#[test]
fn many_calls_share_datagrams() {
    let mut pair = Pair::new(7, Faults::default());
    pair.call(a(), b(), b"", Bytes::new());
    pair.run_until_ended(1);
    pair.run_for(Duration::from_millis(20));
    let before = pair.sent;
    for n in 0..100 {
        pair.call(a(), b(), &[n], Bytes::new());
    }
    pair.run_until_ended(101);
    pair.run_for(Duration::from_millis(20));
    assert!(pair.sent - before <= 8, "{} datagrams", pair.sent - before);
}

#[test]
fn marks_of_congestion_slow_the_sender_as_losses_do() {
    let mut pair = Pair::new(8, Faults { byte_ps: 800, ..Faults::default() });
    let mut in_flight_max = Vec::new();
    for marked in [false, true] {
        let mut most = 0;
        let calls = pair.outcomes.len();
        for n in 0..8 {
            pair.call(a(), b(), b"", body(n, 1 << 20));
        }
        while pair.outcomes.len() < calls + 8 {
            assert!(pair.step(Instant::FAR_FUTURE));
            most = most.max(pair.under_way.len());
            if marked {
                pair.under_way.values_mut().filter(|datagram| datagram.ecn != 0).for_each(|d| d.ecn = 0b11);
            }
        }
        in_flight_max.push(most);
    }
    assert!(in_flight_max[1] * 2 < in_flight_max[0] * 3, "{in_flight_max:?}");
}
