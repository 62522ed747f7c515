//! How much of one kind there may be at once: per key (an address, a pod) and in total. Whoever takes too much is
//! told which bound it met, and never takes anything from the others' share.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bounds, and what is taken of them.
#[derive(Debug)]
pub struct Limiter<K: Eq + Hash + Clone> {
    each: usize,
    total: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    total: usize,
    of: HashMap<K, usize>,
}

/// Which bound was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// That of one key.
    Each(usize),
    /// That of all together.
    Total(usize),
}

/// One, until it is dropped.
#[derive(Debug)]
pub struct Permit<K: Eq + Hash + Clone> {
    limiter: Arc<Limiter<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Limiter<K> {
    /// `each` per key, `total` for all keys together.
    pub fn new(each: usize, total: usize) -> Arc<Self> {
        Arc::new(Self { each, total, taken: Mutex::new(Taken { total: 0, of: HashMap::new() }) })
    }

    /// Takes one.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub fn take(self: &Arc<Self>, key: K) -> Result<Permit<K>, Exceeded> {
        let mut taken = self.lock();
        let mine = taken.of.get(&key).copied().unwrap_or_default();
        if mine >= self.each {
            return Err(Exceeded::Each(self.each));
        }
        if taken.total >= self.total {
            return Err(Exceeded::Total(self.total));
        }
        taken.total += 1;
        taken.of.insert(key.clone(), mine + 1);
        drop(taken);
        Ok(Permit { limiter: Arc::clone(self), key })
    }

    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut taken = self.limiter.lock();
        taken.total = taken.total.saturating_sub(1);
        match taken.of.get_mut(&self.key) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => _ = taken.of.remove(&self.key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_and_total_and_nothing_is_left_behind() {
        let limiter = Limiter::new(2, 3);
        let (one, two) = (limiter.take("a").unwrap(), limiter.take("a").unwrap());
        assert_eq!(limiter.take("a").unwrap_err(), Exceeded::Each(2));
        let three = limiter.take("b").unwrap();
        assert_eq!(limiter.take("b").unwrap_err(), Exceeded::Total(3));
        drop(one);
        let four = limiter.take("a").unwrap();
        drop((two, three, four));
        assert!(limiter.lock().of.is_empty() && limiter.lock().total == 0);
    }
}
