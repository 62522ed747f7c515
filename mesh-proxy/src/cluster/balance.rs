//! Which endpoint gets a request: the less busy of two taken at random (power of two choices). Pure but for the
//! random source that is passed in.

use std::rc::Rc;

use rand::Rng;

use super::EndpointState;

/// The endpoint for a request, not one of `excluded`.
pub fn pick(
    endpoints: &[Rc<EndpointState>],
    excluded: &[Rc<EndpointState>],
    random: &mut impl Rng,
) -> Option<Rc<EndpointState>> {
    let candidates: Vec<&Rc<EndpointState>>;
    let endpoints: &[&Rc<EndpointState>] = if excluded.is_empty() {
        match endpoints {
            [] => return None,
            [only] => return Some(Rc::clone(only)),
            _ if equal_weights(endpoints) => {
                let (a, b) = two(endpoints.len(), random);
                return Some(Rc::clone(less_busy(&endpoints[a], &endpoints[b])));
            }
            _ => {
                candidates = endpoints.iter().collect();
                &candidates
            }
        }
    } else {
        candidates = endpoints.iter().filter(|e| !excluded.iter().any(|x| Rc::ptr_eq(x, e))).collect();
        &candidates
    };
    let a = weighted(endpoints, random)?;
    let b = weighted(endpoints, random)?;
    Some(Rc::clone(less_busy(a, b)))
}

fn equal_weights(endpoints: &[Rc<EndpointState>]) -> bool {
    endpoints.iter().all(|endpoint| endpoint.weight() == endpoints[0].weight())
}

/// Two different numbers below `length`, which is at least 2.
fn two(length: usize, random: &mut impl Rng) -> (usize, usize) {
    let a = random.random_range(0..length);
    let b = random.random_range(0..length - 1);
    (a, if b >= a { b + 1 } else { b })
}

/// One by its weight.
fn weighted<'a>(endpoints: &[&'a Rc<EndpointState>], random: &mut impl Rng) -> Option<&'a Rc<EndpointState>> {
    let total: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight())).sum();
    if total == 0 {
        return None;
    }
    let mut point = random.random_range(0..total);
    endpoints.iter().copied().find(|endpoint| match point.checked_sub(u64::from(endpoint.weight())) {
        Some(rest) => {
            point = rest;
            false
        }
        None => true,
    })
}

fn less_busy<'a>(a: &'a Rc<EndpointState>, b: &'a Rc<EndpointState>) -> &'a Rc<EndpointState> {
    // Busy in proportion to what it can take. Idle ones are equal: the weight counted when they were taken.
    let load = |x: &EndpointState, y: &EndpointState| u64::from(x.in_flight()) * u64::from(y.weight());
    if load(b, a) < load(a, b) { b } else { a }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn endpoints(weights: &[u32]) -> Vec<Rc<EndpointState>> {
        weights
            .iter()
            .enumerate()
            .map(|(index, weight)| {
                let address = format!("10.0.0.{}:80", index + 1).parse().unwrap();
                let state = EndpointState::new(super::super::plain(address));
                state.set_weight(*weight);
                Rc::new(state)
            })
            .collect()
    }

    fn shares(endpoints: &[Rc<EndpointState>], excluded: &[Rc<EndpointState>]) -> HashMap<String, u32> {
        let mut random = StdRng::seed_from_u64(7);
        let mut shares = HashMap::new();
        for _ in 0..10_000 {
            let picked = pick(endpoints, excluded, &mut random).unwrap();
            *shares.entry(picked.endpoint.address.to_string()).or_default() += 1;
        }
        shares
    }

    #[test]
    fn idle_endpoints_share_evenly_and_busy_ones_get_less() {
        let three = endpoints(&[1, 1, 1]);
        assert!(shares(&three, &[]).values().all(|share| (3000..3700).contains(share)));
        let _busy: Vec<_> = (0..10).map(|_| three[0].enter()).collect();
        let shares = shares(&three, &[]);
        assert!(!shares.contains_key("10.0.0.1:80"), "of two, the less busy one: {shares:?}");
    }

    #[test]
    fn weights_count() {
        let shares = shares(&endpoints(&[1, 9]), &[]);
        assert!((8500..9500).contains(&shares["10.0.0.2:80"]), "{shares:?}");
    }

    #[test]
    fn tried_ones_are_left_out() {
        let two = endpoints(&[1, 1]);
        assert_eq!(shares(&two, &two[..1]).len(), 1);
        assert!(pick(&two, &two, &mut StdRng::seed_from_u64(1)).is_none());
        assert!(pick(&[], &[], &mut StdRng::seed_from_u64(1)).is_none());
    }
}
