//! Whether staying awake for what comes next has paid lately.

/// What one wait weighs: the newest counts an eighth, the one before seven eighths of that, and so on.
const WEIGHT: u16 = 8;
const ALWAYS: u16 = 1 << 12;
/// Waits that must be short for spinning to cost less than sleeping. A wait in vain costs the whole spin, and on a
/// machine with more threads than processors it keeps the one from running that would end it.
const PAYS_FROM: u16 = ALWAYS / 4 * 3;

/// The share of waits that were shorter than a spin.
#[derive(Debug, Default)]
pub(crate) struct SpinHabit {
    /// Of `ALWAYS`.
    short: u16,
}

impl SpinHabit {
    /// A wait ended, after less than a spin or not.
    pub(crate) fn note(&mut self, short: bool) {
        let newest = if short { ALWAYS } else { 0 };
        self.short = self.short - self.short / WEIGHT + newest / WEIGHT;
    }

    pub(crate) fn pays(&self) -> bool {
        self.short >= PAYS_FROM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_what_happens() {
        let mut habit = SpinHabit::default();
        assert!(!habit.pays());
        (0..32).for_each(|_| habit.note(true));
        assert!(habit.pays());
        habit.note(false);
        assert!(habit.pays(), "one exception changes nothing");
        (0..4).for_each(|_| habit.note(false));
        assert!(!habit.pays());
        (0..1000).for_each(|number| habit.note(number % 2 == 0));
        assert!(!habit.pays(), "every second one is not enough");
    }

    #[test]
    fn stays_in_its_range() {
        let mut habit = SpinHabit::default();
        (0..10_000).for_each(|_| habit.note(true));
        assert!(habit.short <= ALWAYS, "{habit:?}");
    }
}
