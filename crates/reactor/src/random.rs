/// A small seeded generator (SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
///
/// For jitter, sampling and simulation. Not for secrets.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly from `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True with this probability; what lies outside 0.0..=1.0 counts as never or always.
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits fill the mantissa of an f64 in 0.0..1.0.
        let drawn = (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        drawn < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_seed_and_stay_in_bounds() {
        let mut one = Random::new(7);
        let mut other = Random::new(7);
        for _ in 0..1000 {
            assert_eq!(one.below(10), other.below(10));
            assert!(one.below(3) < 3);
            other.below(3);
        }
        assert_eq!(one.below(0), 0);
        assert!(!one.chance(0.0));
        assert!(one.chance(1.0));
        let hits = (0..10_000).filter(|_| one.chance(0.25)).count();
        assert!((2_200..2_800).contains(&hits), "{hits}");
    }
}
