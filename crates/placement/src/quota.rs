//! How many buckets each drive should hold a shard of: in proportion to its size, as far as domains allow.

/// A drive as placement sees it. Indices, not ids, so that tables can be vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder {
    pub domain: usize,
    /// Bytes that can hold shards; 0 for a drive that must not hold any.
    pub weight: u64,
}

/// Shards for each holder: their sum is `buckets * shards`, no domain gets more than `buckets`.
///
/// The fill is equal (largest remainder) but where a domain is so large that it would hold two shards of a bucket: it is
/// in every bucket then, and the others share the rest. `None`: fewer than `shards` domains have any weight.
pub(crate) fn quotas(holders: &[Holder], domains: usize, buckets: u64, shards: u64) -> Option<Vec<u64>> {
    let mut weights = vec![0u128; domains];
    for holder in holders {
        weights[holder.domain] += u128::from(holder.weight);
    }
    let per_domain = domain_quotas(&weights, buckets, shards)?;
    let mut result = vec![0; holders.len()];
    for (domain, quota) in per_domain.iter().enumerate() {
        let of_domain: Vec<usize> = (0..holders.len()).filter(|&index| holders[index].domain == domain).collect();
        let weights: Vec<u128> = of_domain.iter().map(|&index| u128::from(holders[index].weight)).collect();
        for (index, share) in of_domain.iter().zip(largest_remainder(&weights, *quota, u64::MAX)) {
            result[*index] = share;
        }
    }
    Some(result)
}

/// Water-filling: domains beyond the limit are cut to it, the rest is shared by weight.
fn domain_quotas(weights: &[u128], buckets: u64, shards: u64) -> Option<Vec<u64>> {
    if (weights.iter().filter(|weight| **weight > 0).count() as u64) < shards {
        return None;
    }
    let mut full = vec![false; weights.len()];
    loop {
        let full_count = full.iter().filter(|full| **full).count() as u64;
        let rest = buckets * (shards - full_count);
        let rest_weight: u128 = weights.iter().zip(&full).filter(|(_, full)| !**full).map(|(weight, _)| *weight).sum();
        let over: Vec<usize> = (0..weights.len())
            .filter(|&domain| !full[domain] && weights[domain] * u128::from(rest) > u128::from(buckets) * rest_weight)
            .collect();
        if over.is_empty() {
            let open: Vec<u128> =
                weights.iter().zip(&full).map(|(weight, full)| if *full { 0 } else { *weight }).collect();
            let mut result = largest_remainder(&open, rest, buckets);
            for (quota, full) in result.iter_mut().zip(&full) {
                if *full {
                    *quota = buckets;
                }
            }
            return Some(result);
        }
        for domain in over {
            full[domain] = true;
        }
    }
}

/// Integers in proportion to `weights` with the sum `total`, none above `most`.
fn largest_remainder(weights: &[u128], total: u64, most: u64) -> Vec<u64> {
    let sum: u128 = weights.iter().sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let mut result: Vec<u64> = weights.iter().map(|weight| (weight * u128::from(total) / sum) as u64).collect();
    let mut order: Vec<usize> = (0..weights.len()).filter(|&index| weights[index] > 0).collect();
    order.sort_by_key(|&index| (core::cmp::Reverse(weights[index] * u128::from(total) % sum), index));
    let mut missing = total - result.iter().sum::<u64>();
    while missing > 0 {
        let before = missing;
        for &index in &order {
            if missing > 0 && result[index] < most {
                result[index] += 1;
                missing -= 1;
            }
        }
        assert!(missing < before, "{total} shards don't fit {} holders of at most {most}", order.len());
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_own_domain(weights: &[u64]) -> Vec<Holder> {
        weights.iter().enumerate().map(|(domain, &weight)| Holder { domain, weight }).collect()
    }

    #[test]
    fn equal_drives_share_equally() {
        let quotas = quotas(&each_own_domain(&[10; 8]), 8, 32, 6).unwrap();
        assert_eq!(quotas, vec![24; 8]);
    }

    #[test]
    fn a_large_domain_is_in_every_bucket_and_no_more() {
        let quotas = quotas(&each_own_domain(&[1000, 10, 10, 10, 10, 10, 10]), 7, 64, 6).unwrap();
        assert_eq!(quotas[0], 64);
        assert_eq!(quotas.iter().sum::<u64>(), 64 * 6);
        assert!(quotas[1..].iter().all(|quota| (53..=54).contains(quota)), "{quotas:?}");
    }

    #[test]
    fn a_domain_splits_its_share_by_size() {
        let mut holders = each_own_domain(&[30; 6]);
        holders.push(Holder { domain: 5, weight: 60 });
        let quotas = quotas(&holders, 6, 9, 6).unwrap();
        assert_eq!(quotas, vec![9, 9, 9, 9, 9, 3, 6]);
    }

    #[test]
    fn too_few_domains_have_no_quota() {
        assert_eq!(quotas(&each_own_domain(&[1, 1, 1, 0, 1, 1]), 6, 4, 6), None);
    }
}
