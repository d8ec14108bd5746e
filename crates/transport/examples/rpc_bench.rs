//! Measures calls over UDP on this host, next to the same traffic over raw UDP in the same run.
//!
//! `cargo run --profile dist -p weft-transport --example rpc_bench [seconds per row] [busy|adaptive] [name of rows]`
//!
//! Two threads, one each side. CPU is that of the whole process per operation; with `busy` it only shows the time.

use bytes::Bytes;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use weft_link::udp::UdpLink;
use weft_link::{Datagram, Link};
use weft_reactor::{Core, CoreOptions, Handle, Idle, Mailbox, Poller};
use weft_transport::rpc::{Network, Response, Rpc, RpcOptions, flatten, handler};
use weft_wire::Service;

const TIMEOUT: Duration = Duration::from_secs(10);

struct Row {
    name: &'static str,
    /// Bytes there, bytes back, calls at a time.
    there: usize,
    back: usize,
    depth: usize,
}

const ROWS: [Row; 7] = [
    Row { name: "64 B, one at a time", there: 64, back: 64, depth: 1 },
    Row { name: "64 B, 64 at a time", there: 64, back: 64, depth: 64 },
    Row { name: "4 KiB write, one at a time", there: 4096, back: 0, depth: 1 },
    Row { name: "4 KiB write, 32 at a time", there: 4096, back: 0, depth: 32 },
    Row { name: "4 KiB read, 32 at a time", there: 0, back: 4096, depth: 32 },
    Row { name: "1 MiB write, 8 at a time", there: 1 << 20, back: 0, depth: 8 },
    Row { name: "1 MiB read, 8 at a time", there: 0, back: 1 << 20, depth: 8 },
];

fn options(name: &str, idle: Idle) -> CoreOptions {
    CoreOptions { name: String::from(name), idle, seed: std::process::id().into(), pin: None }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// A server on its own thread; the head of a request says how much to send back.
fn serve(idle: Idle) -> (SocketAddr, Mailbox, std::thread::JoinHandle<()>) {
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut core = Core::new(options("bench-server", idle)).expect("a core");
        let link = UdpLink::bind(([127, 0, 0, 1], 0).into()).expect("a socket");
        let rpc = Rpc::new(core.handle(), Box::new(link), RpcOptions::default());
        let data = Bytes::from(vec![7; 1 << 20]);
        let answer = move |request: weft_transport::rpc::Request| {
            let back = request.head.get(..8).and_then(|head| head.try_into().ok()).map_or(0, u64::from_le_bytes);
            let body = data.slice(..back as usize);
            async move { Response { head: Bytes::new(), body } }
        };
        rpc.serve(Service::Drive, handler(answer));
        core.add_poller(rpc.poller()).expect("a poller");
        send.send((rpc.local_addr(), core.mailbox())).expect("a listener");
        core.run().expect("a running core");
    });
    let (address, mailbox) = receive.recv().expect("a server");
    (address, mailbox, thread)
}

async fn measure(network: &Rc<dyn Network>, handle: &Handle, server: SocketAddr, row: &Row, time: Duration) -> u64 {
    let done = Rc::new(Cell::new(0_u64));
    let until = Instant::now() + time;
    let head = Bytes::copy_from_slice(&(row.back as u64).to_le_bytes());
    let body = Bytes::from(vec![5; row.there]);
    let workers: Vec<_> = (0..row.depth)
        .map(|_| {
            let (network, done, head, body) = (network.clone(), done.clone(), head.clone(), body.clone());
            handle.spawn("bench", async move {
                while Instant::now() < until {
                    let call = network.call_addr(server, Service::Drive, head.clone(), body.clone(), TIMEOUT);
                    flatten(call.await).expect("an answer");
                    done.set(done.get() + 1);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("a worker");
    }
    done.get()
}

fn print(name: &str, what: &str, count: u64, bytes: usize, time: Duration, cpu: Duration) {
    let seconds = time.as_secs_f64();
    println!(
        "{name:28} {what:5} {:>9.0} /s {:>8.2} us each {:>8.2} CPU us each {:>8.0} MB/s",
        count as f64 / seconds,
        seconds * 1e6 / count as f64,
        cpu.as_secs_f64() * 1e6 / count as f64,
        count as f64 * bytes as f64 / seconds / 1e6,
    );
}

/// One side of the row's traffic over the bare link: so many bytes for each so many that come.
struct Raw {
    link: UdpLink,
    peer: SocketAddr,
    /// Bytes of a message that comes, and of one that goes.
    comes: usize,
    goes: usize,
    held: usize,
    /// Messages that may be under way, if this side begins.
    depth: usize,
    heard: Instant,
    messages: Rc<Cell<u64>>,
}

impl Raw {
    fn send(&mut self, messages: usize) {
        const SEGMENT: usize = 8952;
        let data = vec![3; 7 * SEGMENT];
        let mut left = self.goes * messages;
        while left > 0 {
            let segment_size = SEGMENT.min(self.goes);
            let len = left.min(data.len()).min(segment_size * self.link.segments_max());
            let batch = [Datagram { to: self.peer, ecn: 0, segments: &data[..len], segment_size }];
            if self.link.send(&batch) == 1 {
                left -= len;
            }
        }
    }
}

impl Poller for Raw {
    fn poll(&mut self, _now: weft_reactor::Instant) -> usize {
        let held = &mut self.held;
        let arrived = self.link.receive(&mut |received| *held += received.data.len());
        let messages = self.held / self.comes;
        self.held -= messages * self.comes;
        self.messages.set(self.messages.get() + messages as u64);
        if arrived > 0 {
            self.heard = Instant::now();
            self.send(messages);
        } else if self.depth > 0 && self.heard.elapsed() > Duration::from_millis(50) {
            // The beginning, or something was dropped: begin anew.
            self.heard = Instant::now();
            self.send(self.depth);
        }
        arrived
    }

    fn wait_fd(&self) -> Option<std::os::fd::RawFd> {
        self.link.wait_fd()
    }
}

fn raw(row: &Row, idle: Idle, time: Duration) -> u64 {
    let bind = || UdpLink::bind(([127, 0, 0, 1], 0).into()).expect("a socket");
    let (here, far) = (bind(), bind());
    let (here_addr, far_addr) = (here.local_addr(), far.local_addr());
    let (there, back) = (row.there.max(64), row.back.max(64));
    let side = move |link, peer, comes, goes, depth, messages| Raw {
        link,
        peer,
        comes,
        goes,
        held: 0,
        depth,
        heard: Instant::now() - Duration::from_secs(1),
        messages,
    };
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut core = Core::new(options("raw-server", idle)).expect("a core");
        let poller = side(far, here_addr, there, back, 0, Rc::default());
        core.add_poller(Box::new(poller)).expect("a poller");
        send.send(core.mailbox()).expect("a listener");
        core.run().expect("a running core");
    });
    let mailbox = receive.recv().expect("a server");
    let mut core = Core::new(options("raw-client", idle)).expect("a core");
    let messages = Rc::new(Cell::new(0));
    let poller = side(here, far_addr, back, there, row.depth, messages.clone());
    core.add_poller(Box::new(poller)).expect("a poller");
    let handle = core.handle();
    let clock = handle.clone();
    let end = async move {
        clock.sleep(time).await;
        clock.shutdown();
    };
    handle.spawn("end", end).detach();
    core.run().expect("a running core");
    mailbox.send(Box::new(|server| server.shutdown())).expect("the server");
    thread.join().expect("the server");
    messages.get()
}

fn main() {
    let only = std::env::args().nth(3).unwrap_or_default();
    let seconds = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(2.0);
    let idle = match std::env::args().nth(2).as_deref() {
        Some("busy") => Idle::Busy,
        _ => Idle::Adaptive { spin: Duration::from_micros(20) },
    };
    let time = Duration::from_secs_f64(seconds);
    let (server, mailbox, thread) = serve(idle);
    let mut core = Core::new(options("bench-client", idle)).expect("a core");
    let link = UdpLink::bind(([127, 0, 0, 1], 0).into()).expect("a socket");
    let rpc = Rpc::new(core.handle(), Box::new(link), RpcOptions::default());
    core.add_poller(rpc.poller()).expect("a poller");
    let handle = core.handle();
    let network: Rc<dyn Network> = rpc.clone();
    let tasks = handle.clone();
    let filter = only.clone();
    let client = async move {
        for row in ROWS.iter().filter(|row| row.name.contains(&filter)) {
            let (began, before) = (Instant::now(), cpu());
            let count = measure(&network, &tasks, server, row, time).await;
            print(row.name, "rpc", count, row.there + row.back, began.elapsed(), cpu() - before);
        }
        mailbox.send(Box::new(|server| server.shutdown())).expect("the server");
        tasks.shutdown();
    };
    handle.spawn("client", client).detach();
    core.run().expect("a running core");
    thread.join().expect("the server");
    println!("{:?}", rpc.stats());
    for row in ROWS.iter().filter(|row| row.name.contains(&only)) {
        let (began, before) = (Instant::now(), cpu());
        let count = raw(row, idle, time);
        print(row.name, "raw", count, row.there + row.back, began.elapsed(), cpu() - before);
    }
}
