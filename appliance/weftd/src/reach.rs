//! Nodes that this one can't reach although the managers can. What it leads needs all of them sooner or later: it gives its
//! buckets to nodes that reach everybody. The managers alone could not know, and the map needs no word for it.

use crate::lead::Leads;
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::Instant;
use weft_reactor::sync::Notify;
use weft_wire::manager::{HandOverReason, ManagerRequest, Proposal};
use weft_wire::map::{Map, State};
use weft_wire::{CoreId, NodeId, Service, encode};

/// Time for the last question to a node that was given up.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a node that could not be reached is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// So long a node that gave its buckets away gets no others.
const GIVER_FOR: Duration = Duration::from_secs(60);

/// Gives buckets away when the network has given a node up that the map says is there. `weft status` tells of such nodes until
/// they answer again.
pub(crate) async fn run(leads: Leads) {
    let (own, _, handle, map, _) = leads.parts();
    let (own, handle, map) = (own, handle.clone(), map.clone());
    let silent: Rc<RefCell<BTreeSet<CoreId>>> = Rc::default();
    let news = Rc::new(Notify::new());
    let tell = {
        let (silent, news) = (Rc::clone(&silent), Rc::clone(&news));
        Rc::new(move |core| {
            silent.borrow_mut().insert(core);
            news.notify_one();
        })
    };
    leads.network().watch_silence(tell);
    let mut lost = BTreeSet::new();
    while !leads.is_finishing() {
        match lost.is_empty() {
            true => news.notified().await,
            false => drop(handle.timeout(ASK_AGAIN, news.notified()).await),
        }
        let given_up: BTreeSet<NodeId> = silent.take().into_iter().map(|core| core.node).collect();
        let mut more = false;
        for node in given_up.iter().copied().chain(std::mem::take(&mut lost)).collect::<BTreeSet<_>>() {
            let Some(newest) = map.get().filter(|_| node != own.node) else { continue };
            if is_there(&newest, node) && !answers(&leads, &newest, node).await {
                lost.insert(node);
                more |= given_up.contains(&node);
            }
        }
        // The managers may have found out meanwhile.
        let Some(newest) = map.get() else { continue };
        lost.retain(|node| is_there(&newest, *node));
        leads.set_unreached(lost.clone());
        if more && !lost.is_empty() {
            give_away(&leads, &newest, &lost);
        }
    }
}

fn is_there(map: &Map, node: NodeId) -> bool {
    map.nodes.get(&node).is_some_and(|node| matches!(node.state, State::Up | State::Draining))
}

async fn answers(leads: &Leads, map: &Map, node: NodeId) -> bool {
    let ask = encode(&ManagerRequest::Probe { cluster: map.cluster });
    let to = CoreId { node, core: 0 };
    leads.network().ask(to, Service::Manager, ask, Bytes::new(), ASK_TIMEOUT).await.is_ok()
}

/// To those who lead least, except for those who can't be reached.
fn give_away(leads: &Leads, map: &Map, lost: &BTreeSet<NodeId>) {
    let (own, incarnation, _, _, propose) = leads.parts();
    let mut led: BTreeMap<CoreId, usize> = BTreeMap::new();
    for node in map.nodes.values() {
        if node.state == State::Up && node.id != own.node && !lost.contains(&node.id) {
            led.extend((0..node.cores.len() as u8).map(|core| (CoreId { node: node.id, core }, 0)));
        }
    }
    for bucket in &map.buckets {
        led.entry(bucket.leader).and_modify(|led| *led += 1);
    }
    let serving = leads.serving();
    if serving.is_empty() || led.is_empty() {
        return;
    }
    let nodes: Vec<String> = lost.iter().map(NodeId::to_string).collect();
    tracing::warn!(
        nodes = nodes.join(", "),
        buckets = serving.len(),
        "the managers reach nodes that this one can't: it gives its buckets away"
    );
    for (id, _) in serving {
        let Some(epoch) = map.bucket(id).filter(|bucket| bucket.leader == own).map(|bucket| bucket.epoch) else {
            continue;
        };
        let Some((to, count)) = led.iter_mut().min_by_key(|(core, led)| (**led, **core)) else { return };
        *count += 1;
        let reason = HandOverReason::Reach;
        propose(Proposal::HandOver { node: own.node, incarnation, bucket: id, epoch, to: *to, reason });
    }
}

/// Nodes that lately gave away what evening out would bring back to them: they had a reason.
#[derive(Default)]
pub(crate) struct Givers {
    before: Option<Rc<Map>>,
    since: BTreeMap<NodeId, Instant>,
}

impl Givers {
    /// A map that may be newer.
    pub fn look(&mut self, map: &Rc<Map>, now: Instant) {
        self.since.retain(|_, since| now.since(*since) < GIVER_FOR);
        if let Some(before) = self.before.as_ref().filter(|before| before.version != map.version) {
            for node in givers(before, map) {
                self.since.insert(node, now);
            }
        }
        self.before = Some(Rc::clone(map));
    }

    pub fn has(&self, node: NodeId) -> bool {
        self.since.contains_key(&node)
    }

    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }
}

/// Nodes of which a bucket went to one that led no fewer, though they live on.
fn givers(before: &Map, map: &Map) -> BTreeSet<NodeId> {
    let mut led: BTreeMap<NodeId, usize> = BTreeMap::new();
    for bucket in &before.buckets {
        *led.entry(bucket.leader.node).or_default() += 1;
    }
    let led = |node: NodeId| led.get(&node).copied().unwrap_or(0);
    let lives_on = |node: NodeId| {
        let (was, is) = (before.nodes.get(&node), map.nodes.get(&node));
        was.zip(is).is_some_and(|(was, is)| {
            was.incarnation == is.incarnation && was.state == State::Up && is.state == State::Up
        })
    };
    let moved = before.buckets.iter().zip(&map.buckets).filter_map(|(before, bucket)| {
        let (from, to) = (before.leader.node, bucket.leader.node);
        (from != to).then_some((from, to))
    });
    moved.filter(|(from, to)| lives_on(*from) && led(*from) <= led(*to)).map(|(from, _)| from).collect()
}
