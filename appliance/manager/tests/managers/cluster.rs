//! A cluster of managers and followers that tests can break.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use weft_manager::testing::MemStore;
use weft_manager::{Manager, NotAdmitted, Patience, Role, Tunables};
use weft_placement::{FormRequest, NewDrive, NewNode, form};
use weft_reactor::testing::VirtualTime;
use weft_transport::memory::MemoryNetwork;
use weft_wire::hash::Secret;
use weft_wire::manager::{ManagerReply, Proposal};
use weft_wire::map::{Map, Protection};
use weft_wire::{CoreId, Incarnation, MapVersion, NodeId, Uuid};

pub struct Cluster {
    pub time: VirtualTime,
    pub net: MemoryNetwork,
    pub first: Map,
    nodes: Vec<Node>,
}

struct Node {
    id: NodeId,
    store: MemStore,
    manager: Option<Rc<Manager>>,
}

pub fn core(node: NodeId) -> CoreId {
    CoreId { node, core: 0 }
}

pub fn drive(node: u16, index: u16) -> Uuid {
    Uuid(u128::from(node) << 16 | u128::from(index))
}

pub fn new_node(number: u16) -> NewNode {
    NewNode {
        name: format!("n{number}"),
        domain: None,
        cores: vec![MemoryNetwork::address(core(NodeId(number)))],
        control: ([127, 0, 0, 1], 6000 + number).into(),
        drives: (0..2)
            .map(|index| NewDrive {
                uuid: drive(number, index),
                core: 0,
                capacity_bytes: 2 << 30,
                zone_bytes: 1 << 20,
                zones: 2000,
            })
            .collect(),
    }
}

/// `nodes` nodes of two drives, 3+2: the first five are managers.
pub fn first_map(nodes: u16) -> Map {
    form(&FormRequest {
        cluster: Uuid(0xc1),
        name: "test".into(),
        secret: Secret([1; 16]),
        protection: Protection { data: 3, parity: 2 },
        nodes: (1..=nodes).map(new_node).collect(),
        bucket_bits: None,
    })
    .unwrap()
}

impl Cluster {
    /// Stores and processes for all nodes, in no cluster yet.
    pub fn blank(nodes: u16, seed: u64) -> Self {
        let time = VirtualTime::new(seed);
        let net = MemoryNetwork::new(time.handle());
        let first = first_map(nodes);
        let stores = (1..=nodes).map(|number| Node {
            id: NodeId(number),
            store: MemStore::new(time.handle(), vec![drive(number, 0), drive(number, 1)]),
            manager: None,
        });
        let mut cluster = Self { nodes: stores.collect(), time, net, first };
        for number in 1..=nodes {
            cluster.start(number);
        }
        cluster
    }

    /// All nodes have the first map, a leader is elected and every node is admitted.
    pub fn formed(nodes: u16, seed: u64) -> Self {
        let cluster = Self::blank(nodes, seed);
        for number in 1..=nodes {
            cluster.time.block_on(cluster.manager(number).bootstrap(NodeId(number), cluster.first.clone())).unwrap();
        }
        for number in 1..=nodes {
            cluster.admit(number);
        }
        cluster
    }

    /// A node more: added to the map by the others, given it, and admitted.
    pub fn join(&mut self) -> u16 {
        let number = self.nodes.len() as u16 + 1;
        let store = MemStore::new(self.time.handle(), vec![drive(number, 0), drive(number, 1)]);
        self.nodes.push(Node { id: NodeId(number), store, manager: None });
        self.start(number);
        let by = self.running().map(|(other, _)| other).find(|other| *other != number).unwrap();
        self.commit(by, Proposal::AddNode { new: new_node(number), replace: false });
        let map = Map::clone(&self.manager(by).map().unwrap());
        self.time.block_on(self.manager(number).bootstrap(NodeId(number), map)).unwrap();
        self.admit(number);
        number
    }

    /// Starts a process with what its drives remember.
    pub fn start(&mut self, number: u16) {
        let node = &mut self.nodes[usize::from(number) - 1];
        self.net.restart(core(node.id));
        let network = self.net.node(core(node.id));
        let start = Manager::start(self.time.handle(), network, Rc::new(node.store.clone()), Tunables::default());
        node.manager = Some(self.time.block_on(start).unwrap());
    }

    /// The process dies; writes on their way to its drives are lost.
    pub fn crash(&mut self, number: u16) {
        let node = &mut self.nodes[usize::from(number) - 1];
        node.store.power_loss();
        self.net.crash(core(node.id));
        if let Some(manager) = node.manager.take() {
            manager.stop();
        }
    }

    pub fn manager(&self, number: u16) -> Rc<Manager> {
        self.nodes[usize::from(number) - 1].manager.clone().unwrap()
    }

    pub fn store(&self, number: u16) -> MemStore {
        self.nodes[usize::from(number) - 1].store.clone()
    }

    pub fn running(&self) -> impl Iterator<Item = (u16, Rc<Manager>)> {
        self.nodes.iter().filter_map(|node| Some((node.id.0, node.manager.clone()?)))
    }

    /// What `weftd` does when it starts.
    pub fn try_starting(&self, number: u16) -> impl Future<Output = Result<Incarnation, NotAdmitted>> + use<> {
        let manager = self.manager(number);
        let address = vec![MemoryNetwork::address(core(NodeId(number)))];
        async move { manager.node_started(address, ([127, 0, 0, 1], 6000 + number).into()).await }
    }

    pub fn starting(&self, number: u16) -> impl Future<Output = Incarnation> + use<> {
        let starting = self.try_starting(number);
        async move { starting.await.unwrap() }
    }

    pub fn admit(&self, number: u16) -> Incarnation {
        self.time.block_on(self.starting(number))
    }

    /// Starts processes together and waits until all are admitted.
    pub fn start_all(&mut self, numbers: impl IntoIterator<Item = u16> + Clone) {
        numbers.clone().into_iter().for_each(|number| self.start(number));
        let handle = self.time.handle();
        let tasks: Vec<_> = numbers.into_iter().map(|number| handle.spawn("starting", self.starting(number))).collect();
        for task in tasks {
            self.time.block_on(task).unwrap();
        }
    }

    pub fn propose(&self, number: u16, proposal: Proposal) -> ManagerReply {
        let manager = self.manager(number);
        self.time.block_on(async move { manager.propose(proposal, Patience::default()).await })
    }

    /// Proposes and expects it to be committed; waits until the node itself has the map.
    pub fn commit(&self, number: u16, proposal: Proposal) -> MapVersion {
        let ManagerReply::Committed { version, .. } = self.propose(number, proposal.clone()) else {
            panic!("{proposal:?} was not committed");
        };
        self.time.block_on(
            self.manager(number).watch().wait_for(|map| map.as_ref().is_some_and(|map| map.version >= version)),
        );
        version
    }

    pub fn create(&self, number: u16, name: &str) -> MapVersion {
        self.commit(number, Proposal::CreateFilesystem { name: name.into(), size_bytes: 0 })
    }

    pub fn leader(&self) -> Option<u16> {
        self.running().filter(|(_, manager)| manager.status().role == Role::Leader).map(|(number, _)| number).max()
    }

    /// The newest map that any running node has.
    pub fn newest(&self) -> Rc<Map> {
        let maps = self.running().filter_map(|(_, manager)| manager.map());
        maps.max_by_key(|map| map.version).unwrap()
    }

    /// All five managers, whoever they are by now, run and have a vote.
    pub fn all_vote(&self) -> bool {
        let votes = |role| matches!(role, Role::Leader | Role::Candidate | Role::Follower);
        let managers = self.newest().managers.clone();
        let voting = |(number, manager): &(u16, Rc<Manager>)| {
            managers.contains(&NodeId(*number)) && votes(manager.status().role)
        };
        self.running().filter(voting).count() == 5
    }

    /// Lets time pass until `is_so`, at most a minute of it.
    pub fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        self.until_by(Duration::from_millis(100), what, is_so);
    }

    /// The same, looking `every` so often.
    pub fn until_by(&self, every: Duration, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = self.time.handle().now() + Duration::from_secs(60);
        while self.time.handle().now() < until {
            if is_so(self) {
                return;
            }
            self.time.run_for(every);
        }
        let states: Vec<_> = self.running().map(|(_, manager)| manager.status()).collect();
        panic!("not within a minute: {what}; {states:#?}");
    }

    /// All running nodes have the same map; returns it.
    pub fn agreed(&self) -> Rc<Map> {
        self.until("all nodes have the same map", |cluster| {
            let versions: Vec<_> = cluster.running().map(|(_, manager)| manager.status().version).collect();
            versions.windows(2).all(|pair| pair[0] == pair[1])
        });
        let maps: Vec<_> = self.running().filter_map(|(_, manager)| manager.map()).collect();
        assert!(maps.windows(2).all(|pair| pair[0] == pair[1]), "one version, several maps");
        maps[0].clone()
    }

    /// Every drive of a node got the map that it serves.
    pub fn settle(&self) {
        self.time.run_for(Duration::from_secs(2));
    }
}
