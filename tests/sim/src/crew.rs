//! The clients of a run and their workers; clients that die, and those that take their place.

use crate::history::{History, OpId, Outcome};
use crate::node::SimNode;
use crate::workload::{Hand, Shared, WorkloadOptions, work};
use crate::world::World;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::Random;
use weft_wire::ClientId;
use weft_wire::limits::SESSION_SECONDS_MAX;

/// Until a leader looks again at who is silent, by a clock that may be slow.
const SESSION_SLACK: Duration = Duration::from_secs(15);

pub struct Crew {
    pub shared: Rc<Shared>,
    pub history: History,
    /// Those that live, each with the process that it runs in.
    hands: Rc<RefCell<Vec<(usize, Hand)>>>,
    /// Numbers of clients in the history: one that takes a dead one's place is another.
    numbers: Rc<Cell<usize>>,
    workers: u64,
    /// What says that a dead client's locks are free again, without an answer yet.
    released: Vec<OpId>,
    deaths: usize,
    fs_name: &'static str,
}

impl Crew {
    /// Connects clients while all is calm, and lets them work.
    pub fn new(
        world: &mut World,
        fs_name: &'static str,
        clients: usize,
        workers: u64,
        workload: WorkloadOptions,
        random: &mut Random,
    ) -> Result<Self, String> {
        let history = History::new(world.clock.clone());
        let mut connected = Vec::new();
        for _ in 0..clients {
            connected.push(world.connect(fs_name)?);
        }
        let root = connected.first().map(|(_, client)| client.root()).ok_or("a run needs a client")?;
        let shared = Shared::new(workload, history.clone(), root);
        let crew = Self {
            shared,
            history,
            hands: Rc::default(),
            numbers: Rc::default(),
            workers,
            released: Vec::new(),
            deaths: 0,
            fs_name,
        };
        world.trace.note("work begins");
        for (process, client) in connected {
            let seeds = crew.seeds(random);
            let hand = crew.hand(client);
            if let Some(process) = world.clients.get_mut(process) {
                set_to_work(process.handle(), &hand, &seeds);
                process.poke();
            }
            crew.hands.borrow_mut().push((process, hand));
        }
        Ok(crew)
    }

    fn seeds(&self, random: &mut Random) -> Vec<u64> {
        (0..self.workers).map(|_| random.next_u64()).collect()
    }

    fn hand(&self, client: Rc<weft_client::Client>) -> Hand {
        let index = self.numbers.replace(self.numbers.get() + 1);
        Hand { index, client, shared: Rc::clone(&self.shared), working: Rc::default(), lost: Rc::default() }
    }

    /// A client that sees what is there, and does nothing by itself.
    pub fn reader(&self, world: &mut World) -> Result<(usize, Hand), String> {
        let (process, client) = world.connect(self.fs_name)?;
        let hand = self.hand(client);
        self.hands.borrow_mut().push((process, hand.clone()));
        Ok((process, hand))
    }

    /// Nobody waits for anything, and all have given back what they held.
    pub fn is_done(&self) -> bool {
        self.history.is_settled() && self.hands.borrow().iter().all(|(_, hand)| hand.working.get() == 0)
    }

    pub fn any_died(&self) -> bool {
        self.deaths > 0
    }

    pub fn hands(&self) -> Vec<(usize, Hand)> {
        self.hands.borrow().clone()
    }

    /// The client in this process dies in the middle of what it does. A new one begins in its place.
    pub fn client_dies(&mut self, world: &mut World, process: usize, random: &mut Random) {
        let Some(at) = self.hands.borrow().iter().position(|(other, _)| *other == process) else { return };
        let (_, dead) = self.hands.borrow_mut().remove(at);
        self.deaths += 1;
        self.released.extend(self.history.client_dies(dead.index));
        world.kill_client(process);
        let Ok(connecting) = world.connecting(process, self.fs_name) else { return };
        let Some(fresh) = world.clients.get_mut(process) else { return };
        let (hands, numbers, shared) = (Rc::clone(&self.hands), Rc::clone(&self.numbers), Rc::clone(&self.shared));
        let (handle, seeds) = (fresh.handle(), self.seeds(random));
        let begin = async move {
            // One that finds no cluster has nothing to do.
            let Ok(client) = connecting.await else { return };
            let hand = Hand {
                index: numbers.replace(numbers.get() + 1),
                client,
                shared,
                working: Rc::default(),
                lost: Rc::default(),
            };
            set_to_work(handle, &hand, &seeds);
            hands.borrow_mut().push((process, hand));
        };
        fresh.handle().spawn("begin", begin).detach();
        fresh.poke();
    }

    /// Clients that the cluster has cut off end, before others get what they held, and new ones begin in their places.
    pub fn replace_silent(&mut self, world: &mut World, random: &mut Random) {
        let maps: Vec<_> = world.nodes.iter().filter_map(|machine| machine.node()?.map_watch()?.get()).collect();
        let is_fenced = |client: ClientId| maps.iter().any(|map| map.clients.get(&client).is_some_and(|it| it.fenced));
        let hands = self.hands();
        let ends = |hand: &Hand| is_fenced(hand.client.id()) || hand.lost.get();
        for (process, _) in hands.into_iter().filter(|(_, hand)| ends(hand)) {
            world.trace.note(&format!("client {process} was silent for too long"));
            self.client_dies(world, process, random);
        }
    }

    /// Waits until what dead clients held must be free.
    pub fn outlive_the_dead(&mut self, world: &mut World) {
        if self.released.is_empty() {
            return;
        }
        world.run_for(Duration::from_secs(SESSION_SECONDS_MAX) + SESSION_SLACK);
        for op in self.released.drain(..) {
            self.history.respond(op, Outcome::Done);
        }
    }

    /// What is waited for, and who says why.
    pub fn describe_stuck(&self, world: &mut World) -> String {
        let mut text = String::new();
        for (id, op) in self.history.outstanding() {
            text.push_str(&format!("\n  {id} {op}"));
        }
        for (_, hand) in self.hands() {
            if let Some(waiting) = hand.client.waiting() {
                text.push_str(&format!("\n  client {}: {waiting}", hand.index));
            }
        }
        for (index, node) in world.nodes.iter().enumerate() {
            let Some(node) = SimNode::node(node) else {
                text.push_str(&format!("\n  node {index} is down"));
                continue;
            };
            let status = node.status();
            text.push_str(&format!("\n  node {index}: {} {:?}", status.phase, status.waiting));
            for bucket in status.buckets.iter().filter(|bucket| !bucket.serving) {
                text.push_str(&format!("\n    bucket {} epoch {}: {}", bucket.bucket, bucket.epoch, bucket.state));
            }
            for bucket in &status.buckets {
                let trouble = bucket.stats.as_ref().and_then(|stats| stats.trouble.clone());
                if let Some(trouble) = trouble {
                    text.push_str(&format!("\n    bucket {} has trouble: {trouble}", bucket.bucket));
                }
            }
        }
        text
    }
}

fn set_to_work(handle: weft_reactor::Handle, hand: &Hand, seeds: &[u64]) {
    hand.working.set(seeds.len());
    for (worker, seed) in (1..).zip(seeds) {
        handle.spawn("work", work(hand.clone(), handle.clone(), worker, *seed)).detach();
    }
}
