//! How many connections there may be: of one address, and in total. Whoever takes too many never takes them from
//! others' share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bounds, and what is taken of them.
#[derive(Debug)]
pub struct Places {
    each: usize,
    total: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    /// `each` per address, `total` for all together.
    pub fn new(each: usize, total: usize) -> Arc<Self> {
        Arc::new(Self { each, total, taken: Mutex::default() })
    }

    /// Takes one; `None` when there are as many as there may be.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.lock();
        let mine = taken.get(&address).copied().unwrap_or_default();
        if mine >= self.each || taken.values().sum::<usize>() >= self.total {
            return None;
        }
        taken.insert(address, mine + 1);
        drop(taken);
        Some(Place { places: Arc::clone(self), address })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        match taken.get_mut(&self.address) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => _ = taken.remove(&self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_and_total_and_nothing_is_left_behind() {
        let places = Places::new(2, 3);
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|it| it.parse::<IpAddr>().unwrap());
        let (one, two) = (places.take(a).unwrap(), places.take(a).unwrap());
        assert!(places.take(a).is_none());
        let three = places.take(b).unwrap();
        assert!(places.take(b).is_none());
        drop(one);
        let four = places.take(a).unwrap();
        drop((two, three, four));
        assert!(places.lock().is_empty());
    }
}
