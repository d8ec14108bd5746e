use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;

use bytes::Bytes;
use weft_reactor::{Instant, Poller, Random};

use super::options::{NodeState, PartitionId, SimNetOptions, SimNetStats};
use super::path::{Event, EventKind, Packet, Port, draw_delay};
use crate::{Datagram, Link, LinkKind, Received};

/// What a link holds for an endpoint that does not receive, like a socket buffer; more is dropped.
const INBOX_BYTES_MAX: usize = 8 << 20;
/// Datagrams handed over by one [`Link::receive`].
const RECEIVE_DATAGRAMS_MAX: usize = 256;
/// Segments of one [`Datagram`].
const SEGMENTS_MAX: usize = 64;
/// Remembered between two calls of [`Link::take_unreachable`].
const UNREACHABLE_MAX: usize = 1024;

/// A network in memory. Clones are the same network.
///
/// Its time is what [`advance`](Self::advance) was last told: advance it before anyone sends at a new time.
/// What happens is a function of the seed, the options and the order of calls.
#[derive(Clone)]
pub struct SimNet {
    inner: Rc<RefCell<Inner>>,
}

struct Inner {
    options: SimNetOptions,
    /// Directions that differ: (from, to).
    paths: BTreeMap<(SocketAddr, SocketAddr), SimNetOptions>,
    nodes: BTreeMap<SocketAddr, NodeState>,
    partitions: BTreeMap<PartitionId, Partition>,
    partition_next: u64,
    inboxes: BTreeMap<SocketAddr, Inbox>,
    out_ports: BTreeMap<SocketAddr, Port>,
    in_ports: BTreeMap<SocketAddr, Port>,
    events: BinaryHeap<Reverse<Event>>,
    event_next: u64,
    now: Instant,
    random: Random,
    arrived: BTreeSet<SocketAddr>,
    stats: SimNetStats,
}

struct Partition {
    from: BTreeSet<SocketAddr>,
    to: BTreeSet<SocketAddr>,
}

#[derive(Default)]
struct Inbox {
    packets: VecDeque<Packet>,
    bytes: usize,
    unreachable: BTreeSet<SocketAddr>,
}

impl SimNet {
    pub fn new(seed: u64, options: SimNetOptions) -> Self {
        let inner = Inner {
            options,
            paths: BTreeMap::new(),
            nodes: BTreeMap::new(),
            partitions: BTreeMap::new(),
            partition_next: 0,
            inboxes: BTreeMap::new(),
            out_ports: BTreeMap::new(),
            in_ports: BTreeMap::new(),
            events: BinaryHeap::new(),
            event_next: 0,
            now: Instant::ZERO,
            random: Random::new(seed),
            arrived: BTreeSet::new(),
            stats: SimNetStats::default(),
        };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    /// Listens at an address. The address is free again when the link is dropped; what was under way to it is then refused.
    pub fn link(&self, addr: SocketAddr) -> io::Result<SimLink> {
        let mut inner = self.inner.borrow_mut();
        if inner.inboxes.contains_key(&addr) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("binding sim {addr}: address in use")));
        }
        inner.inboxes.insert(addr, Inbox::default());
        Ok(SimLink { net: Rc::clone(&self.inner), addr })
    }

    /// When something will next happen on its own.
    pub fn next_event(&self) -> Option<Instant> {
        self.inner.borrow().events.peek().map(|Reverse(event)| event.at)
    }

    /// Moves time to `now` and lets everything happen that is due. Returns how many datagrams and refusals arrived.
    pub fn advance(&self, now: Instant) -> usize {
        self.inner.borrow_mut().advance(now)
    }

    /// Addresses at which something arrived since the last call.
    pub fn take_arrived(&self) -> BTreeSet<SocketAddr> {
        std::mem::take(&mut self.inner.borrow_mut().arrived)
    }

    /// Lets a core or a virtual time drive this network.
    pub fn poller(&self) -> Box<dyn Poller> {
        Box::new(SimPoller { net: self.clone() })
    }

    /// Changes all paths that have no options of their own.
    pub fn set_options(&self, options: SimNetOptions) {
        self.inner.borrow_mut().options = options;
    }

    /// Gives one direction options of its own, or takes them away.
    pub fn set_path(&self, from: SocketAddr, to: SocketAddr, options: Option<SimNetOptions>) {
        let mut inner = self.inner.borrow_mut();
        match options {
            Some(options) => inner.paths.insert((from, to), options),
            None => inner.paths.remove(&(from, to)),
        };
    }

    /// Stops everything that goes *from* one set *to* the other; the way back stays open.
    pub fn partition(
        &self,
        from: impl IntoIterator<Item = SocketAddr>,
        to: impl IntoIterator<Item = SocketAddr>,
    ) -> PartitionId {
        let mut inner = self.inner.borrow_mut();
        let id = PartitionId(inner.partition_next);
        inner.partition_next += 1;
        inner.partitions.insert(id, Partition { from: from.into_iter().collect(), to: to.into_iter().collect() });
        id
    }

    pub fn heal(&self, partition: PartitionId) {
        self.inner.borrow_mut().partitions.remove(&partition);
    }

    pub fn heal_all(&self) {
        self.inner.borrow_mut().partitions.clear();
    }

    /// What waits at a node that is not up is gone.
    pub fn set_node(&self, addr: SocketAddr, state: NodeState) {
        let mut inner = self.inner.borrow_mut();
        match state {
            NodeState::Up => {
                inner.nodes.remove(&addr);
            }
            NodeState::Silent | NodeState::Refusing => {
                inner.nodes.insert(addr, state);
                if let Some(inbox) = inner.inboxes.get_mut(&addr) {
                    *inbox = Inbox::default();
                }
            }
        }
    }

    pub fn stats(&self) -> SimNetStats {
        self.inner.borrow().stats
    }

    /// Datagrams under way and waiting.
    pub fn pending_count(&self) -> usize {
        let inner = self.inner.borrow();
        inner.events.len() + inner.inboxes.values().map(|inbox| inbox.packets.len()).sum::<usize>()
    }
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.borrow();
        f.debug_struct("SimNet").field("now", &inner.now).field("stats", &inner.stats).finish_non_exhaustive()
    }
}

impl Inner {
    fn options(&self, from: SocketAddr, to: SocketAddr) -> &SimNetOptions {
        self.paths.get(&(from, to)).unwrap_or(&self.options)
    }

    fn node(&self, addr: SocketAddr) -> NodeState {
        self.nodes.get(&addr).copied().unwrap_or_default()
    }

    fn is_cut(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.partitions.values().any(|partition| partition.from.contains(&from) && partition.to.contains(&to))
    }

    fn schedule(&mut self, at: Instant, kind: EventKind) {
        let serial = self.event_next;
        self.event_next += 1;
        self.events.push(Reverse(Event { at, serial, kind }));
    }

    fn advance(&mut self, now: Instant) -> usize {
        self.now = self.now.max(now);
        let delivered = self.stats.delivered;
        let mut refusals = 0;
        while self.events.peek().is_some_and(|Reverse(event)| event.at <= self.now) {
            let Some(Reverse(event)) = self.events.pop() else { break };
            match event.kind {
                EventKind::ReachPort(packet) => self.reach_port(event.at, packet),
                EventKind::Arrive(packet) => self.arrive(event.at, packet),
                EventKind::Refuse { sender, to } => {
                    if let Some(inbox) = self.inboxes.get_mut(&sender)
                        && inbox.unreachable.len() < UNREACHABLE_MAX
                    {
                        inbox.unreachable.insert(to);
                        self.arrived.insert(sender);
                        refusals += 1;
                    }
                }
            }
        }
        usize::try_from(self.stats.delivered - delivered + refusals).unwrap_or(usize::MAX)
    }

    /// The sender's port takes all segments of a datagram, or none.
    fn send(&mut self, from: SocketAddr, datagram: &Datagram<'_>) -> bool {
        let options = self.options(from, datagram.to).clone();
        let mut departure = self.now;
        if let Some(bandwidth) = options.bandwidth {
            let port = self.out_ports.entry(from).or_default();
            if port.backlog_bytes(self.now, bandwidth) >= options.queue_bytes_max {
                return false;
            }
            departure = port.pass(self.now, datagram.segments.len(), bandwidth);
        }
        for segment in datagram.segments.chunks(datagram.segment_size.max(1)) {
            let data = Bytes::copy_from_slice(segment);
            self.depart(departure, Packet { from, to: datagram.to, ecn: datagram.ecn, data }, &options);
        }
        true
    }

    fn depart(&mut self, at: Instant, mut packet: Packet, options: &SimNetOptions) {
        self.stats.sent += 1;
        if self.node(packet.from) != NodeState::Up || self.is_cut(packet.from, packet.to) {
            self.stats.blocked += 1;
            return;
        }
        if packet.data.len() > options.datagram_bytes_max {
            self.stats.too_large += 1;
            return;
        }
        if self.random.chance(options.loss) {
            self.stats.lost += 1;
            return;
        }
        if self.random.chance(options.duplicate) {
            self.stats.duplicated += 1;
            let arrival = at + draw_delay(options, &mut self.random);
            self.schedule(arrival, EventKind::ReachPort(packet.clone()));
        }
        if self.random.chance(options.corrupt) {
            self.stats.corrupted += 1;
            packet.corrupt(&mut self.random);
        }
        let arrival = at + draw_delay(options, &mut self.random);
        self.schedule(arrival, EventKind::ReachPort(packet));
    }

    fn reach_port(&mut self, at: Instant, mut packet: Packet) {
        let options = self.options(packet.from, packet.to);
        let Some(bandwidth) = options.bandwidth else {
            self.arrive(at, packet);
            return;
        };
        let (queue_bytes_max, mark_above_bytes) = (options.queue_bytes_max, options.mark_above_bytes);
        let port = self.in_ports.entry(packet.to).or_default();
        let backlog = port.backlog_bytes(at, bandwidth);
        if backlog >= queue_bytes_max {
            self.stats.overflowed += 1;
            return;
        }
        if backlog > mark_above_bytes {
            packet.mark_congestion();
        }
        let through = port.pass(at, packet.data.len(), bandwidth);
        self.schedule(through, EventKind::Arrive(packet));
    }

    fn arrive(&mut self, at: Instant, packet: Packet) {
        let state = self.node(packet.to);
        // A cut stops what is under way, too: cables don't finish what they carry.
        if state == NodeState::Silent || self.is_cut(packet.from, packet.to) {
            self.stats.blocked += 1;
            return;
        }
        match self.inboxes.get_mut(&packet.to) {
            Some(inbox) if state == NodeState::Up => {
                if inbox.bytes + packet.data.len() > INBOX_BYTES_MAX {
                    self.stats.overflowed += 1;
                    return;
                }
                inbox.bytes += packet.data.len();
                self.arrived.insert(packet.to);
                inbox.packets.push_back(packet);
                self.stats.delivered += 1;
            }
            _ => self.refuse(at, &packet),
        }
    }

    fn refuse(&mut self, at: Instant, packet: &Packet) {
        self.stats.refused += 1;
        if self.is_cut(packet.to, packet.from) {
            return;
        }
        let back = at + self.options(packet.to, packet.from).delay_min;
        self.schedule(back, EventKind::Refuse { sender: packet.from, to: packet.to });
    }
}

/// An endpoint of a [`SimNet`].
pub struct SimLink {
    net: Rc<RefCell<Inner>>,
    addr: SocketAddr,
}

impl Link for SimLink {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn kind(&self) -> LinkKind {
        LinkKind::Sim
    }

    fn datagram_bytes_max(&self) -> usize {
        self.net.borrow().options.datagram_bytes_max
    }

    fn segments_max(&self) -> usize {
        SEGMENTS_MAX
    }

    fn send(&mut self, batch: &[Datagram<'_>]) -> usize {
        let mut net = self.net.borrow_mut();
        batch.iter().position(|datagram| !net.send(self.addr, datagram)).unwrap_or(batch.len())
    }

    fn receive(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> usize {
        for taken in 0..RECEIVE_DATAGRAMS_MAX {
            let packet = {
                let mut net = self.net.borrow_mut();
                let Some(inbox) = net.inboxes.get_mut(&self.addr) else { return taken };
                let Some(packet) = inbox.packets.pop_front() else { return taken };
                inbox.bytes -= packet.data.len();
                packet
            };
            // Not borrowed here: the sink may send.
            sink(Received { from: packet.from, ecn: packet.ecn, data: &packet.data });
        }
        RECEIVE_DATAGRAMS_MAX
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }

    fn take_unreachable(&mut self) -> Vec<SocketAddr> {
        let mut net = self.net.borrow_mut();
        let taken = net.inboxes.get_mut(&self.addr).map(|inbox| std::mem::take(&mut inbox.unreachable));
        taken.into_iter().flatten().collect()
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        self.net.borrow_mut().inboxes.remove(&self.addr);
    }
}

impl fmt::Debug for SimLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimLink").field("addr", &self.addr).finish_non_exhaustive()
    }
}

struct SimPoller {
    net: SimNet,
}

impl Poller for SimPoller {
    fn poll(&mut self, now: Instant) -> usize {
        self.net.advance(now)
    }

    fn before_sleep(&mut self) -> Option<Instant> {
        self.net.next_event()
    }
}
