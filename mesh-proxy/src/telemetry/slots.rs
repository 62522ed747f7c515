//! A small table that only grows, read without a lock: the outcomes seen on one series of traffic. Looking an
//! outcome up that was seen before never blocks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many series may exist in the process, and how many were refused.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
    refused: AtomicU64,
}

impl Budget {
    pub(super) const fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0), refused: AtomicU64::new(0) }
    }

    /// Whether one more may be made; a refusal is counted.
    pub(super) fn has_room(&self) -> bool {
        let room = self.used() < self.limit;
        if !room {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        room
    }

    pub(super) fn give_back(&self, series: usize) {
        self.used.fetch_sub(series, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Up to `N` outcomes with a value each, and one value for all the rest.
#[derive(Debug)]
pub(super) struct Slots<T, const N: usize> {
    slots: [OnceLock<(u64, T)>; N],
    rest: OnceLock<T>,
}

impl<T: Default, const N: usize> Slots<T, N> {
    pub(super) const fn new() -> Self {
        Self { slots: [const { OnceLock::new() }; N], rest: OnceLock::new() }
    }

    /// The value of this outcome; made when it is seen for the first time and there is room for it.
    pub(super) fn get(&self, key: u64, budget: &Budget) -> &T {
        for slot in &self.slots {
            let taken = match slot.get() {
                Some(taken) => taken,
                None if !budget.has_room() => break,
                None => slot.get_or_init(|| {
                    budget.used.fetch_add(1, Ordering::Relaxed);
                    (key, T::default())
                }),
            };
            // Another thread may have taken the slot for another outcome in between.
            if taken.0 == key {
                return &taken.1;
            }
        }
        self.rest.get_or_init(T::default)
    }

    /// Everything seen; `None` as key for the rest.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Option<u64>, &T)> {
        let slots = self.slots.iter().map_while(OnceLock::get).map(|(key, value)| (Some(*key), value));
        slots.chain(self.rest.get().map(|value| (None, value)))
    }

    /// How many of the budget this table holds.
    pub(super) fn len(&self) -> usize {
        self.slots.iter().map_while(OnceLock::get).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_then_puts_the_rest_together() {
        let (budget, slots) = (Budget::new(100), Slots::<AtomicU64, 2>::new());
        for key in [7, 8, 7, 9, 10] {
            slots.get(key, &budget).fetch_add(1, Ordering::Relaxed);
        }
        let seen: Vec<_> = slots.iter().map(|(key, n)| (key, n.load(Ordering::Relaxed))).collect();
        assert_eq!(seen, [(Some(7), 2), (Some(8), 1), (None, 2)]);
        assert_eq!((slots.len(), budget.used()), (2, 2));
    }

    #[test]
    fn keeps_to_the_budget() {
        let (budget, slots) = (Budget::new(1), Slots::<AtomicU64, 4>::new());
        slots.get(1, &budget);
        slots.get(2, &budget);
        assert_eq!((slots.len(), budget.refused()), (1, 1));
        budget.give_back(1);
        slots.get(2, &budget);
        assert_eq!(slots.len(), 2);
    }
}
