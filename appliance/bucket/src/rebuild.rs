//! Rebuild: a shard of a zone set that is absent, lost, or on a drive that is no member any more gets a zone on a member
//! that is there. What the set holds is read row by row, the shard is copied or made from others, and written to the same
//! rows; then one record says where it is, and when that stands the old zone is free.
//!
//! Everything follows from the table and the map: which sets are due, and so what goes on after a crash. A location is
//! never written twice: a rebuild that fails on the way gives its zones back, and another begins with new ones.

use crate::BucketError;
use crate::batch::ZoneSetChange;
use crate::bucket::{Bucket, add};
use crate::extents::Worked;
use crate::freeing::Unnamed;
use crate::planner::Step;
use crate::rebuild_chunk::{Chunk, CopyError};
use crate::rebuild_pace::Sources;
use crate::stripes::{Purse, Stripes};
use crate::zone_set::{Member, ZoneSet};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::{Instant, join_all};
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::map::State;
use weft_wire::{DriveId, StripeId, ZoneSetId};

/// Rebuilds that are begun at once: a worse one puts off one that is under way, so one for each degree of exposure.
const BEGUN_MAX: usize = 5;

/// A set with shards that should be elsewhere and can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// Shards that can't be read now.
    missing: usize,
    set: ZoneSetId,
    /// What is to be made, and on which drive.
    shards: Vec<(usize, DriveId)>,
}

/// A new home of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub shard: usize,
    pub member: Member,
}

/// A rebuild under way.
pub(crate) struct Rebuild {
    set: ZoneSetId,
    targets: Vec<Target>,
    /// Checksums of the set's index stripes: no key of the index has them.
    index: BTreeMap<StripeId, Rc<Vec<u32>>>,
    /// The first stripe that was not looked at.
    next: StripeId,
    /// Parts that could not be read at the first try.
    again: Vec<Chunk>,
    bytes: u64,
    _unnamed: Unnamed,
}

impl Rebuild {
    fn is_for(&self, due: &Due) -> bool {
        let targets = self.targets.iter().map(|target| (target.shard, target.member.drive));
        self.set == due.set && targets.eq(due.shards.iter().copied())
    }
}

/// The work list, and what is under way.
#[derive(Default)]
pub(crate) struct Rebuilds {
    /// Of which table and map `due` was made.
    seen: Option<(u64, u64)>,
    /// The most exposed first.
    due: Vec<Due>,
    begun: Vec<Rebuild>,
    /// Sets that failed, and until when they are passed over.
    blocked: BTreeMap<ZoneSetId, Instant>,
    pub sources: Sources,
    /// Since when there is work without a break, and the bytes made since.
    since: Option<Instant>,
    bytes_done: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildProgress {
    pub bytes_done: u64,
    pub bytes_left: u64,
    pub bytes_per_second: u64,
}

impl Stripes {
    /// The sets that have shards to be rebuilt for which there is a place, the most exposed first.
    fn due(&self) -> Vec<Due> {
        let members = self.drives.members();
        let zones = self.zones.borrow();
        let due = zones.settled_sets().map(|set| Due {
            missing: self.missing(set),
            set: set.id,
            shards: self.misplaced(set, &members),
        });
        let mut due: Vec<Due> = due.filter(|due| !due.shards.is_empty()).collect();
        due.sort_by_key(|due| (Reverse(due.missing), due.set));
        due
    }

    /// Shards of the set that can't be read now.
    pub(crate) fn missing(&self, set: &ZoneSet) -> usize {
        let there = |member: &&Member| self.drives.is_there(member.drive);
        set.members.len() - set.zones().filter(there).count()
    }

    /// Shards that are not where a member keeps them, and where each can go: the bucket's member of the same place, or
    /// another that has none of the set's. So a set's drives are as far apart as the bucket's members are. What a
    /// member that is only away holds stays.
    fn misplaced(&self, set: &ZoneSet, members: &[DriveId]) -> Vec<(usize, DriveId)> {
        let stays =
            |member: &Member| members.contains(&member.drive) && self.drives.state(member.drive) != State::Failed;
        let staying: Vec<DriveId> = set.zones().filter(|member| stays(member)).map(|member| member.drive).collect();
        if staying.len() == set.members.len() {
            return Vec::new();
        }
        let mut free: Vec<DriveId> = members.to_vec();
        // Also one that is being drained: its own turn comes when nothing is left on those that were members before.
        free.retain(|drive| !staying.contains(drive) && self.drives.is_there(*drive));
        let mut shards = Vec::new();
        for shard in (0..set.members.len()).filter(|shard| !set.member(*shard).is_some_and(|member| stays(&member))) {
            let own = members.get(shard).and_then(|drive| free.iter().position(|free| free == drive));
            if !free.is_empty() {
                shards.push((shard, free.remove(own.unwrap_or(0))));
            }
        }
        shards
    }
}

impl Rebuilds {
    fn refresh(&mut self, stripes: &Stripes) {
        let seen = Some((stripes.zones.borrow().revision(), stripes.drives.version()));
        if self.seen == seen {
            return;
        }
        self.seen = seen;
        self.due = stripes.due();
        self.blocked.retain(|set, _| self.due.iter().any(|due| due.set == *set));
    }

    /// The most exposed set that isn't blocked; of equals one that is begun.
    fn pick(&self, now: Instant) -> Option<Due> {
        let ready = |due: &&Due| self.blocked.get(&due.set).is_none_or(|until| *until <= now);
        let first = self.due.iter().find(ready)?;
        let begun = |due: &&Due| due.missing == first.missing && self.begun.iter().any(|begun| begun.is_for(due));
        Some(self.due.iter().filter(ready).find(begun).unwrap_or(first).clone())
    }
}

impl Bucket {
    pub(crate) fn wants_rebuild(&self) -> bool {
        let mut rebuilds = self.0.rebuilds.borrow_mut();
        rebuilds.refresh(&self.0.stripes);
        let any = !rebuilds.due.is_empty() || !rebuilds.begun.is_empty();
        match (any, rebuilds.since) {
            (true, None) => {
                rebuilds.since = Some(self.0.handle.now());
                rebuilds.bytes_done = 0;
            }
            (false, Some(_)) => {
                rebuilds.since = None;
                rebuilds.sources.rest();
            }
            _ => {}
        }
        any
    }

    /// How much of each member's shards is to be read while what others held is made again: what all leaders read together
    /// should be equally much for all drives. Nothing: whoever answers soonest is read.
    pub fn set_rebuild_reads(&self, reads: BTreeMap<DriveId, u64>) {
        self.0.rebuilds.borrow_mut().sources.follow(reads);
    }

    /// Goes on with the most exposed set for a few reads' and writes' time.
    pub(crate) async fn rebuild_once(&self) -> Result<(), BucketError> {
        self.abandon_stale();
        let Some(due) = self.0.rebuilds.borrow().pick(self.0.handle.now()) else {
            let waiting = self.0.rebuilds.borrow().due.len();
            return if waiting == 0 { Ok(()) } else { Err(BucketError::NotReady(format!("{waiting} sets wait"))) };
        };
        let Err(error) = self.rebuild_some(&due).await else { return Ok(()) };
        if matches!(error, BucketError::Deposed(_) | BucketError::Stopped) {
            return Err(error);
        }
        // Others can go on.
        let mut rebuilds = self.0.rebuilds.borrow_mut();
        let now = self.0.handle.now();
        rebuilds.blocked.insert(due.set, now + self.0.tunables.planner_pause);
        match rebuilds.pick(now) {
            Some(_) => {
                tracing::info!(bucket = %self.0.id, set = %due.set, %error, "a rebuild waits");
                Ok(())
            }
            None => Err(error),
        }
    }

    async fn rebuild_some(&self, due: &Due) -> Result<(), BucketError> {
        let begun = {
            let mut rebuilds = self.0.rebuilds.borrow_mut();
            let at = rebuilds.begun.iter().position(|begun| begun.is_for(due));
            at.map(|at| rebuilds.begun.swap_remove(at))
        };
        let mut rebuild = match begun {
            Some(rebuild) => rebuild,
            None => self.begin_rebuild(due).await?,
        };
        match self.copy_some(&mut rebuild).await {
            Ok(true) => self.end_rebuild(rebuild).await,
            Ok(false) => {
                self.0.rebuilds.borrow_mut().begun.push(rebuild);
                Ok(())
            }
            Err(CopyError::Read(error)) => {
                self.0.rebuilds.borrow_mut().begun.push(rebuild);
                Err(error)
            }
            Err(CopyError::Write(error)) => {
                self.abandon(rebuild);
                Err(error)
            }
        }
    }

    /// Gives up what is begun for what is no longer due.
    fn abandon_stale(&self) {
        let stale = {
            let mut rebuilds = self.0.rebuilds.borrow_mut();
            rebuilds.refresh(&self.0.stripes);
            let Rebuilds { due, begun, .. } = &mut *rebuilds;
            let (keep, mut stale): (Vec<_>, Vec<_>) =
                std::mem::take(begun).into_iter().partition(|begun| due.iter().any(|due| begun.is_for(due)));
            *begun = keep;
            if begun.len() >= BEGUN_MAX {
                stale.push(begun.remove(0));
            }
            stale
        };
        stale.into_iter().for_each(|rebuild| self.abandon(rebuild));
    }

    fn abandon(&self, rebuild: Rebuild) {
        tracing::debug!(bucket = %self.0.id, set = %rebuild.set, "a rebuild is given up");
        let stripes = Rc::clone(&self.0.stripes);
        let free = async move {
            stripes.free_members(rebuild.targets.iter().map(|target| target.member)).await;
            drop(rebuild);
        };
        self.0.handle.spawn("free zones", free).detach();
    }

    async fn begin_rebuild(&self, due: &Due) -> Result<Rebuild, BucketError> {
        let stripes = &self.0.stripes;
        let named_by_root_alone = || {
            let zones = stripes.zones.borrow();
            zones.stripes_of(due.set, StripeId(0)).any(|(id, _)| zones.retired().contains(&id))
        };
        if named_by_root_alone() {
            // Nobody here has their checksums any more. The next root lets them go.
            self.0.step.set(Some(Step::Checkpoint));
            self.checkpoint().await?;
        }
        let mut index = BTreeMap::new();
        for stripe in self.index_stripes().into_iter().filter(|stripe| stripe.zone_set == due.set) {
            index.insert(stripe.id, Rc::new(stripe.checksums));
        }
        let unnamed = stripes.number_zones();
        let number = unnamed.id;
        let opens = due.shards.iter().map(|(shard, drive)| stripes.open_zone(*drive, number, *shard as u8));
        let mut targets = Vec::with_capacity(due.shards.len());
        let mut failed = None;
        let mut blocks_min = u32::MAX;
        for ((shard, drive), opened) in due.shards.iter().zip(join_all(opens).await) {
            match opened {
                Ok((member, blocks)) => {
                    targets.push(Target { shard: *shard, member });
                    blocks_min = blocks_min.min(blocks);
                }
                Err(BucketError::NoSpace) => failed = Some(BucketError::NotReady(format!("{drive} has no free zone"))),
                Err(error) => failed = Some(error),
            }
        }
        let end = stripes.zones.borrow().stripes_of(due.set, StripeId(0)).last();
        let rows = end.map_or(0, |(_, entry)| entry.row + entry.rows);
        if failed.is_none() && blocks_min < rows {
            self.0.cleaning.set(Some(due.set));
            failed = Some(BucketError::NotReady(format!("the zones of {} are larger: it is emptied instead", due.set)));
        }
        let rebuild =
            Rebuild { set: due.set, targets, index, next: StripeId(0), again: Vec::new(), bytes: 0, _unnamed: unnamed };
        match failed {
            None => Ok(rebuild),
            Some(error) => {
                self.abandon(rebuild);
                Err(error)
            }
        }
    }

    /// Copies a few chunks at a time. True: that was all.
    async fn copy_some(&self, rebuild: &mut Rebuild) -> Result<bool, CopyError> {
        let Some(set) = self.0.stripes.zones.borrow().set(rebuild.set).cloned() else { return Ok(true) };
        let mut chunks = Vec::new();
        let (begun, stride) = (self.0.handle.now(), self.0.rebuild_stride.get());
        while chunks.len() < stride.chunks() {
            let chunk = rebuild.again.pop().or_else(|| self.next_chunk(set.id, &mut rebuild.next));
            let Some(chunk) = chunk else { break };
            chunks.push(chunk);
        }
        let all = chunks.is_empty();
        let copies = chunks.iter().map(|chunk| self.copy_chunk(&set, &rebuild.targets, &rebuild.index, chunk));
        let copied = join_all(copies).await;
        let took = self.0.handle.now().since(begun);
        self.0.rebuild_stride.set(stride.after(took, self.0.tunables.rebuild_chunks_max));
        let mut failed = None;
        for (chunk, copied) in chunks.into_iter().zip(copied) {
            match copied {
                Ok(bytes) => {
                    rebuild.bytes += bytes;
                    self.0.rebuilds.borrow_mut().bytes_done += bytes;
                    add(&self.0.counters.rebuilt_bytes, bytes);
                }
                Err(write @ CopyError::Write(_)) => return Err(write),
                Err(read) => {
                    rebuild.again.push(chunk);
                    failed = Some(read);
                }
            }
        }
        failed.map_or(Ok(all), Err)
    }

    /// The record that says where the shards are; when it stands, the old zones are free.
    async fn end_rebuild(&self, rebuild: Rebuild) -> Result<(), BucketError> {
        let set = self.0.stripes.zones.borrow().set(rebuild.set).cloned();
        // Nothing is put where it should not be: who stopped being a member meanwhile may be gone in a moment.
        let members = self.0.stripes.drives.members();
        let fits = rebuild.targets.iter().all(|target| members.contains(&target.member.drive));
        let Some(set) = set.filter(|_| fits) else {
            self.abandon(rebuild);
            return Ok(());
        };
        let moved =
            |target: &Target| ZoneSetChange::Move { set: set.id, shard: target.shard as u8, member: target.member };
        let changes = rebuild.targets.iter().map(moved).collect();
        let seq = match self.commit_now(&[], &[], &Worked::default(), changes, Purse::Planner) {
            Ok(seq) => seq,
            Err(error) => {
                self.0.rebuilds.borrow_mut().begun.push(rebuild);
                return Err(error.into());
            }
        };
        add(&self.0.counters.rebuilt_shards, rebuild.targets.len() as u64);
        self.settled(seq).await?;
        let old: Vec<Member> = rebuild.targets.iter().filter_map(|target| set.member(target.shard)).collect();
        let stripes = Rc::clone(&self.0.stripes);
        self.0.handle.spawn("free zones", async move { stripes.free_members(old).await }).detach();
        Ok(())
    }

    /// After a step that took so long: how long others have the drives to themselves, other leaders' rebuilds or clients.
    pub(crate) fn rebuild_pause(&self, took: Duration) -> Duration {
        let crowded = self.0.rebuild_stride.get().pause(took);
        let share = self.0.tunables.rebuild_share.clamp(1, 256);
        let asked = self.0.counters.asked.get();
        let quiet = self.0.asked_before.replace(asked) == asked && !self.has_work_below_rebuild();
        if quiet { crowded } else { crowded.max(took * (256 - share) / share) }
    }

    pub(crate) fn rebuild_progress(&self) -> RebuildProgress {
        let mut rebuilds = self.0.rebuilds.borrow_mut();
        rebuilds.refresh(&self.0.stripes);
        let zones = self.0.stripes.zones.borrow();
        let rows = |set: ZoneSetId| zones.stripes_of(set, StripeId(0)).map(|(_, entry)| u64::from(entry.rows)).sum();
        let bytes = |due: &Due| -> u64 {
            let rows: u64 = rows(due.set);
            rows * due.shards.len() as u64 * BLOCK_BYTES as u64
        };
        let all: u64 = rebuilds.due.iter().map(bytes).sum();
        let begun: u64 = rebuilds.begun.iter().map(|begun| begun.bytes).sum();
        let bytes_done = if rebuilds.since.is_some() { rebuilds.bytes_done } else { 0 };
        let elapsed = rebuilds.since.map_or(Duration::ZERO, |since| self.0.handle.now().since(since));
        RebuildProgress {
            bytes_done,
            bytes_left: all.saturating_sub(begun),
            bytes_per_second: (u128::from(bytes_done) * 1000 / elapsed.as_millis().max(1)) as u64,
        }
    }

    /// Stripes by how many of their shards can't be read now: the first number is of those that are whole.
    pub(crate) fn stripes_by_missing(&self) -> Vec<u64> {
        let mut counts = vec![0; usize::from(self.0.protection.parity) + 2];
        let zones = self.0.stripes.zones.borrow();
        for set in zones.sets() {
            let missing = self.0.stripes.missing(set).min(counts.len() - 1);
            counts[missing] += zones.stripes_len_of(set.id) as u64;
        }
        counts
    }
}
