//! The whole transport over links: the simulated network in virtual time, and UDP on this host.

use bytes::Bytes;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;
use weft_link::sim::{NodeState, SimNet, SimNetOptions};
use weft_link::udp::UdpLink;
use weft_reactor::testing::VirtualTime;
use weft_reactor::{Core, CoreOptions, Idle, join_all};
use weft_transport::rpc::{CallError, Handler, Network, Response, Rpc, RpcOptions, flatten, handler};
use weft_wire::hash::Secret;
use weft_wire::map::{Map, Node, Protection, State};
use weft_wire::{ClientId, CoreId, DomainId, Incarnation, MapVersion, NodeId, Service, Uuid};

const SECOND: Duration = Duration::from_secs(1);

fn core(node: u16) -> CoreId {
    CoreId { node: NodeId(node), core: 0 }
}

fn address(node: u16) -> SocketAddr {
    ([10, 0, 0, node as u8], 7000).into()
}

fn map(nodes: &[(u16, SocketAddr)]) -> Map {
    let node = |(id, address): &(u16, SocketAddr)| {
        let node = Node {
            id: NodeId(*id),
            name: format!("n{id}"),
            domain: DomainId(*id),
            domain_name: None,
            cores: vec![*address],
            control: *address,
            incarnation: Incarnation(1),
            state: State::Up,
            purpose: weft_wire::map::Purpose::Serve,
        };
        (node.id, node)
    };
    Map {
        version: MapVersion(1),
        cluster: Uuid(1),
        name: String::from("test"),
        secret: Secret([0; 16]),
        protection: Protection { data: 3, parity: 2 },
        bucket_bits: 1,
        nodes: nodes.iter().map(node).collect(),
        drives: BTreeMap::new(),
        buckets: Vec::new(),
        filesystems: BTreeMap::new(),
        managers: Vec::new(),
        next_client: ClientId(1),
        next_node: Default::default(),
        next_drive: Default::default(),
        hot_spare: 0,
        clients: BTreeMap::new(),
    }
}

fn echo() -> Handler {
    handler(|request| async move { Response { head: request.head, body: request.body } })
}

/// Nodes 1 and 2 of a simulated network, each with its map.
struct Simulated {
    time: VirtualTime,
    net: SimNet,
    nodes: [Rc<Rpc>; 2],
}

fn simulated(seed: u64, net: SimNetOptions, options: &RpcOptions) -> Simulated {
    let time = VirtualTime::new(seed);
    let net = SimNet::new(seed, net);
    time.add_poller(net.poller());
    let map = map(&[(1, address(1)), (2, address(2))]);
    let nodes = [1, 2].map(|node| {
        let link = net.link(address(node)).unwrap();
        let options = RpcOptions { local: Some(core(node)), ..options.clone() };
        let rpc = Rpc::new(time.handle(), Box::new(link), options);
        rpc.set_addresses(&map);
        time.add_poller(rpc.poller());
        rpc
    });
    Simulated { time, net, nodes }
}

fn start(
    from: &Rc<Rpc>,
    to: u16,
    body: Bytes,
    timeout: Duration,
) -> impl Future<Output = Result<Response, CallError>> + use<> {
    let call = from.call(core(to), Service::Drive, Bytes::from_static(b"head"), body, timeout);
    async move { flatten(call.await) }
}

#[test]
fn calls_cross_a_rough_network_and_run_once() {
    for seed in 0..4 {
        let Simulated { time, nodes: [a, b], .. } = simulated(seed, SimNetOptions::rough(), &RpcOptions::default());
        let runs = Rc::new(Cell::new(0));
        let count = runs.clone();
        b.serve(
            Service::Drive,
            handler(move |request| {
                count.set(count.get() + 1);
                assert_eq!(request.from_core, Some(core(1)));
                async move { Response { head: request.head, body: request.body } }
            }),
        );
        let body = |n: usize| Bytes::from(vec![n as u8; n * 5000 % 200_000]);
        let calls: Vec<_> = (0..50).map(|n| start(&a, 2, body(n), SECOND * 30)).collect();
        let outcomes = time.block_on(join_all(calls));
        for (n, outcome) in outcomes.into_iter().enumerate() {
            let response = outcome.unwrap();
            assert!(response.body == body(n) && response.head == b"head"[..]);
            assert!(response.body.len() < 4096 || weft_reactor::is_aligned(&response.body));
        }
        assert_eq!(runs.get(), 50);
    }
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let run = || {
        let Simulated { time, net, nodes: [a, b] } = simulated(7, SimNetOptions::rough(), &RpcOptions::default());
        b.serve(Service::Drive, echo());
        let calls: Vec<_> = (0..20).map(|n| start(&a, 2, Bytes::from(vec![1; n * 9000]), SECOND * 30)).collect();
        time.block_on(join_all(calls));
        (time.handle().now(), format!("{:?} {:?} {:?}", net.stats(), a.stats(), b.stats()))
    };
    assert_eq!(run(), run());
}

/// Time that eight nodes need to write 8 MiB each to one, over links of 10 Gbit/s.
fn incast(seed: u64, net: SimNetOptions) -> Duration {
    let time = VirtualTime::new(seed);
    let net = SimNet::new(seed, SimNetOptions { bandwidth: Some(1_250_000_000), ..net });
    time.add_poller(net.poller());
    let node = |id| {
        let rpc = Rpc::new(time.handle(), Box::new(net.link(address(id)).unwrap()), RpcOptions::default());
        time.add_poller(rpc.poller());
        rpc
    };
    let server = node(9);
    server.serve(Service::Drive, handler(|_| async { Response::default() }));
    let clients: Vec<_> = (1..9).map(node).collect();
    let began = time.handle().now();
    let writers = clients.iter().map(|client| async move {
        for _ in 0..4 {
            let body = || Bytes::from(vec![1; 1 << 20]);
            let write = || client.call_addr(address(9), Service::Drive, Bytes::new(), body(), SECOND * 20);
            for outcome in join_all([write(), write()]).await {
                flatten(outcome).unwrap();
            }
        }
    });
    time.block_on(join_all(writers));
    time.handle().now().since(began)
}

#[test]
fn many_writers_to_one_share_its_link() {
    let wire = Duration::from_nanos((64 << 20) * 1_000_000_000 / 1_250_000_000);
    let clean = incast(1, SimNetOptions::calm());
    let unmarked = incast(1, SimNetOptions { mark_above_bytes: u64::MAX, ..SimNetOptions::calm() });
    // One run says little: whether the end of a message is lost twice is chance.
    const RUNS: u32 = 8;
    let lossy = (0..RUNS).map(|seed| incast(seed.into(), SimNetOptions { loss: 0.01, ..SimNetOptions::calm() }));
    let lossy = lossy.sum::<Duration>() / RUNS;
    println!("wire {wire:?}, clean {clean:?}, without marks {unmarked:?}, 1 % loss {lossy:?}");
    assert!(wire * 10 >= clean * 9, "{clean:?} for {wire:?}");
    assert!(wire * 100 >= unmarked * 85, "{unmarked:?} for {wire:?}");
    assert!(clean * 10 >= lossy * 8, "{lossy:?} for {clean:?}");
}

#[test]
fn a_core_calls_itself_without_a_link() {
    let Simulated { time, net, nodes: [a, _] } = simulated(1, SimNetOptions::calm(), &RpcOptions::default());
    assert_eq!(time.block_on(start(&a, 1, Bytes::new(), SECOND)), Err(CallError::NoService));
    a.serve(Service::Drive, echo());
    let unaligned = Bytes::from(vec![1; 5001]).slice(1..);
    let response = time.block_on(start(&a, 1, unaligned, SECOND)).unwrap();
    assert!(weft_reactor::is_aligned(&response.body));
    assert_eq!(net.stats().sent, 0);
    a.serve(Service::Drive, handler(|_| std::future::pending()));
    assert_eq!(time.block_on(start(&a, 1, Bytes::new(), SECOND)), Err(CallError::Timeout));
}

#[test]
fn each_failure_has_its_name() {
    let Simulated { time, net, nodes: [a, b] } = simulated(2, SimNetOptions::calm(), &RpcOptions::default());
    assert_eq!(time.block_on(start(&a, 9, Bytes::new(), SECOND)), Err(CallError::NoAddress));
    assert_eq!(time.block_on(start(&a, 2, Bytes::from(vec![0; 3 << 20]), SECOND)), Err(CallError::TooLarge));
    assert_eq!(time.block_on(start(&a, 2, Bytes::new(), SECOND)), Err(CallError::NoService));
    b.serve(
        Service::Drive,
        handler(|_| async { Response { head: Bytes::new(), body: Bytes::from(vec![0; 3 << 20]) } }),
    );
    assert_eq!(time.block_on(start(&a, 2, Bytes::new(), SECOND)), Err(CallError::TooLarge));
    b.serve(Service::Drive, handler(|_| std::future::pending()));
    assert_eq!(time.block_on(start(&a, 2, Bytes::new(), SECOND)), Err(CallError::Timeout));
    net.set_node(address(2), NodeState::Silent);
    assert_eq!(time.block_on(start(&a, 2, Bytes::new(), SECOND * 30)), Err(CallError::Unreachable));
    net.set_node(address(2), NodeState::Refusing);
    let began = time.handle().now();
    assert_eq!(time.block_on(start(&a, 2, Bytes::new(), SECOND * 30)), Err(CallError::Unreachable));
    assert!(time.handle().now().since(began) < Duration::from_millis(1));
}

#[test]
fn too_many_requests_in_handlers_are_sent_back() {
    let options = RpcOptions { requests_max: 3, ..RpcOptions::default() };
    let Simulated { time, nodes: [a, b], .. } = simulated(3, SimNetOptions::calm(), &options);
    b.serve(Service::Drive, handler(|_| std::future::pending()));
    let calls: Vec<_> = (0..5).map(|_| start(&a, 2, Bytes::new(), SECOND)).collect();
    let outcomes = time.block_on(join_all(calls));
    let count = |error| outcomes.iter().filter(|outcome| **outcome == Err(error)).count();
    assert_eq!((count(CallError::Timeout), count(CallError::Overloaded)), (3, 2));
    assert_eq!(b.running(), 3);
}

#[test]
fn a_dropped_call_is_taken_back_and_its_handler_not_interrupted() {
    let Simulated { time, nodes: [a, b], .. } = simulated(4, SimNetOptions::calm(), &RpcOptions::default());
    let finished = Rc::new(Cell::new(false));
    let (flag, clock) = (finished.clone(), time.handle());
    b.serve(
        Service::Drive,
        handler(move |_| {
            let (flag, clock) = (flag.clone(), clock.clone());
            async move {
                clock.sleep(SECOND).await;
                flag.set(true);
                Response::default()
            }
        }),
    );
    let call = a.call(core(2), Service::Drive, Bytes::new(), Bytes::new(), SECOND * 60);
    time.run_for(Duration::from_millis(100));
    assert_eq!(b.running(), 1);
    drop(call);
    time.run_for(SECOND * 2);
    assert!(finished.get());
    assert_eq!(b.running(), 0);
    // Nothing waits any more: the sessions become idle and end.
    time.run_for(SECOND * 300);
    assert_eq!(a.session_count() + b.session_count(), 0);
}

#[test]
fn a_restarted_node_is_a_lost_session_then_a_new_one() {
    let Simulated { time, net, nodes: [a, b] } = simulated(5, SimNetOptions::calm(), &RpcOptions::default());
    b.serve(Service::Drive, handler(|_| std::future::pending()));
    let call = start(&a, 2, Bytes::new(), SECOND * 60);
    time.run_for(Duration::from_millis(10));
    drop(b);
    let b = Rpc::new(time.handle(), Box::new(net.link(address(2)).unwrap()), RpcOptions::default());
    b.serve(Service::Drive, echo());
    time.add_poller(b.poller());
    assert_eq!(time.block_on(call), Err(CallError::SessionLost));
    assert!(time.block_on(start(&a, 2, Bytes::new(), SECOND)).is_ok());
}

#[test]
fn calls_cross_udp_between_two_threads() {
    let options = |name: &str, seed| CoreOptions {
        name: String::from(name),
        idle: Idle::Adaptive { spin: Duration::from_micros(50) },
        seed,
        pin: None,
    };
    let (ready, server) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut core = Core::new(options("server", 1)).unwrap();
        let link = UdpLink::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let rpc = Rpc::new(core.handle(), Box::new(link), RpcOptions::default());
        rpc.serve(Service::Drive, echo());
        core.add_poller(rpc.poller()).unwrap();
        ready.send((rpc.local_addr(), core.mailbox())).unwrap();
        core.run().unwrap();
    });
    let (server, mailbox) = server.recv().unwrap();
    let mut core = Core::new(options("client", 2)).unwrap();
    let link = UdpLink::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let rpc = Rpc::new(core.handle(), Box::new(link), RpcOptions::default());
    core.add_poller(rpc.poller()).unwrap();
    let handle = core.handle();
    let outcome = Rc::new(Cell::new(None));
    let result = outcome.clone();
    let network: Rc<dyn Network> = rpc;
    let stop = handle.clone();
    let client = async move {
        let body = |n: usize| Bytes::from(vec![n as u8; n * n * 499 % (1 << 20)]);
        let mut all_right = true;
        for round in 0..4 {
            let calls = (0..32).map(|n| {
                let call = network.call_addr(server, Service::Drive, Bytes::new(), body(n * round), SECOND * 20);
                async move { flatten(call.await) }
            });
            for (n, outcome) in join_all(calls).await.into_iter().enumerate() {
                all_right &= outcome.is_ok_and(|response| response.body == body(n * round));
            }
        }
        mailbox.send(Box::new(|server| server.shutdown())).unwrap();
        // The port is closed soon; then calls fail without waiting for their time to end.
        let error = loop {
            let call = network.ask_addr(server, Service::Drive, Bytes::new(), Bytes::new(), SECOND * 2);
            match call.await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        result.set(Some((all_right, error)));
        stop.shutdown();
    };
    handle.spawn("client", client).detach();
    core.run().unwrap();
    thread.join().unwrap();
    let (all_right, error) = outcome.take().unwrap();
    assert!(all_right);
    assert!(matches!(error, CallError::Unreachable | CallError::Timeout | CallError::SessionLost), "{error}");
}
