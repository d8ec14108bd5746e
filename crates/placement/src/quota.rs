//! How many buckets each drive should hold a shard of: in proportion to its size, as far as domains allow. See [`crate::folded`] for what happens when there are too few.

/// A drive as placement sees it. Indices, not ids, so that tables can be vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder {
    pub domain: usize,
    /// Bytes that can hold shards; 0 for a drive that must not hold any.
    pub weight: u64,
}

/// Who goes before whom: who holds more already, so that nothing moves without need (the sign is turned), then who has less to
/// do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(pub i64, pub u64);

/// Shards for each holder: their sum is `buckets * shards`, no domain gets more than `per_domain` of a bucket's, no holder
/// more than one.
///
/// Of equal claims to what doesn't divide, the lower rank comes first: `ranks` has one for each holder.
///
/// The fill is equal (largest remainder) but where a domain is so large that it would hold more of a bucket: it is in every
/// bucket as often as it may, and the others share the rest. `None`: the domains can't hold so much.
pub(crate) fn quotas(
    holders: &[Holder],
    ranks: &[Rank],
    domains: usize,
    buckets: u64,
    shards: u64,
    per_domain: u64,
) -> Option<Vec<u64>> {
    let mut weights = vec![0u128; domains];
    let mut most = vec![0u64; domains];
    let mut domain_ranks = vec![Rank::default(); domains];
    for (holder, rank) in holders.iter().zip(ranks).filter(|(holder, _)| holder.weight > 0) {
        domain_ranks[holder.domain].0 += rank.0;
        domain_ranks[holder.domain].1 += rank.1;
        weights[holder.domain] += u128::from(holder.weight);
        most[holder.domain] = (most[holder.domain] + buckets).min(per_domain * buckets);
    }
    if most.iter().sum::<u64>() < buckets * shards {
        return None;
    }
    let mut result = vec![0; holders.len()];
    for (domain, quota) in fill(&weights, &most, &domain_ranks, buckets * shards).into_iter().enumerate() {
        let of_domain: Vec<usize> = (0..holders.len()).filter(|&index| holders[index].domain == domain).collect();
        let weights: Vec<u128> = of_domain.iter().map(|&index| u128::from(holders[index].weight)).collect();
        let ranks: Vec<Rank> = of_domain.iter().map(|&index| ranks[index]).collect();
        for (index, share) in of_domain.iter().zip(fill(&weights, &vec![buckets; weights.len()], &ranks, quota)) {
            result[*index] = share;
        }
    }
    Some(result)
}

/// Water-filling: those beyond their limit are cut to it, the rest is shared by weight.
fn fill(weights: &[u128], most: &[u64], ranks: &[Rank], total: u64) -> Vec<u64> {
    let mut full = vec![false; weights.len()];
    loop {
        let taken: u64 = most.iter().zip(&full).filter(|(_, full)| **full).map(|(most, _)| *most).sum();
        let rest = total - taken;
        let open: Vec<u128> = weights.iter().zip(&full).map(|(weight, full)| if *full { 0 } else { *weight }).collect();
        let rest_weight: u128 = open.iter().sum();
        let over: Vec<usize> = (0..weights.len())
            .filter(|&index| open[index] * u128::from(rest) > u128::from(most[index]) * rest_weight)
            .collect();
        if over.is_empty() {
            let mut result = largest_remainder(&open, rest, most, ranks);
            for index in (0..full.len()).filter(|&index| full[index]) {
                result[index] = most[index];
            }
            return result;
        }
        for index in over {
            full[index] = true;
        }
    }
}

/// Integers in proportion to `weights` with the sum `total`, none above its `most`.
fn largest_remainder(weights: &[u128], total: u64, most: &[u64], ranks: &[Rank]) -> Vec<u64> {
    let sum: u128 = weights.iter().sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let mut result: Vec<u64> = weights.iter().map(|weight| (weight * u128::from(total) / sum) as u64).collect();
    let mut order: Vec<usize> = (0..weights.len()).filter(|&index| weights[index] > 0).collect();
    order.sort_by_key(|&index| (core::cmp::Reverse(weights[index] * u128::from(total) % sum), ranks[index], index));
    let mut missing = total - result.iter().sum::<u64>();
    while missing > 0 {
        let before = missing;
        for &index in &order {
            if missing > 0 && result[index] < most[index] {
                result[index] += 1;
                missing -= 1;
            }
        }
        assert!(missing < before, "{total} shards don't fit {} holders of at most {most:?}", order.len());
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(holders: &[Holder], domains: usize, buckets: u64, shards: u64, per_domain: u64) -> Option<Vec<u64>> {
        super::quotas(holders, &vec![Rank::default(); holders.len()], domains, buckets, shards, per_domain)
    }

    fn each_own_domain(weights: &[u64]) -> Vec<Holder> {
        weights.iter().enumerate().map(|(domain, &weight)| Holder { domain, weight }).collect()
    }

    #[test]
    fn equal_drives_share_equally() {
        let quotas = quotas(&each_own_domain(&[10; 8]), 8, 32, 6, 1).unwrap();
        assert_eq!(quotas, vec![24; 8]);
    }

    #[test]
    fn a_large_domain_is_in_every_bucket_and_no_more() {
        let quotas = quotas(&each_own_domain(&[1000, 10, 10, 10, 10, 10, 10]), 7, 64, 6, 1).unwrap();
        assert_eq!(quotas[0], 64);
        assert_eq!(quotas.iter().sum::<u64>(), 64 * 6);
        assert!(quotas[1..].iter().all(|quota| (53..=54).contains(quota)), "{quotas:?}");
    }

    #[test]
    fn a_domain_splits_its_share_by_size() {
        let mut holders = each_own_domain(&[30; 6]);
        holders.push(Holder { domain: 5, weight: 60 });
        let quotas = quotas(&holders, 6, 9, 6, 1).unwrap();
        assert_eq!(quotas, vec![9, 9, 9, 9, 9, 3, 6]);
    }

    #[test]
    fn what_does_not_divide_stays_with_who_has_it_or_goes_to_who_has_least_to_do() {
        let ranks = [Rank(-2, 5), Rank(-2, 3), Rank(-3, 9), Rank(-2, 4)];
        let shares = super::quotas(&each_own_domain(&[10; 4]), &ranks, 4, 5, 2, 1).unwrap();
        assert_eq!(shares, vec![2, 3, 3, 2]);
    }

    #[test]
    fn too_few_domains_have_no_quota() {
        assert_eq!(quotas(&each_own_domain(&[1, 1, 1, 0, 1, 1]), 6, 4, 6, 1), None);
    }

    #[test]
    fn two_of_a_bucket_in_a_domain_need_two_drives_there() {
        let holders: Vec<Holder> = (0..10).map(|drive| Holder { domain: drive / 2, weight: 1 }).collect();
        assert_eq!(quotas(&holders, 5, 10, 6, 1), None);
        assert_eq!(quotas(&holders, 5, 10, 6, 2).unwrap(), vec![6; 10]);
        assert_eq!(quotas(&each_own_domain(&[1; 5]), 5, 4, 6, 2), None, "a drive has one at most");
        let mut few = each_own_domain(&[1; 5]);
        few.push(Holder { domain: 4, weight: 1 });
        assert_eq!(quotas(&few, 5, 4, 6, 2).unwrap(), vec![4; 6]);
    }
}
