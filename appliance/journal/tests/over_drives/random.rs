//! Random histories: leaders race, crash and are cut off, drives crash and tear, messages vanish, ensembles change.
//!
//! After each recovery and at the end: what was acknowledged is there; what a leader that served had not adopted never
//! comes back; and a leader whose lease holds is the only one.

use crate::cluster::{Cluster, Leader, Outcome, drive_core, drives, leader_core};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::mem::CrashKeeps;
use weft_journal::{RecoverError, Tunables};
use weft_reactor::testing::VirtualTime;
use weft_reactor::{Handle, Task};
use weft_wire::{DriveId, Seq};

const DRIVES: u32 = 6;
const STEPS: usize = 100;
const SEEDS: u64 = 150;

/// What is known from outside.
#[derive(Default)]
struct Oracle {
    /// Every acknowledged batch.
    acknowledged: BTreeMap<u64, u64>,
    /// What each leader that served had adopted, and where its own records begin: by epoch.
    adopted: BTreeMap<u64, (u64, BTreeMap<u64, u64>)>,
}

impl Oracle {
    /// A leader of `epoch` that serves found `state`; its own records begin at `start`.
    fn check(&mut self, epoch: u64, start: u64, state: &BTreeMap<u64, u64>, acknowledged_before: &BTreeMap<u64, u64>) {
        for (seq, value) in acknowledged_before {
            assert_eq!(state.get(seq), Some(value), "epoch {epoch} lost acknowledged seq{seq}");
        }
        for (other, (other_start, other_state)) in &self.adopted {
            let (older, newer_state, older_state) =
                if *other < epoch { (*other_start, state, other_state) } else { (start, other_state, state) };
            let kept: BTreeMap<u64, u64> = newer_state.range(..older).map(|(seq, value)| (*seq, *value)).collect();
            assert_eq!(kept, *older_state, "epochs {epoch} and {other} differ in what both adopted");
        }
        self.adopted.insert(epoch, (start, state.clone()));
    }
}

struct World {
    cluster: Rc<Cluster>,
    handle: Handle,
    oracle: Rc<RefCell<Oracle>>,
    /// Leaders that may still believe in themselves.
    leaders: RefCell<BTreeMap<u64, Rc<Leader>>>,
    recovering: RefCell<BTreeMap<u64, Task<()>>>,
    epoch: RefCell<u64>,
    /// As the map lists them: the current one first.
    ensembles: RefCell<Vec<Vec<DriveId>>>,
    next_value: RefCell<u64>,
}

impl World {
    fn below(&self, bound: u64) -> u64 {
        self.handle.random_below(bound)
    }

    fn lead(self: &Rc<Self>) {
        *self.epoch.borrow_mut() += 1;
        let epoch = *self.epoch.borrow();
        let ensembles = self.ensembles.borrow().clone();
        let world = Rc::clone(self);
        let task = self.handle.spawn("new leader", async move {
            let listed: Vec<&[DriveId]> = ensembles.iter().map(Vec::as_slice).collect();
            let leader = match world.cluster.lead(epoch, &listed).await {
                Ok(leader) => Rc::new(leader),
                Err(RecoverError::Sealed(_)) => return,
                Err(error) => panic!("epoch {epoch}: {error}"),
            };
            // Acknowledgements of older epochs that are still on their way come from drives it sealed: they are
            // checked when they arrive.
            let start = leader.log.last().0;
            let acknowledged = world.oracle.borrow().acknowledged.clone();
            let before: BTreeMap<u64, u64> = acknowledged.range(..start).map(|(seq, value)| (*seq, *value)).collect();
            world.oracle.borrow_mut().check(epoch, start, &leader.state.borrow(), &before);
            world.leaders.borrow_mut().insert(epoch, Rc::clone(&leader));
            // The managers drop the old ensemble, unless another epoch was given in the meantime.
            if leader.log.copied().await.is_ok() && *world.epoch.borrow() == epoch && listed.len() > 1 {
                world.ensembles.borrow_mut().truncate(1);
            }
        });
        self.recovering.borrow_mut().insert(epoch, task);
    }

    fn watch(&self, epoch: u64, seq: Seq, value: u64, outcome: Outcome) {
        let oracle = Rc::clone(&self.oracle);
        let watcher = self.handle.spawn("watcher", async move {
            if let Ok(Ok(())) = outcome.await {
                let mut oracle = oracle.borrow_mut();
                for (later, (start, state)) in oracle.adopted.range(epoch + 1..) {
                    assert!(
                        seq.0 < *start && state.get(&seq.0) == Some(&value),
                        "epoch {later} lacks {seq} of {epoch}"
                    );
                }
                assert_eq!(oracle.acknowledged.insert(seq.0, value), None, "{seq} was acknowledged twice");
            }
        });
        watcher.detach();
    }

    fn append(&self) {
        let leaders = self.leaders.borrow();
        for (epoch, leader) in leaders.iter() {
            for _ in 0..self.below(6) {
                let value = *self.next_value.borrow();
                let len = 8 + self.below(9000) as usize;
                let Ok((seq, outcome)) = leader.append(value, len) else { break };
                *self.next_value.borrow_mut() += 1;
                self.watch(*epoch, seq, value, outcome);
            }
        }
    }

    fn checkpoint(&self) {
        for leader in self.leaders.borrow().values() {
            let covers = Seq(leader.log.last().0.saturating_sub(self.below(4))).max(leader.covered.get());
            if let Ok((_, outcome)) = leader.append_root(covers) {
                drop(outcome);
            }
        }
    }

    fn crash_a_drive(&self) {
        let drive = DriveId(1 + self.below(u64::from(DRIVES)) as u32);
        let keeps = match self.below(3) {
            0 => CrashKeeps::Nothing,
            1 => CrashKeeps::Everything,
            _ => CrashKeeps::Some { seed: self.handle.random_u64() },
        };
        let down = (1..=DRIVES).filter(|id| !self.cluster.is_running(DriveId(*id))).count();
        if self.cluster.is_running(drive) && down < 2 {
            self.cluster.crash(drive, keeps);
        }
    }

    fn crash_a_leader(&self) {
        let epoch = self.leaders.borrow().keys().next().copied();
        if let Some(epoch) = epoch {
            self.cluster.network.crash(leader_core(epoch));
            self.leaders.borrow_mut().remove(&epoch);
        }
    }

    fn power_loss_of_all(&self) {
        for epoch in 1..=*self.epoch.borrow() {
            self.cluster.network.crash(leader_core(epoch));
        }
        self.leaders.borrow_mut().clear();
        for (_, task) in std::mem::take(&mut *self.recovering.borrow_mut()) {
            task.abort();
        }
        for id in 1..=DRIVES {
            if self.cluster.is_running(DriveId(id)) {
                self.cluster.crash(DriveId(id), CrashKeeps::Some { seed: self.handle.random_u64() });
            }
        }
    }

    async fn start_drives(&self, all: bool) {
        for id in 1..=DRIVES {
            if !self.cluster.is_running(DriveId(id)) && (all || self.below(2) == 0) {
                self.cluster.start(DriveId(id)).await;
            }
        }
    }

    fn cut_something(&self) {
        let epoch = 1 + self.below(*self.epoch.borrow());
        let drive = drive_core(DriveId(1 + self.below(u64::from(DRIVES)) as u32));
        if self.below(2) == 0 {
            self.cluster.network.cut(leader_core(epoch), drive);
        } else {
            self.cluster.network.cut(drive, leader_core(epoch));
        }
    }

    fn change_ensemble(&self) {
        let mut ensembles = self.ensembles.borrow_mut();
        if ensembles.len() == 1 {
            // One drive leaves, another takes its place.
            let mut new = ensembles.first().cloned().unwrap_or_default();
            let others = (1..=DRIVES).map(DriveId).filter(|drive| !new.contains(drive)).collect::<Vec<_>>();
            let joins = others[self.below(others.len() as u64) as usize];
            let place = self.below(new.len() as u64) as usize;
            new[place] = joins;
            ensembles.insert(0, new);
        }
    }

    fn check_leases(&self) {
        let now = self.handle.now();
        let holders: Vec<u64> =
            self.leaders.borrow().iter().filter(|(_, l)| l.log.lease_valid(now)).map(|(epoch, _)| *epoch).collect();
        let newest = self.oracle.borrow().adopted.keys().next_back().copied();
        assert!(holders.iter().all(|epoch| Some(*epoch) == newest), "{holders:?} hold leases, {newest:?} began");
    }

    async fn step(self: &Rc<Self>) {
        match self.below(20) {
            0 => self.crash_a_drive(),
            1 => self.crash_a_leader(),
            2 => self.lead(),
            3 => {
                self.change_ensemble();
                self.lead();
            }
            4 => self.cut_something(),
            5 => self.cluster.network.mend_all(),
            6 => self.cluster.network.set_loss(self.below(200_000)),
            7 => self.cluster.network.set_loss(0),
            8 | 9 => self.start_drives(false).await,
            10 => self.checkpoint(),
            11 if self.below(4) == 0 => {
                self.power_loss_of_all();
                self.start_drives(true).await;
                self.lead();
            }
            _ => self.append(),
        }
        let pause = [20, 200, 2_000, 200_000][self.below(4) as usize];
        self.handle.sleep(Duration::from_micros(self.below(pause))).await;
        self.check_leases();
    }

    /// Everything heals; a last leader must begin, and find it all.
    async fn finish(self: &Rc<Self>) {
        self.cluster.network.mend_all();
        self.cluster.network.set_loss(0);
        self.start_drives(true).await;
        self.lead();
        let epoch = *self.epoch.borrow();
        let limit = self.handle.now() + Duration::from_secs(60);
        while !self.leaders.borrow().contains_key(&epoch) {
            assert!(self.handle.now() < limit, "epoch {epoch} does not begin though everything is well");
            self.handle.sleep(Duration::from_millis(10)).await;
        }
        self.append();
        let leader = Rc::clone(&self.leaders.borrow()[&epoch]);
        let last = leader.log.last();
        assert_eq!(leader.log.settled(last).await, Ok(()));
        self.handle.sleep(Duration::from_secs(1)).await;
        let state = leader.state.borrow().clone();
        for (seq, value) in &self.oracle.borrow().acknowledged {
            assert_eq!(state.get(seq), Some(value), "acknowledged seq{seq} is lost");
        }
    }
}

fn run(seed: u64) -> usize {
    let time = VirtualTime::new(seed);
    let handle = time.handle();
    time.block_on(async move {
        let cluster = Cluster::new(handle.clone(), DRIVES).await;
        let small = handle.random_below(2) == 0;
        let tunables = Tunables {
            backlog_bytes_max: if small { 20 << 10 } else { 4 << 20 },
            window_bytes: if small { 16 << 10 } else { 4 << 20 },
            group_bytes: if small { 12 << 10 } else { 1 << 20 },
            read_bytes: if small { 16 << 10 } else { 1 << 20 },
            ..Tunables::default()
        };
        cluster.tunables.set(tunables);
        let world = Rc::new(World {
            cluster,
            handle,
            oracle: Rc::default(),
            leaders: RefCell::default(),
            recovering: RefCell::default(),
            epoch: RefCell::new(0),
            ensembles: RefCell::new(vec![drives(1..=4)]),
            next_value: RefCell::new(1),
        });
        world.lead();
        world.handle.sleep(Duration::from_millis(400)).await;
        for _ in 0..STEPS {
            world.step().await;
        }
        world.finish().await;
        world.oracle.take().acknowledged.len()
    })
}

#[test]
fn no_history_loses_or_revives_a_record() {
    let seeds = match std::env::var("WEFT_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS,
    };
    let mut acknowledged = 0;
    for seed in seeds {
        println!("WEFT_SEED={seed}");
        acknowledged += run(seed);
    }
    println!("{acknowledged} records acknowledged");
}
