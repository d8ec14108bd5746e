//! What the tasks of one node's manager share.

use crate::consensus::Outgoing;
use crate::decide::front;
use crate::health::{Answer, Health};
use crate::history::MapServer;
use crate::records::{MapRecord, Place};
use crate::store::ConfigStore;
use crate::tunables::{INBOX_MAX, PROPOSALS_MAX, SENDING_MAX, SUSPECT_EVERY, Tunables};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::sync::{Completer, Notify, Watch, completion};
use weft_reactor::{Handle, Instant};
use weft_transport::rpc::{CallError, Handler, Network, Request, Response, handler};
use weft_wire::manager::{ManagerReply, ManagerRequest, Proposal};
use weft_wire::map::{Delta, Map};
use weft_wire::{Incarnation, NodeId, Service, Uuid, decode, encode};

/// A node's part in the consensus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// No manager: follows the map.
    #[default]
    None,
    /// A manager that forgot what it promised and has no new vote yet.
    Amnesiac,
    /// Listens until it has caught up and gets its vote.
    Learner,
    Follower,
    Candidate,
    Leader,
}

/// What reaches the consensus from outside.
pub(crate) enum Input {
    /// A message of the consensus; what is said to it at once goes back with the answer, if one is due.
    Message(NodeId, bytes::Bytes, Option<Completer<bytes::Bytes>>),
    Unreachable(u64),
    Snapshot {
        voter: u64,
        arrived: bool,
    },
    Rejoin(NodeId, Completer<ManagerReply>),
    /// Somebody asks whether this voter has a vote.
    HasVote(u64, Completer<ManagerReply>),
    /// The managers' leader does not know this voter.
    Dismissed(u64),
    /// The node's process has ended.
    Died(NodeId),
}

/// A sign of life doesn't wait longer than this for what is to be said with it: a drive may take its time.
const SAY_WITHIN: Duration = Duration::from_millis(50);
/// Between two questions to a node that refused the first.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

pub(crate) struct Asked {
    pub proposal: Proposal,
    pub until: Instant,
    pub answer: Completer<ManagerReply>,
}

pub(crate) struct Shared {
    pub handle: Handle,
    pub network: Rc<dyn Network>,
    pub store: Rc<dyn ConfigStore>,
    pub tunables: Tunables,
    pub server: Rc<MapServer>,
    pub node: Cell<Option<NodeId>>,
    pub incarnation: Cell<Option<Incarnation>>,
    pub role: Cell<Role>,
    pub term: Cell<u64>,
    pub leader: Watch<Option<NodeId>>,
    pub copies: RefCell<Vec<Uuid>>,
    /// Who votes, as far as this voter knows.
    pub voters: RefCell<Vec<NodeId>>,
    /// Why this node can't go on by itself, for those who look.
    pub waiting: RefCell<Option<String>>,
    /// The consensus' own map and where it stands in the log; only the map where there is no consensus.
    pub current: RefCell<Option<(Place, Rc<Map>)>>,
    pub save: Notify,
    pub inbox: RefCell<VecDeque<Input>>,
    pub proposals: RefCell<VecDeque<Asked>>,
    pub wake: Notify,
    /// When this process began.
    pub started: Instant,
    /// When the consensus' leader last had a word from this node.
    pub heard_leader: Cell<Instant>,
    /// Signs of life and death that reached this node.
    pub health: RefCell<Health>,
    /// Something happened that the leader should not let wait for the next tick.
    pub tend_now: Cell<bool>,
    /// When suspicions were last passed on.
    suspected: RefCell<BTreeMap<NodeId, Instant>>,
    sending: RefCell<BTreeMap<NodeId, usize>>,
}

impl Shared {
    pub fn new(handle: Handle, network: Rc<dyn Network>, store: Rc<dyn ConfigStore>, tunables: Tunables) -> Rc<Self> {
        let started = handle.now();
        Rc::new(Self {
            server: MapServer::new(handle.clone()),
            handle,
            network,
            store,
            tunables,
            node: Cell::default(),
            incarnation: Cell::default(),
            role: Cell::default(),
            term: Cell::default(),
            leader: Watch::new(None),
            copies: RefCell::default(),
            voters: RefCell::default(),
            waiting: RefCell::default(),
            current: RefCell::default(),
            save: Notify::new(),
            inbox: RefCell::default(),
            proposals: RefCell::default(),
            wake: Notify::new(),
            started,
            heard_leader: Cell::new(Instant::ZERO),
            health: RefCell::default(),
            tend_now: Cell::new(false),
            suspected: RefCell::default(),
            sending: RefCell::default(),
        })
    }

    pub fn map(&self) -> Option<Rc<Map>> {
        self.server.map()
    }

    pub fn is_voting(&self) -> bool {
        matches!(self.role.get(), Role::Learner | Role::Follower | Role::Candidate | Role::Leader)
    }

    pub fn set_waiting(&self, reason: Option<String>) {
        if let Some(reason) = &reason
            && self.waiting.borrow().as_ref() != Some(reason)
        {
            tracing::warn!(reason, "waiting");
        }
        self.waiting.replace(reason);
    }

    /// A newer map: keeps it, serves it, and lets it be stored. `place` is where the consensus stands.
    pub fn take_map(&self, place: Place, map: Rc<Map>, deltas: Vec<Delta>) {
        self.current.replace(Some((place, map.clone())));
        self.network.set_addresses(&map);
        self.server.publish(map, deltas);
        self.save.notify_one();
    }

    /// What the map slots of this node should hold now.
    pub fn map_record(&self) -> Option<MapRecord> {
        let node = self.node.get()?;
        let current = self.current.borrow();
        let (place, map) = current.as_ref()?;
        Some(MapRecord { node, place: place.clone(), map: Map::clone(map) })
    }

    /// Sends one message of the consensus. Learns whether it arrived, that the other lives, and what it has to say to it.
    pub fn send(self: &Rc<Self>, message: Outgoing) {
        let (Some(from), Some(map)) = (self.node.get(), self.map()) else { return };
        {
            let mut sending = self.sending.borrow_mut();
            let count = sending.entry(message.node).or_default();
            if *count >= SENDING_MAX {
                return;
            }
            *count += 1;
        }
        let head = encode(&ManagerRequest::Raft { cluster: map.cluster, from });
        let timeout = self.tunables.call_timeout;
        let call = self.network.call(front(message.node), Service::Manager, head, message.bytes, timeout);
        let shared = self.clone();
        drop(self.handle.spawn("manager message", async move {
            let response = call.await.ok().and_then(Result::ok);
            let arrived = response.is_some();
            if let Some(count) = shared.sending.borrow_mut().get_mut(&message.node) {
                *count -= 1;
            }
            if message.is_snapshot {
                shared.push(Input::Snapshot { voter: message.voter, arrived });
            } else if !arrived {
                shared.push(Input::Unreachable(message.voter));
            }
            if let Some(response) = response {
                shared.take_answer(message.node, response);
            }
        }));
    }

    fn take_answer(&self, node: NodeId, response: Response) {
        if self.role.get() == Role::Leader
            && let Ok(ManagerReply::Lives { incarnation: Some(incarnation) }) = decode(&response.head)
        {
            self.hear(node, incarnation);
        }
        if !response.body.is_empty() {
            self.push(Input::Message(node, response.body, None));
        }
    }

    pub fn push(&self, input: Input) -> bool {
        let mut inbox = self.inbox.borrow_mut();
        if inbox.len() >= INBOX_MAX || !self.is_voting() {
            return false;
        }
        inbox.push_back(input);
        self.wake.notify_one();
        true
    }

    /// Answers [`Service::Manager`].
    pub fn handler(self: &Rc<Self>) -> Handler {
        let shared = Rc::downgrade(self);
        handler(move |request: Request| {
            let shared = shared.upgrade();
            async move {
                let reply = match (shared, decode::<ManagerRequest>(&request.head)) {
                    (Some(shared), Ok(ManagerRequest::Raft { cluster, from })) if shared.is_ours(cluster) => {
                        return shared.answer_message(from, request.body).await;
                    }
                    (Some(shared), Ok(asked)) => shared.answer(asked).await,
                    (_, Err(error)) => ManagerReply::Refused(error.to_string()),
                    (None, _) => ManagerReply::NotLeader(None),
                };
                Response { head: encode(&reply), body: bytes::Bytes::new() }
            }
        })
    }

    /// A heartbeat's answer is a sign of life as well: a manager says it in no other way as long as it hears the leader.
    async fn answer_message(&self, from: NodeId, body: bytes::Bytes) -> Response {
        if self.leader.get() == Some(from) {
            self.heard_leader.set(self.handle.now());
        }
        let (answer, pending) = completion();
        self.push(Input::Message(from, body, Some(answer)));
        // Dropped or too late: there is nothing to say, or not before something is stored.
        let said = self.handle.timeout(SAY_WITHIN, pending).await;
        let body = said.ok().and_then(Result::ok).unwrap_or_default();
        Response { head: encode(&ManagerReply::Lives { incarnation: self.incarnation.get() }), body }
    }

    async fn answer(self: &Rc<Self>, request: ManagerRequest) -> ManagerReply {
        let not_leader =
            || ManagerReply::NotLeader(self.leader.get().filter(|leader| Some(*leader) != self.node.get()));
        match request {
            ManagerRequest::Raft { cluster, .. } => other_cluster(cluster),
            ManagerRequest::Alive { cluster, .. }
            | ManagerRequest::Rejoin { cluster, .. }
            | ManagerRequest::HasVote { cluster, .. }
            | ManagerRequest::Died { cluster, .. }
            | ManagerRequest::Suspect { cluster, .. }
            | ManagerRequest::Probe { cluster }
                if !self.is_ours(cluster) =>
            {
                other_cluster(cluster)
            }
            // Whoever asks goes on looking for its own: the address may have been handed on.
            ManagerRequest::Propose { cluster, .. } if !self.is_ours(cluster) => ManagerReply::NotLeader(None),
            ManagerRequest::Probe { .. } => ManagerReply::Lives { incarnation: self.incarnation.get() },
            ManagerRequest::Died { node, incarnation, .. } => {
                self.learn_death(node, incarnation);
                ManagerReply::Ok
            }
            ManagerRequest::Suspect { node, .. } => {
                self.look_into(node);
                ManagerReply::Ok
            }
            _ if !self.leads_soon().await => not_leader(),
            ManagerRequest::Alive { node, incarnation, hears, .. } => {
                if hears {
                    self.hear(node, incarnation);
                }
                ManagerReply::Ok
            }
            ManagerRequest::Propose { proposal, .. } => {
                let (answer, pending) = completion();
                {
                    let mut proposals = self.proposals.borrow_mut();
                    if proposals.len() >= PROPOSALS_MAX {
                        return ManagerReply::NoQuorum;
                    }
                    let until = self.handle.now() + self.tunables.commit_wait;
                    proposals.push_back(Asked { proposal, until, answer });
                }
                self.wake.notify_one();
                pending.await.unwrap_or(ManagerReply::NoQuorum)
            }
            ManagerRequest::Rejoin { node, .. } => self.ask_consensus(|answer| Input::Rejoin(node, answer)).await,
            ManagerRequest::HasVote { voter, .. } => self.ask_consensus(|answer| Input::HasVote(voter, answer)).await,
        }
    }

    async fn ask_consensus(&self, input: impl FnOnce(Completer<ManagerReply>) -> Input) -> ManagerReply {
        let (answer, pending) = completion();
        match self.push(input(answer)) {
            true => pending.await.unwrap_or(ManagerReply::NoQuorum),
            false => ManagerReply::NotLeader(None),
        }
    }

    /// Whether this node leads; during an election the question is held until it is decided, so that nobody has to ask again and again.
    async fn leads_soon(&self) -> bool {
        if self.is_voting() && self.leader.get().is_none() {
            // Either way the answer is what is known then.
            let _ = self.handle.timeout(self.tunables.election_hold, self.leader.wait_for(Option::is_some)).await;
        }
        self.role.get() == Role::Leader
    }

    /// Tells who leads, if that is news.
    pub fn set_leader(&self, leader: Option<NodeId>) {
        if self.leader.get() != leader {
            self.leader.set(leader);
        }
    }

    fn is_ours(&self, cluster: Uuid) -> bool {
        self.map().is_some_and(|map| map.cluster == cluster)
    }

    /// A sign of life counts only for the life that the map knows: an older process, or one not yet admitted, is not it.
    pub fn hear(&self, node: NodeId, incarnation: Incarnation) {
        let known = self.map().and_then(|map| map.nodes.get(&node).map(|node| node.incarnation));
        if known == Some(incarnation) {
            self.health.borrow_mut().hear(node, self.handle.now(), &self.tunables);
        }
    }

    fn tend(&self) {
        self.tend_now.set(true);
        self.wake.notify_one();
    }

    /// A life has ended. Returns whether that is news.
    fn learn_death(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let known = self.map().and_then(|map| map.nodes.get(&node).map(|node| node.incarnation));
        if known != Some(incarnation) || !self.health.borrow_mut().died(node, incarnation) {
            return false;
        }
        tracing::info!(%node, %incarnation, "a node's process has ended");
        self.push(Input::Died(node));
        self.tend();
        true
    }

    /// First-hand news of a death: all managers hear of it, so that they elect another leader if it was theirs.
    pub fn tell_death(self: &Rc<Self>, node: NodeId, incarnation: Incarnation) {
        let Some(map) = self.map() else { return };
        // To the others first: when this manager stands for election they must know why.
        if !self.health.borrow().is_dead(node, incarnation) {
            let request = ManagerRequest::Died { cluster: map.cluster, node, incarnation };
            self.tell(map.managers.iter().copied().filter(|manager| *manager != node), &request);
        }
        self.learn_death(node, incarnation);
    }

    /// Somebody had no answer from a node.
    pub fn suspect(self: &Rc<Self>, node: NodeId) {
        let Some(map) = self.map().filter(|map| map.nodes.contains_key(&node)) else { return };
        let now = self.handle.now();
        {
            let mut suspected = self.suspected.borrow_mut();
            if suspected.get(&node).is_some_and(|at| now.since(*at) < SUSPECT_EVERY) {
                return;
            }
            suspected.insert(node, now);
        }
        self.look_into(node);
        let leader = self.leader.get();
        let request = ManagerRequest::Suspect { cluster: map.cluster, node };
        let targets = map.managers.iter().copied().filter(|manager| *manager != node);
        self.tell(
            targets.filter(|manager| leader == Some(node) || leader.is_none_or(|leader| leader == *manager)),
            &request,
        );
    }

    /// Tells other nodes something once; they needn't answer.
    fn tell(&self, targets: impl Iterator<Item = NodeId>, request: &ManagerRequest) {
        let head = encode(request);
        for target in targets.filter(|target| Some(*target) != self.node.get()) {
            let (head, timeout) = (head.clone(), self.tunables.call_timeout);
            let call = self.network.call(front(target), Service::Manager, head, bytes::Bytes::new(), timeout);
            let told = self.handle.spawn("manager word", async move {
                // Lost with the network or not: there are other ways to find out.
                let _ = call.await;
            });
            told.detach();
        }
    }

    /// The leader looks after the others, the others after the leader.
    fn look_into(self: &Rc<Self>, node: NodeId) {
        if self.role.get() == Role::Leader {
            self.health.borrow_mut().suspect(node);
            self.tend();
        } else if self.is_voting() && self.leader.get() == Some(node) {
            let shared = self.clone();
            let look = async move {
                for _ in 0..2 {
                    let (Answer::Refused, _) = shared.ask(node).await else { return };
                }
                let known = shared.map().and_then(|map| map.nodes.get(&node).map(|node| node.incarnation));
                if let Some(incarnation) = known {
                    shared.tell_death(node, incarnation);
                }
            };
            self.handle.spawn("look after the managers' leader", look).detach();
        }
    }

    /// Asks a node which life of it listens.
    pub async fn ask(&self, node: NodeId) -> (Answer, Option<Rc<Map>>) {
        let Some(map) = self.map() else { return (Answer::Silence, None) };
        let head = encode(&ManagerRequest::Probe { cluster: map.cluster });
        let timeout = self.tunables.ask_timeout;
        let asked = self.network.ask(front(node), Service::Manager, head, bytes::Bytes::new(), timeout).await;
        let answer = match asked.map(|response| decode::<ManagerReply>(&response.head)) {
            Ok(Ok(ManagerReply::Lives { incarnation })) => Answer::Lives(incarnation),
            Err(CallError::Unreachable) => {
                self.handle.sleep(REFUSED_PAUSE).await;
                Answer::Refused
            }
            _ => Answer::Silence,
        };
        (answer, Some(map))
    }
}

fn other_cluster(cluster: Uuid) -> ManagerReply {
    ManagerReply::Refused(format!("this node is not in cluster {cluster}"))
}
