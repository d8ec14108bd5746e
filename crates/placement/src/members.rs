//! The members of all buckets of a new cluster: quotas met exactly, no domain twice, pairs of nodes balanced.

use crate::quota::Holder;

/// How often two nodes share a bucket, and how often they should.
pub(crate) struct Pairs {
    nodes: usize,
    count: Vec<i64>,
    /// Expected shares of (a, b) = `scale * load[a] * load[b]`.
    load: Vec<f64>,
    scale: f64,
}

impl Pairs {
    /// `load`: shards that each node holds in the end.
    pub fn new(load: &[u64], domains: usize, buckets: u64, shards: usize) -> Self {
        let nodes = load.len();
        let shards = shards as f64;
        let domains = (domains as f64).max(2.0);
        let scale = (shards - 1.0) / shards * domains / (domains - 1.0) / buckets as f64;
        Self { nodes, count: vec![0; nodes * nodes], load: load.iter().map(|load| *load as f64).collect(), scale }
    }

    pub fn add(&mut self, a: usize, b: usize, by: i64) {
        self.count[a * self.nodes + b] += by;
        self.count[b * self.nodes + a] += by;
    }

    pub fn count(&self, a: usize, b: usize) -> i64 {
        self.count[a * self.nodes + b]
    }

    /// By how much (a, b) share more buckets than they should once `done` (0..=1) of all buckets are placed.
    pub fn excess(&self, a: usize, b: usize, done: f64) -> f64 {
        self.count(a, b) as f64 - self.scale * self.load[a] * self.load[b] * done
    }
}

/// Swaps that are tried for each shard of the cluster, and in all.
const SWAPS_PER_SHARD: u64 = 24;
const SWAPS_MAX: u64 = 2_000_000;

/// For each bucket `shards` indices of holders in different domains; holder i is used `quota[i]` times.
///
/// Bucket by bucket, a greedy choice that always stays feasible: with R buckets to go the quotas left sum to R * shards and no domain has
/// more than R. A domain that has exactly R must be taken; any other choice keeps both. Swaps between buckets then even out the pairs.
pub(crate) fn assign(
    holders: &[Holder],
    node_of: &[usize],
    quota: &[u64],
    domains: usize,
    buckets: u64,
    shards: usize,
    seed: u64,
) -> Vec<Vec<usize>> {
    let nodes = node_of.iter().map(|node| node + 1).max().unwrap_or(0);
    let mut drives_of = vec![Vec::new(); nodes];
    let mut load = vec![0u64; nodes];
    let mut domain_of = vec![0; nodes];
    let mut domain_left = vec![0u64; domains];
    for (index, holder) in holders.iter().enumerate() {
        drives_of[node_of[index]].push(index);
        domain_of[node_of[index]] = holder.domain;
        load[node_of[index]] += quota[index];
        domain_left[holder.domain] += quota[index];
    }
    let mut pairs = Pairs::new(&load, domain_left.iter().filter(|left| **left > 0).count(), buckets, shards);
    let mut left = quota.to_vec();
    let mut node_left = load.clone();
    let mut result = Vec::with_capacity(buckets as usize);
    for bucket in 0..buckets {
        let remaining = buckets - bucket;
        let done = bucket as f64 / buckets as f64;
        let mut taken = vec![false; domains];
        let mut cost = vec![0.0f64; nodes];
        let mut chosen_nodes: Vec<usize> = Vec::with_capacity(shards);
        let mut chosen = Vec::with_capacity(shards);
        for _ in 0..shards {
            let must = (0..domains).any(|domain| !taken[domain] && domain_left[domain] == remaining);
            let mut best: Option<(f64, usize)> = None;
            for node in 0..nodes {
                let domain = domain_of[node];
                if taken[domain] || node_left[node] == 0 || (must && domain_left[domain] != remaining) {
                    continue;
                }
                let lag = node_left[node] as f64 - load[node] as f64 * (1.0 - done);
                let score = cost[node] - lag;
                if best.is_none_or(|(lowest, _)| score < lowest) {
                    best = Some((score, node));
                }
            }
            let Some((_, node)) = best else { unreachable!("quotas don't fill bucket {bucket}") };
            let drive = drives_of[node]
                .iter()
                .copied()
                .filter(|&drive| left[drive] > 0)
                .max_by_key(|&drive| (u128::from(left[drive]) << 64) / u128::from(quota[drive]))
                .unwrap_or_else(|| unreachable!("node {node} has a quota left and none of its drives has"));
            taken[domain_of[node]] = true;
            for (other, cost) in cost.iter_mut().enumerate().filter(|(other, _)| *other != node) {
                *cost += pairs.excess(other, node, done);
            }
            left[drive] -= 1;
            node_left[node] -= 1;
            chosen_nodes.push(node);
            chosen.push(drive);
        }
        for domain in (0..domains).filter(|domain| taken[*domain]) {
            domain_left[domain] -= 1;
        }
        for (position, &a) in chosen_nodes.iter().enumerate() {
            for &b in &chosen_nodes[..position] {
                pairs.add(a, b, 1);
            }
        }
        result.push(chosen);
    }
    even_out(&mut result, holders, node_of, &mut pairs, seed);
    result
}

/// A small generator, so that swaps are tried all over the table and the same way each time.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) % bound as u64) as usize
    }
}

/// Exchanges members between two buckets where that brings pairs of nodes closer to their expected number. Fill stays as it is.
fn even_out(buckets: &mut [Vec<usize>], holders: &[Holder], node_of: &[usize], pairs: &mut Pairs, seed: u64) {
    let Some(shards) = buckets.first().map(Vec::len) else { return };
    let domains = holders.iter().filter(|holder| holder.weight > 0).map(|holder| holder.domain).max().unwrap_or(0) + 1;
    if buckets.len() < 2 || domains == shards {
        return;
    }
    let mut random = SplitMix(seed);
    let tries = (buckets.len() as u64 * shards as u64 * SWAPS_PER_SHARD).min(SWAPS_MAX);
    for _ in 0..tries {
        let (one, two) = (random.below(buckets.len()), random.below(buckets.len()));
        let (i, j) = (random.below(shards), random.below(shards));
        let (x, y) = (buckets[one][i], buckets[two][j]);
        let (node_x, node_y) = (node_of[x], node_of[y]);
        if one == two || node_x == node_y {
            continue;
        }
        let clash = |bucket: &[usize], at: usize, new: usize| {
            bucket.iter().enumerate().any(|(k, &other)| k != at && holders[other].domain == holders[new].domain)
        };
        if clash(&buckets[one], i, y) || clash(&buckets[two], j, x) {
            continue;
        }
        // The change of the sum of squared excesses, halved: a pair that gains costs e + 1/2, one that loses brings e - 1/2.
        let mut gain = 0.0;
        for &other in buckets[one].iter().filter(|&&other| other != x) {
            gain += pairs.excess(node_y, node_of[other], 1.0) - pairs.excess(node_x, node_of[other], 1.0) + 1.0;
        }
        for &other in buckets[two].iter().filter(|&&other| other != y) {
            gain += pairs.excess(node_x, node_of[other], 1.0) - pairs.excess(node_y, node_of[other], 1.0) + 1.0;
        }
        if gain >= 0.0 {
            continue;
        }
        for k in (0..shards).filter(|&k| k != i) {
            let other = node_of[buckets[one][k]];
            pairs.add(node_x, other, -1);
            pairs.add(node_y, other, 1);
        }
        for k in (0..shards).filter(|&k| k != j) {
            let other = node_of[buckets[two][k]];
            pairs.add(node_y, other, -1);
            pairs.add(node_x, other, 1);
        }
        buckets[one][i] = y;
        buckets[two][j] = x;
    }
}
