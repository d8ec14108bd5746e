//! Which members hold a bucket's journal: the leader's own drive first, the others so that all drives carry about the same.

/// For each bucket `size` of its members. `own[bucket]`: the member that its leader's core owns.
/// `weight[drive]` is how much a drive should carry, relative to others.
pub(crate) fn choose(members: &[Vec<usize>], own: &[Option<usize>], weight: &[u64], size: usize) -> Vec<Vec<usize>> {
    let mut load = vec![0u64; weight.len()];
    let mut result: Vec<Vec<usize>> = members
        .iter()
        .zip(own)
        .map(|(members, own)| {
            let chosen = one(members, *own, &load, weight, size);
            chosen.iter().for_each(|&drive| load[drive] += 1);
            chosen
        })
        .collect();
    // Early choices did not know the later ones: hand slots on while that evens the load.
    loop {
        let mut moved = false;
        for (bucket, chosen) in result.iter_mut().enumerate() {
            let Some(slot) = (0..chosen.len())
                .filter(|&slot| Some(chosen[slot]) != own[bucket])
                .max_by_key(|&slot| filled(load[chosen[slot]], weight[chosen[slot]]))
            else {
                continue;
            };
            let from = chosen[slot];
            let to = members[bucket]
                .iter()
                .copied()
                .filter(|drive| !chosen.contains(drive))
                .min_by_key(|&drive| filled(load[drive] + 1, weight[drive]));
            if let Some(to) = to
                && filled(load[to] + 1, weight[to]) < filled(load[from], weight[from])
            {
                chosen[slot] = to;
                load[from] -= 1;
                load[to] += 1;
                moved = true;
            }
        }
        if !moved {
            return result;
        }
    }
}

/// `size` of `members` with the least load; `kept` are taken first.
pub(crate) fn one(
    members: &[usize],
    kept: impl IntoIterator<Item = usize>,
    load: &[u64],
    weight: &[u64],
    size: usize,
) -> Vec<usize> {
    let mut chosen: Vec<usize> = kept.into_iter().collect();
    while chosen.len() < size {
        let next = members
            .iter()
            .copied()
            .filter(|drive| !chosen.contains(drive))
            .min_by_key(|&drive| filled(load[drive] + 1, weight[drive]));
        match next {
            Some(drive) => chosen.push(drive),
            None => break,
        }
    }
    chosen
}

/// A drive's load relative to its weight, as an integer that compares.
fn filled(load: u64, weight: u64) -> u128 {
    (u128::from(load) << 64) / u128::from(weight.max(1))
}
