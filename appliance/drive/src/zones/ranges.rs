//! A set of blocks, as ranges: shards are appended, so that one or a few ranges describe a zone.

use std::collections::BTreeMap;

/// Half-open ranges that neither touch nor overlap.
#[derive(Debug, Default)]
pub struct Ranges {
    /// Start to end.
    ranges: BTreeMap<u32, u32>,
}

impl Ranges {
    pub fn end(&self) -> u32 {
        self.ranges.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// Whether any block of it is in the set.
    pub fn touches(&self, (from, to): (u32, u32)) -> bool {
        self.ranges.range(..to).next_back().is_some_and(|(_, end)| *end > from)
    }

    /// Whether all blocks of it are in the set.
    pub fn covers(&self, (from, to): (u32, u32)) -> bool {
        self.ranges.range(..=from).next_back().is_some_and(|(_, end)| *end >= to)
    }

    /// Adds a range of which nothing is in the set.
    pub fn add(&mut self, (mut from, mut to): (u32, u32)) {
        if let Some((start, end)) = self.ranges.range(..=from).next_back()
            && *end == from
        {
            from = *start;
        }
        if let Some(end) = self.ranges.remove(&to) {
            to = end;
        }
        self.ranges.insert(from, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge() {
        let mut ranges = Ranges::default();
        ranges.add((0, 4));
        ranges.add((8, 12));
        assert!(ranges.covers((1, 4)) && !ranges.covers((3, 5)) && ranges.touches((3, 5)) && !ranges.touches((4, 8)));
        ranges.add((4, 8));
        assert!(ranges.covers((0, 12)));
        assert_eq!((ranges.ranges.len(), ranges.end()), (1, 12));
    }
}
