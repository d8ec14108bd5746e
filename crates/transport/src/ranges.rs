//! A set of numbers as sorted ranges that don't touch. Made for few ranges and additions at the end.

#[derive(Clone, Debug)]
pub struct Ranges<N>(Vec<(N, N)>);

impl<N> Default for Ranges<N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<N: Copy + Ord> Ranges<N> {
    /// Adds `start..end`, which must not be empty.
    pub fn insert(&mut self, start: N, end: N) {
        debug_assert!(start < end, "an empty range has no place in a set");
        match self.0.last_mut() {
            Some(last) if start == last.1 => last.1 = end,
            Some(last) if start < last.1 => self.insert_within(start, end),
            _ => self.0.push((start, end)),
        }
    }

    fn insert_within(&mut self, start: N, end: N) {
        // The first range that reaches `start`, and the first that begins beyond `end`.
        let from = self.0.partition_point(|range| range.1 < start);
        let to = self.0.partition_point(|range| range.0 <= end);
        let touched = self.0.get(from..to).unwrap_or_default();
        let joined = touched.iter().fold((start, end), |sum, range| (sum.0.min(range.0), sum.1.max(range.1)));
        self.0.splice(from..to, [joined]);
    }

    /// Whether inserting `start..end` would add no range: it overlaps or meets one that is there.
    pub fn touches(&self, start: N, end: N) -> bool {
        let at = self.0.partition_point(|range| range.1 < start);
        self.0.get(at).is_some_and(|range| range.0 <= end)
    }

    pub fn contains(&self, number: N) -> bool {
        let at = self.0.partition_point(|range| range.1 <= number);
        self.0.get(at).is_some_and(|range| range.0 <= number)
    }

    /// Ranges `start..end`, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (N, N)> {
        self.0.iter().copied()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Removes the lowest range.
    pub fn remove_first(&mut self) -> Option<(N, N)> {
        if self.0.is_empty() { None } else { Some(self.0.remove(0)) }
    }

    /// Whether this is exactly `start..end`.
    pub fn is_exactly(&self, start: N, end: N) -> bool {
        self.0 == [(start, end)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_plain_set() {
        let mut state = 12345_u64;
        for _ in 0..200 {
            let (mut ranges, mut plain) = (Ranges::default(), BTreeSet::new());
            for _ in 0..40 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let (start, len) = ((state >> 33) % 100, (state >> 50) % 9 + 1);
                plain.extend(start..start + len);
                let (touches, before) = (ranges.touches(start, start + len), ranges.len());
                ranges.insert(start, start + len);
                assert_eq!(touches, ranges.len() <= before);
                for n in 0..120 {
                    assert_eq!(ranges.contains(n), plain.contains(&n));
                }
                let all: Vec<_> = ranges.iter().collect();
                assert!(all.windows(2).all(|pair| pair[0].1 < pair[1].0), "{all:?}");
            }
        }
    }
}
