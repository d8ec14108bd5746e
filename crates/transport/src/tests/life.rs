//! Sessions and peers that come and go.

use super::*;

const MOMENT: Duration = Duration::from_millis(1);

#[test]
fn a_restarted_peer_is_noticed_by_the_next_packet() {
    let mut pair = Pair::new(1, Faults::default());
    pair.echo = false;
    let stuck = pair.call(a(), b(), b"", body(1, 10));
    pair.run_for(MOMENT);
    assert_eq!(pair.requests.len(), 1);
    pair.endpoints.insert(b(), endpoint(3, &EndpointOptions::default()));
    let began = pair.now;
    pair.run_until_ended(1);
    assert_eq!(pair.outcome(stuck), Err(CallError::SessionLost));
    // The caller asks after its silent peer by itself.
    assert!(pair.now.since(began) < Duration::from_millis(150));
    pair.echo = true;
    let again = pair.call(a(), b(), b"", body(1, 10));
    pair.run_until_ended(2);
    assert!(pair.outcome(again).is_ok());
}

#[test]
fn a_restarted_peer_that_speaks_first_is_noticed_too() {
    let mut pair = Pair::new(2, Faults::default());
    pair.echo = false;
    let stuck = pair.call(a(), b(), b"", body(1, 10));
    pair.run_for(MOMENT);
    pair.endpoints.insert(b(), endpoint(3, &EndpointOptions::default()));
    pair.call(b(), a(), b"", Bytes::new());
    pair.run_for(MOMENT);
    assert_eq!(pair.outcome(stuck), Err(CallError::SessionLost));
}

#[test]
fn a_caller_that_restarts_abandons_its_requests() {
    let mut pair = Pair::new(3, Faults::default());
    pair.echo = false;
    pair.call(a(), b(), b"", body(1, 10));
    pair.run_for(MOMENT);
    let request = pair.requests[0].id;
    pair.endpoints.insert(a(), endpoint(3, &EndpointOptions::default()));
    pair.call(a(), b(), b"", body(2, 10));
    pair.run_for(MOMENT);
    assert_eq!(pair.abandoned, [request]);
    let now = pair.now;
    pair.at(b()).respond(now, request, Response::default());
    pair.run_for(MOMENT);
    assert!(pair.outcomes.is_empty());
    let second = pair.requests[1].id;
    pair.at(b()).respond(now, second, Response::default());
    pair.run_for(MOMENT);
    assert_eq!(pair.outcomes.len(), 1);
}

#[test]
fn silence_ends_in_unreachable() {
    let mut pair = Pair::new(4, Faults { loss: 1.0, ..Faults::default() });
    let give_up = EndpointOptions::default().give_up;
    let first = pair.call(a(), b(), b"", Bytes::new());
    let began = pair.now;
    pair.run_until_ended(1);
    assert_eq!(pair.outcome(first), Err(CallError::Unreachable));
    assert!(pair.now.since(began) >= give_up && pair.now.since(began) < give_up * 2);

    // And in a session that stood.
    pair.faults.loss = 0.0;
    pair.call(a(), b(), b"", Bytes::new());
    pair.run_until_ended(2);
    pair.faults.loss = 1.0;
    let third = pair.call(a(), b(), b"", body(1, 100_000));
    let began = pair.now;
    pair.run_until_ended(3);
    assert_eq!(pair.outcome(third), Err(CallError::Unreachable));
    assert!(pair.now.since(began) >= give_up && pair.now.since(began) < give_up * 2);
}

#[test]
fn a_closed_port_is_unreachable_at_once() {
    let mut pair = Pair::new(5, Faults { loss: 1.0, ..Faults::default() });
    let call = pair.call(a(), b(), b"", Bytes::new());
    pair.run_for(MOMENT);
    let now = pair.now;
    pair.at(a()).handle_unreachable(now, b());
    pair.run_for(Duration::ZERO);
    assert_eq!(pair.outcome(call), Err(CallError::Unreachable));
    assert_eq!(pair.at(a()).session_count(), 0);
}

#[test]
fn a_short_outage_is_bridged() {
    let mut pair = Pair::new(6, Faults::default());
    pair.call(a(), b(), b"", Bytes::new());
    pair.run_until_ended(1);
    let calls: Vec<_> = (0..20).map(|n| pair.call(a(), b(), b"", body(n, 50_000))).collect();
    pair.run_for(Duration::from_micros(40));
    pair.faults.loss = 1.0;
    pair.run_for(Duration::from_secs(1));
    pair.faults.loss = 0.0;
    pair.run_until_ended(21);
    assert!(calls.iter().all(|call| pair.outcome(*call).is_ok()));
    assert_eq!(pair.requests.len(), 21);
}

#[test]
fn idle_sessions_end_and_long_calls_keep_theirs() {
    let mut pair = Pair::new(7, Faults::default());
    pair.call(a(), b(), b"", Bytes::new());
    pair.run_until_ended(1);
    pair.echo = false;
    let long = pair.call(a(), b(), b"", Bytes::new());
    pair.run_for(Duration::from_secs(600));
    assert_eq!(pair.at(b()).session_count(), 1);
    let (request, now) = (pair.requests[1].id, pair.now);
    pair.at(b()).respond(now, request, Response::default());
    pair.run_for(MOMENT);
    assert!(pair.outcome(long).is_ok());
    pair.run_for(Duration::from_secs(300));
    assert_eq!(pair.at(a()).session_count() + pair.at(b()).session_count(), 0);
    let now = pair.now;
    assert_eq!(pair.at(a()).next_timeout(now), None);
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<crate::session::Session>() <= 1024, "{}", size_of::<crate::session::Session>());
}

#[test]
fn a_silent_pair_sends_nothing() {
    let mut pair = Pair::new(8, Faults::default());
    pair.call(a(), b(), b"", body(1, 100_000));
    pair.run_until_ended(1);
    pair.run_for(Duration::from_secs(1));
    let before = pair.sent;
    pair.run_for(Duration::from_secs(30));
    assert_eq!(pair.sent, before);
}

#[test]
fn beside_a_call_that_waits_for_long_short_ones_cost_nothing_more() {
    let mut pair = Pair::new(12, Faults::default());
    pair.echo = false;
    let held = pair.call(a(), b(), b"", Bytes::new());
    pair.run_for(Duration::from_secs(5));
    pair.echo = true;
    let (sent, mut wakes) = (pair.sent, 0);
    for _ in 0..20 {
        pair.call(a(), b(), b"", Bytes::new());
        let until = pair.now + Duration::from_millis(400);
        while pair.step(until) {
            wakes += 1;
        }
    }
    // Request, response and an acknowledgement each, with one timer between them; the peer is heard often enough. The first
    // meets a question about the call that waits.
    assert!(pair.sent - sent <= 3 * 20 + 2, "{}", pair.sent - sent);
    assert!(wakes <= 4 * 20 + 4, "{wakes}");
    // A call that gets no answer is looked after as soon as ever.
    pair.echo = false;
    let stuck = pair.call(a(), b(), b"", Bytes::new());
    pair.run_for(MOMENT);
    pair.endpoints.insert(b(), endpoint(3, &EndpointOptions::default()));
    pair.run_for(Duration::from_millis(150));
    assert_eq!(pair.outcome(stuck), Err(CallError::SessionLost));
    assert_eq!(pair.outcome(held), Err(CallError::SessionLost));
}

/// The path is found and the window open.
fn warm(seed: u64) -> Pair {
    let mut pair = Pair::new(seed, Faults::default());
    for n in 0..4 {
        pair.call(a(), b(), b"", body(n, 1 << 20));
    }
    pair.run_until_ended(4);
    pair.run_for(Duration::from_secs(1));
    pair
}

#[test]
fn the_answer_acknowledges_a_large_request() {
    let mut pair = warm(13);
    pair.echo = false;
    let call = pair.call(a(), b(), b"", body(1, 1 << 20));
    pair.capture = Some(Vec::new());
    pair.run_for(Duration::from_millis(5));
    let (id, now) = (pair.requests.pop().unwrap().id, pair.now);
    pair.at(b()).respond(now, id, Response::default());
    pair.run_for(Duration::from_secs(1));
    assert!(pair.outcome(call).is_ok());
    let answers = pair.capture.iter().flatten().filter(|(from, ..)| *from == b()).count();
    let packets = (1 << 20) / 8952 + 1;
    let alone = packets / EndpointOptions::default().ack_packets as usize;
    assert!(answers <= alone + 1, "the last part is acknowledged by the answer: {answers} datagrams for {packets}");
}

#[test]
fn a_lost_end_of_a_large_request_is_found_soon() {
    let mut pair = warm(14);
    let call = pair.call(a(), b(), b"", body(1, 1 << 20));
    pair.flush();
    for _ in 0..7 {
        drop(pair.under_way.pop_last());
    }
    let began = pair.now;
    pair.run_until_ended(5);
    assert!(pair.outcome(call).is_ok());
    assert!(pair.now.since(began) < Duration::from_millis(15), "{:?}", pair.now.since(began));
}

#[test]
fn a_call_taken_back_leaves_nothing_behind() {
    // 10 Gbit/s, so that there is a middle.
    let mut pair = Pair::new(9, Faults { byte_ps: 800, loss: 0.05, ..Faults::default() });
    pair.call(a(), b(), b"", Bytes::new());
    pair.run_until_ended(1);
    for n in 0..30 {
        let call = pair.call(a(), b(), b"", body(n, 1 << 20));
        pair.run_for(Duration::from_micros(n * 90));
        let now = pair.now;
        pair.at(a()).cancel(now, call);
    }
    pair.run_for(Duration::from_secs(1));
    assert_eq!(pair.at(a()).assembly_bytes() + pair.at(b()).assembly_bytes(), 0);
    let last = pair.call(a(), b(), b"", body(1, 1 << 20));
    let ended = pair.outcomes.len();
    pair.run_until_ended(ended + 1);
    assert!(pair.outcome(last).is_ok());
}

#[test]
fn too_many_requests_are_sent_back() {
    let options = EndpointOptions { requests_per_peer_max: 4, calls_max: 10, ..EndpointOptions::default() };
    let mut pair = Pair::with_options(10, Faults::default(), &options);
    pair.echo = false;
    let calls: Vec<_> = (0..10).map(|_| pair.call(a(), b(), b"", Bytes::new())).collect();
    let now = pair.now;
    let more = pair.at(a()).call(now, b(), Service::Drive, Bytes::new(), Bytes::new());
    assert_eq!(more, Err(CallError::Overloaded));
    pair.run_for(MOMENT);
    assert_eq!(pair.requests.len(), 4);
    assert_eq!(pair.outcomes.len(), 6);
    assert!(calls[4..].iter().all(|call| pair.outcome(*call) == Err(CallError::Overloaded)));
}

#[test]
fn a_small_window_is_kept_and_enough() {
    let options = EndpointOptions { window_bytes: 64 << 10, assembly_bytes_max: 4 << 20, ..EndpointOptions::default() };
    let mut pair = Pair::with_options(11, Faults { loss: 0.02, ..Faults::default() }, &options);
    for n in 0..20 {
        pair.call(a(), b(), b"", body(n, 20_000 * n as usize % 300_000));
    }
    let mut most = 0;
    while pair.outcomes.len() < 20 {
        assert!(pair.step(Instant(60_000_000_000)));
        most = most.max(pair.at(b()).assembly_bytes());
    }
    assert!(most <= 300_000, "{most}");
    assert!(pair.outcomes.values().all(Result::is_ok));
}
