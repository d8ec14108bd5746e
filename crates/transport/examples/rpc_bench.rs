//! Measures calls over UDP on this host, next to the same traffic over raw UDP in the same run.
//!
//! `cargo run --profile dist -p weft-transport --example rpc_bench [seconds per row]`
//!
//! Two threads, one each side, both polling. CPU is that of the whole process per operation.

use bytes::Bytes;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use weft_link::udp::UdpLink;
use weft_link::{Datagram, Link};
use weft_reactor::{Core, CoreOptions, Handle, Idle, Mailbox};
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

fn options(name: &str) -> CoreOptions {
    CoreOptions { name: String::from(name), idle: Idle::Busy, seed: std::process::id().into(), pin: None }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// A server on its own thread; the head of a request says how much to send back.
fn serve() -> (SocketAddr, Mailbox, std::thread::JoinHandle<()>) {
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut core = Core::new(options("bench-server")).expect("a core");
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

/// The row's bytes over the bare link: `depth` messages there, as many back, and again.
fn raw(row: &Row, time: Duration) -> u64 {
    let bind = || UdpLink::bind(([127, 0, 0, 1], 0).into()).expect("a socket");
    let (mut client, mut server) = (bind(), bind());
    let (client_addr, server_addr) = (client.local_addr(), server.local_addr());
    let (there, back) = (row.there.max(64), row.back.max(64));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        let mut held = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            server.receive(&mut |received| held += received.data.len());
            let messages = held / there;
            if messages > 0 {
                held -= messages * there;
                send_raw(&mut server, client_addr, back, messages);
            }
        }
    });
    let until = Instant::now() + time;
    let (mut done, mut held, mut heard) = (0, 0, Instant::now());
    send_raw(&mut client, server_addr, there, row.depth);
    while Instant::now() < until {
        let arrived = client.receive(&mut |received| held += received.data.len());
        let messages = held / back;
        if messages > 0 {
            held -= messages * back;
            done += messages as u64;
            send_raw(&mut client, server_addr, there, messages);
        }
        if arrived > 0 {
            heard = Instant::now();
        } else if heard.elapsed() > Duration::from_millis(20) {
            // Something was dropped: begin anew.
            heard = Instant::now();
            send_raw(&mut client, server_addr, there, row.depth);
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    thread.join().expect("the raw server");
    done
}

fn send_raw(link: &mut UdpLink, to: SocketAddr, bytes: usize, messages: usize) {
    const SEGMENT: usize = 8952;
    let data = vec![3; 7 * SEGMENT];
    let mut left = bytes * messages;
    while left > 0 {
        let len = left.min(data.len());
        let segment_size = SEGMENT.min(bytes).min(len);
        let len = len.min(segment_size * link.segments_max());
        let batch = [Datagram { to, ecn: 0, segments: &data[..len], segment_size }];
        if link.send(&batch) == 1 {
            left -= len;
        }
    }
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    let (server, mailbox, thread) = serve();
    let mut core = Core::new(options("bench-client")).expect("a core");
    let link = UdpLink::bind(([127, 0, 0, 1], 0).into()).expect("a socket");
    let rpc = Rpc::new(core.handle(), Box::new(link), RpcOptions::default());
    core.add_poller(rpc.poller()).expect("a poller");
    let handle = core.handle();
    let network: Rc<dyn Network> = rpc.clone();
    let tasks = handle.clone();
    let client = async move {
        for row in &ROWS {
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
    for row in &ROWS {
        let (began, before) = (Instant::now(), cpu());
        let count = raw(row, time);
        print(row.name, "raw", count, row.there + row.back, began.elapsed(), cpu() - before);
    }
}
