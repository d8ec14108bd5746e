//! Things in memory by key, up to a number of bytes. What was used since the hand last came by gets a second chance.

use std::collections::BTreeMap;

struct Slot<K, V> {
    key: K,
    value: V,
    bytes: usize,
    used: bool,
}

pub struct Cache<K, V> {
    slots: Vec<Option<Slot<K, V>>>,
    places: BTreeMap<K, usize>,
    free: Vec<usize>,
    hand: usize,
    bytes: usize,
    bytes_max: usize,
}

impl<K: Ord + Copy, V> Cache<K, V> {
    pub fn new(bytes_max: usize) -> Self {
        Self { slots: Vec::new(), places: BTreeMap::new(), free: Vec::new(), hand: 0, bytes: 0, bytes_max }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn get(&mut self, key: &K) -> Option<&V> {
        let slot = self.slots.get_mut(*self.places.get(key)?)?.as_mut()?;
        slot.used = true;
        Some(&slot.value)
    }

    /// Keeps a value of so many bytes; what is over the limit goes, itself if it alone is.
    pub fn insert(&mut self, key: K, value: V, bytes: usize) {
        self.remove(&key);
        if bytes > self.bytes_max {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            self.evict();
        }
        let slot = Some(Slot { key, value, bytes, used: false });
        let place = match self.free.pop() {
            Some(place) => {
                self.slots[place] = slot;
                place
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.places.insert(key, place);
        self.bytes += bytes;
    }

    pub fn remove(&mut self, key: &K) {
        let Some(place) = self.places.remove(key) else { return };
        if let Some(slot) = self.slots.get_mut(place).and_then(Option::take) {
            self.bytes -= slot.bytes;
            self.free.push(place);
        }
    }

    /// Moves the hand to the next value; drops it if nobody used it meanwhile.
    fn evict(&mut self) {
        self.hand = (self.hand + 1) % self.slots.len().max(1);
        let Some(Some(slot)) = self.slots.get_mut(self.hand) else { return };
        if !std::mem::take(&mut slot.used) {
            let key = slot.key;
            self.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut cache = Cache::new(100);
        for key in 0..10 {
            cache.insert(key, key * 2, 10);
        }
        for key in 10..30 {
            assert_eq!(cache.get(&3), Some(&6));
            cache.insert(key, key * 2, 10);
            assert!(cache.bytes() <= 100);
        }
        assert_eq!(cache.get(&0), None);
        cache.insert(3, 9, 30);
        assert_eq!(cache.get(&3), Some(&9));
        cache.insert(99, 0, 101);
        assert_eq!(cache.get(&99), None);
        cache.remove(&3);
        assert_eq!(cache.get(&3), None);
        assert!(cache.bytes() <= 70);
    }
}
