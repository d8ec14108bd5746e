//! What the managers' leader knows of each node's life, and what it makes of it. Pure: time is an argument.
//!
//! A node is away when its supervisor (or a refused port, twice) says that its process died, or when it was silent for
//! [`Tunables::away_after`]. Half-way through a silence the node is asked, so that a lost message means nothing. It is up again
//! when a new life of it is admitted, or when it has been heard without a gap for [`Tunables::back_after`].

use crate::tunables::Tunables;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_reactor::Instant;
use weft_wire::map::{Map, Node, State};
use weft_wire::{Incarnation, NodeId};

/// What a node answered when it was asked which life of it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A process; which life of the node it is, if it was admitted.
    Lives(Option<Incarnation>),
    /// Nobody listens there.
    Refused,
    /// Nothing came in time.
    Silence,
}

/// A node is asked no more often than this.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// So many ticks without a look are a pause of the leader's own.
const LATE_TICKS: u32 = 3;
/// Refusals in a row that count as a death: one may be the network's.
const REFUSALS: u8 = 2;

#[derive(Default)]
pub(crate) struct Health {
    nodes: BTreeMap<NodeId, Vitals>,
    /// Lives that are known to have ended. Kept for ever: one number for each node.
    dead: BTreeMap<NodeId, Incarnation>,
    /// When this leader last looked.
    looked: Option<Instant>,
}

struct Vitals {
    /// The last sign of life of the life that the map knows.
    heard: Instant,
    /// Since when there has been no gap in them.
    steady_from: Instant,
    /// Heard since this leader began.
    met: bool,
    refusals: u8,
    /// Asked, not answered yet.
    asking: bool,
    asked: Instant,
    /// Somebody had no answer from it.
    suspected: bool,
    away_from: Option<Instant>,
}

impl Health {
    /// This manager leads from now on. Nobody could reach it before. A process that has just started gives the others time
    /// to start too; otherwise who is silent may have been so for a while, and is asked at once.
    pub fn begin(&mut self, map: &Map, now: Instant, started: Instant, tunables: &Tunables) {
        let patient = started + tunables.start_grace;
        let heard = |node: &Node| {
            let unjudged = if node.incarnation == Incarnation(0) { now + tunables.form_grace } else { patient };
            now.before(tunables.away_after / 2).max(unjudged.before(tunables.away_after))
        };
        let vitals = |node: &Node| Vitals {
            heard: heard(node),
            steady_from: now,
            met: false,
            refusals: 0,
            asking: false,
            asked: Instant::ZERO,
            suspected: true,
            away_from: None,
        };
        self.nodes = map.nodes.values().map(|node| (node.id, vitals(node))).collect();
        self.looked = None;
    }

    /// The leader looks, every tick. One that could not look for longer than that, because its process or its whole machine
    /// stood still, has not listened either: nobody was silent meanwhile.
    pub fn look(&mut self, now: Instant, tunables: &Tunables) {
        let gap = self.looked.replace(now).map_or(Duration::ZERO, |before| now.since(before));
        if gap > tunables.tick * LATE_TICKS {
            self.nodes.values_mut().for_each(|vitals| vitals.heard = (vitals.heard + gap).min(vitals.heard.max(now)));
        }
    }

    /// A sign of life of the life that the map knows.
    pub fn hear(&mut self, node: NodeId, now: Instant, tunables: &Tunables) {
        let vitals = self.nodes.entry(node).or_insert(Vitals {
            heard: now,
            steady_from: now,
            met: true,
            refusals: 0,
            asking: false,
            asked: Instant::ZERO,
            suspected: false,
            away_from: None,
        });
        if !vitals.met || now.since(vitals.heard) > tunables.alive_every * 3 {
            vitals.steady_from = now;
        }
        // Patience at the beginning is for nodes that are still starting: this one is there, and counts as others do from now on.
        vitals.heard = if vitals.met { vitals.heard.max(now) } else { now };
        (vitals.met, vitals.refusals) = (true, 0);
    }

    /// A life ended. Returns whether that is news.
    pub fn died(&mut self, node: NodeId, incarnation: Incarnation) -> bool {
        let known = self.dead.entry(node).or_default();
        let news = incarnation > *known;
        *known = incarnation.max(*known);
        if news && let Some(vitals) = self.nodes.get_mut(&node) {
            // Signs of life from before are over.
            vitals.met = false;
        }
        news
    }

    pub fn is_dead(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.dead.get(&node) == Some(&incarnation)
    }

    pub fn suspect(&mut self, node: NodeId) {
        if let Some(vitals) = self.nodes.get_mut(&node) {
            vitals.suspected = true;
        }
    }

    /// Whom to ask now. Each of them is answered for by [`Health::answered`].
    pub fn whom_to_ask(&mut self, map: &Map, now: Instant, tunables: &Tunables) -> Vec<NodeId> {
        let mut ask = Vec::new();
        for node in map.nodes.values() {
            let Some(vitals) = self.nodes.get_mut(&node.id).filter(|vitals| !vitals.asking) else { continue };
            let silent = now.since(vitals.heard) >= tunables.away_after / 2;
            // The second refusal is what a first one waits for.
            if vitals.refusals != 1 && vitals.asked > Instant::ZERO && now.since(vitals.asked) < ASK_EVERY {
                continue;
            }
            let wanted = match node.state {
                State::Up | State::Draining => silent || vitals.suspected,
                // It says so itself when it lives.
                State::Away | State::Failed | State::Joining => false,
            };
            if wanted {
                (vitals.asking, vitals.asked, vitals.suspected) = (true, now, false);
                ask.push(node.id);
            }
        }
        ask
    }

    /// What a node answered. Asks again, at once, after a first refusal.
    pub fn answered(&mut self, node: &Node, answer: Answer, now: Instant, tunables: &Tunables) {
        if let Some(vitals) = self.nodes.get_mut(&node.id) {
            vitals.asking = false;
        }
        match answer {
            Answer::Lives(Some(incarnation)) if incarnation == node.incarnation => self.hear(node.id, now, tunables),
            // A process that is not admitted yet will say so; one from before will end by itself.
            Answer::Lives(_) | Answer::Silence => {}
            Answer::Refused => {
                let Some(vitals) = self.nodes.get_mut(&node.id) else { return };
                vitals.refusals = vitals.refusals.saturating_add(1);
                // A node that this leader has not met yet is only late.
                let late = !vitals.met && now.since(vitals.heard) < tunables.away_after / 2;
                let dead = vitals.refusals >= REFUSALS && !late;
                vitals.suspected = !dead && !late;
                if dead {
                    self.died(node.id, node.incarnation);
                }
            }
        }
    }

    /// Whether a node that refused once is being asked again. Several nodes often die together, and what moves should not move
    /// to one of them: it takes milliseconds to know.
    pub fn is_unsure(&self) -> bool {
        self.nodes.values().any(|vitals| vitals.refusals == 1 && vitals.asking)
    }

    /// Nodes that are in another state than the map says.
    pub fn judge(&mut self, map: &Map, now: Instant, tunables: &Tunables) -> BTreeMap<NodeId, State> {
        self.nodes.retain(|id, _| map.nodes.contains_key(id));
        let mut changed = BTreeMap::new();
        for node in map.nodes.values() {
            let dead = self.is_dead(node.id, node.incarnation);
            let Some(vitals) = self.nodes.get_mut(&node.id) else { continue };
            let silence = now.since(vitals.heard);
            let steady = vitals.met
                && silence <= tunables.alive_every * 2
                && now.since(vitals.steady_from) >= tunables.back_after;
            match node.state {
                State::Up | State::Draining => {
                    vitals.away_from = None;
                    // Whoever is heard for so long was declared dead by mistake.
                    if (dead && !steady) || silence >= tunables.away_after {
                        changed.insert(node.id, State::Away);
                    }
                }
                State::Away | State::Failed if steady => {
                    self.dead.remove(&node.id);
                    changed.insert(node.id, node.purpose.present());
                }
                State::Away => {
                    let from = *vitals.away_from.get_or_insert(now);
                    if now.since(from) >= tunables.failed_after {
                        changed.insert(node.id, State::Failed);
                    }
                }
                State::Failed | State::Joining => {}
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use weft_wire::DomainId;

    fn at(ms: u64) -> Instant {
        Instant(0) + Duration::from_secs(100) + Duration::from_millis(ms)
    }

    fn map(state: State) -> Map {
        let address: SocketAddr = ([127, 0, 0, 1], 1).into();
        let node = |id| Node {
            id: NodeId(id),
            name: format!("n{id}"),
            domain: DomainId(id),
            domain_name: None,
            cores: vec![address],
            control: address,
            incarnation: Incarnation(3),
            state,
            purpose: weft_wire::map::Purpose::Serve,
        };
        Map {
            version: Default::default(),
            cluster: Default::default(),
            name: String::new(),
            secret: weft_wire::hash::Secret([0; 16]),
            protection: weft_wire::map::Protection { data: 4, parity: 2 },
            bucket_bits: 1,
            nodes: (1..=2).map(|id| (NodeId(id), node(id))).collect(),
            drives: BTreeMap::new(),
            buckets: Vec::new(),
            filesystems: BTreeMap::new(),
            managers: Vec::new(),
            next_client: Default::default(),
            next_node: Default::default(),
            next_drive: Default::default(),
            hot_spare: 0,
            clients: BTreeMap::new(),
        }
    }

    fn led(tunables: &Tunables) -> Health {
        let mut health = Health::default();
        health.begin(&map(State::Up), at(0), Instant(0), tunables);
        health
    }

    #[test]
    fn silence_is_asked_about_and_then_believed() {
        let (tunables, map) = (Tunables::default(), map(State::Up));
        let mut health = led(&tunables);
        assert_eq!(health.whom_to_ask(&map, at(0), &tunables), [NodeId(1), NodeId(2)], "everyone, at the beginning");
        let node = &map.nodes[&NodeId(1)];
        health.answered(node, Answer::Lives(Some(Incarnation(3))), at(1), &tunables);
        health.answered(&map.nodes[&NodeId(2)], Answer::Silence, at(300), &tunables);
        assert_eq!(health.judge(&map, at(700), &tunables), BTreeMap::new());
        assert_eq!(health.whom_to_ask(&map, at(700), &tunables), [NodeId(2)]);
        assert_eq!(health.judge(&map, at(760), &tunables), BTreeMap::from([(NodeId(2), State::Away)]));
        assert_eq!(health.judge(&map, at(1501), &tunables).len(), 2);
    }

    #[test]
    fn patience_with_starting_nodes_ends_when_they_are_there() {
        let (tunables, map) = (Tunables::default(), map(State::Up));
        let mut health = Health::default();
        health.begin(&map, at(0), at(0), &tunables);
        health.hear(NodeId(1), at(10), &tunables);
        let silent = at(10) + tunables.away_after;
        assert_eq!(
            health.judge(&map, silent, &tunables),
            BTreeMap::from([(NodeId(1), State::Away)]),
            "node 2 may start"
        );
        let late = at(0) + tunables.start_grace;
        assert_eq!(health.judge(&map, late, &tunables).len(), 2);
    }

    #[test]
    fn who_stood_still_blames_nobody() {
        let (tunables, map) = (Tunables::default(), map(State::Up));
        let mut health = led(&tunables);
        health.look(at(0), &tunables);
        health.hear(NodeId(1), at(0), &tunables);
        health.hear(NodeId(2), at(0), &tunables);
        health.look(at(10_000), &tunables);
        assert_eq!(health.judge(&map, at(10_000), &tunables), BTreeMap::new());
        let late = 10_000 + tunables.away_after.as_millis() as u64;
        (10_000..late).step_by(100).for_each(|ms| health.look(at(ms), &tunables));
        assert_eq!(health.judge(&map, at(late), &tunables).len(), 2, "real silence is one");
    }

    #[test]
    fn a_word_counts_at_once_and_for_one_life() {
        let (tunables, map) = (Tunables::default(), map(State::Up));
        let mut health = led(&tunables);
        health.hear(NodeId(1), at(0), &tunables);
        health.hear(NodeId(2), at(0), &tunables);
        assert!(health.died(NodeId(1), Incarnation(2)));
        assert_eq!(health.judge(&map, at(1), &tunables), BTreeMap::new(), "an earlier life");
        assert!(health.died(NodeId(1), Incarnation(3)));
        assert!(!health.died(NodeId(1), Incarnation(3)), "told twice");
        assert_eq!(health.judge(&map, at(2), &tunables), BTreeMap::from([(NodeId(1), State::Away)]));
    }

    #[test]
    fn a_refused_port_is_asked_twice() {
        let (tunables, map) = (Tunables::default(), map(State::Up));
        let mut health = led(&tunables);
        let node = &map.nodes[&NodeId(1)];
        health.hear(NodeId(1), at(0), &tunables);
        health.hear(NodeId(2), at(0), &tunables);
        health.whom_to_ask(&map, at(0), &tunables);
        health.answered(node, Answer::Refused, at(1), &tunables);
        assert_eq!(health.judge(&map, at(1), &tunables), BTreeMap::new());
        assert_eq!(health.whom_to_ask(&map, at(2), &tunables), [NodeId(1)]);
        assert!(health.is_unsure());
        health.answered(node, Answer::Refused, at(3), &tunables);
        assert_eq!(health.judge(&map, at(3), &tunables), BTreeMap::from([(NodeId(1), State::Away)]));
    }

    #[test]
    fn who_is_drained_dies_like_others_and_is_drained_on_when_it_is_back() {
        let (tunables, mut map) = (Tunables::default(), map(State::Draining));
        map.nodes.values_mut().for_each(|node| node.purpose = weft_wire::map::Purpose::Leave);
        let mut health = led(&tunables);
        health.hear(NodeId(2), at(2000), &tunables);
        assert_eq!(health.judge(&map, at(2000), &tunables), BTreeMap::from([(NodeId(1), State::Away)]));
        map.nodes.values_mut().for_each(|node| node.state = State::Away);
        for ms in (2000..4000).step_by(tunables.alive_every.as_millis() as usize) {
            health.hear(NodeId(1), at(ms), &tunables);
        }
        assert_eq!(health.judge(&map, at(4000), &tunables).get(&NodeId(1)), Some(&State::Draining));
    }

    #[test]
    fn it_comes_back_when_it_stays_and_fails_when_it_does_not() {
        let (tunables, map) = (Tunables::default(), map(State::Away));
        let mut health = led(&tunables);
        assert_eq!(health.judge(&map, at(0), &tunables), BTreeMap::new());
        let every = tunables.alive_every.as_millis() as u64;
        let mut ms = 10_000;
        let back = loop {
            health.hear(NodeId(1), at(ms), &tunables);
            let judged = health.judge(&map, at(ms), &tunables);
            if judged.get(&NodeId(1)) == Some(&State::Up) {
                break ms;
            }
            ms += every;
        };
        assert!(back >= 10_000 + tunables.back_after.as_millis() as u64);
        let late = health.judge(&map, at(0) + tunables.failed_after, &tunables);
        assert_eq!(late.get(&NodeId(2)), Some(&State::Failed));
    }
}
