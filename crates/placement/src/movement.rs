//! Moving shards from drive to drive: as few as the balance needs.

use crate::form::DriveTable;
use crate::members::Pairs;

/// Members by bucket, with the counts that choices are made by.
pub(crate) struct Placement<'a> {
    table: &'a DriveTable,
    pub members: Vec<Vec<usize>>,
    pub quota: Vec<u64>,
    held: Vec<u64>,
    pairs: Pairs,
    /// Shards of a bucket that a domain may have.
    per_domain: usize,
}

impl<'a> Placement<'a> {
    /// `quota` and `per_domain` are [`DriveTable::quotas_now`]'s.
    pub fn new(
        table: &'a DriveTable,
        members: Vec<Vec<usize>>,
        (quota, per_domain): (Vec<u64>, usize),
        shards: usize,
    ) -> Self {
        let nodes = table.node_of.iter().map(|node| node + 1).max().unwrap_or(0);
        let mut load = vec![0; nodes];
        for (drive, quota) in quota.iter().enumerate() {
            load[table.node_of[drive]] += quota;
        }
        let mut held = vec![0; quota.len()];
        let mut pairs = Pairs::new(&load, table.domains_with_weight(), members.len() as u64, shards);
        for members in &members {
            for (position, &a) in members.iter().enumerate() {
                held[a] += 1;
                for &b in &members[..position] {
                    pairs.add(table.node_of[a], table.node_of[b], 1);
                }
            }
        }
        Self { table, members, quota, held, pairs, per_domain }
    }

    /// Members beside `old` in the domain of `new`.
    fn crowd(&self, bucket: usize, old: usize, new: usize) -> usize {
        let domain = self.table.holders[new].domain;
        let others = self.members[bucket].iter().filter(|&&other| other != old);
        others.filter(|&&other| self.table.holders[other].domain == domain).count()
    }

    /// Whether `new` may stand in for `old` in a bucket: another drive, no domain more often than it must be.
    fn fits(&self, bucket: usize, old: usize, new: usize) -> bool {
        self.crowd(bucket, old, new) < self.per_domain && !self.members[bucket].contains(&new)
    }

    /// A member that shares its domain with another, and the drive in a less crowded one that takes its place. Of several the
    /// one on the fullest drive.
    pub fn unfolding(&self, bucket: usize) -> Option<(usize, usize)> {
        let excess = |drive: usize| self.held[drive] as i64 - self.quota[drive] as i64;
        let crowded = self.members[bucket].iter().map(|&old| (old, self.crowd(bucket, old, old)));
        let moves = crowded.filter(|(_, crowd)| *crowd > 0).filter_map(|(old, crowd)| {
            let new = self.successor(bucket, old)?;
            (self.crowd(bucket, old, new) < crowd).then_some((old, new))
        });
        moves.max_by_key(|&(old, _)| (excess(old), core::cmp::Reverse(old)))
    }

    /// How much worse the pairs get when `new` stands in for `old`.
    fn pair_cost(&self, bucket: usize, old: usize, new: usize) -> f64 {
        let others = self.members[bucket].iter().filter(|&&other| other != old);
        others
            .map(|&other| {
                let other = self.table.node_of[other];
                let (new, old) = (self.table.node_of[new], self.table.node_of[old]);
                let gains = if new == other { 0.0 } else { self.pairs.excess(new, other, 1.0) };
                let loses = if old == other { 0.0 } else { self.pairs.excess(old, other, 1.0) };
                gains - loses
            })
            .sum()
    }

    pub fn replace(&mut self, bucket: usize, old: usize, new: usize) {
        for member in &mut self.members[bucket] {
            if *member == old {
                *member = new;
            }
        }
        for &other in self.members[bucket].iter().filter(|&&other| other != new) {
            self.pairs.add(self.table.node_of[old], self.table.node_of[other], -1);
            self.pairs.add(self.table.node_of[new], self.table.node_of[other], 1);
        }
        self.held[old] -= 1;
        self.held[new] += 1;
    }

    /// The drive that takes `old`'s place in a bucket: in the least crowded domain, the emptiest for its quota, then the one that evens the pairs.
    pub fn successor(&self, bucket: usize, old: usize) -> Option<usize> {
        (0..self.quota.len()).filter(|&new| self.quota[new] > 0 && self.fits(bucket, old, new)).min_by(|&a, &b| {
            let fill = |drive: usize| (u128::from(self.held[drive] + 1) << 64) / u128::from(self.quota[drive]);
            self.crowd(bucket, old, a)
                .cmp(&self.crowd(bucket, old, b))
                .then_with(|| fill(a).cmp(&fill(b)))
                .then_with(|| self.pair_cost(bucket, old, a).total_cmp(&self.pair_cost(bucket, old, b)))
        })
    }

    /// The next move from a drive above its quota to one below it, of the drives that are `free` and the buckets that may.
    pub fn evening(
        &self,
        free: impl Fn(usize) -> bool,
        may: impl Fn(usize, usize, usize) -> bool,
    ) -> Option<(usize, usize, usize)> {
        let excess = |drive: usize| self.held[drive] as i64 - self.quota[drive] as i64;
        let drives = || (0..self.quota.len()).filter(|&drive| free(drive));
        let mut givers: Vec<usize> = drives().filter(|&drive| excess(drive) > 0).collect();
        let mut takers: Vec<usize> = drives().filter(|&drive| excess(drive) < 0).collect();
        givers.sort_by_key(|&drive| (-excess(drive), drive));
        takers.sort_by_key(|&drive| (excess(drive), drive));
        givers.iter().find_map(|&giver| {
            let cheapest = |&taker: &usize| {
                self.cheapest(giver, taker, |bucket| may(bucket, giver, taker)).map(|bucket| (bucket, giver, taker))
            };
            takers.iter().find_map(cheapest)
        })
    }

    /// The bucket whose move from `giver` to `taker` evens the pairs most.
    fn cheapest(&self, giver: usize, taker: usize, may: impl Fn(usize) -> bool) -> Option<usize> {
        (0..self.members.len())
            .filter(|&bucket| self.members[bucket].contains(&giver) && may(bucket) && self.fits(bucket, giver, taker))
            .filter(|&bucket| self.crowd(bucket, giver, taker) <= self.crowd(bucket, giver, giver))
            .min_by(|&a, &b| self.pair_cost(a, giver, taker).total_cmp(&self.pair_cost(b, giver, taker)))
    }
}
