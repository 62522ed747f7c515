//! Whatever a client does: once all is answered, it holds what there is, and memory stayed within bounds.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::time::Instant;

use super::super::cache::Answer;
use super::super::delta::{DeltaRequest, DeltaResponse, DeltaState, Limits};
use super::delta::{found, version};
use super::*;

const LIMITS: Limits = Limits {
    names: 6,
    name_bytes: 1000,
    name_length: 100,
    response_resources: 2,
    response_bytes: 25,
    nack_bytes: 10,
    removal_grace: std::time::Duration::ZERO,
};

#[derive(Debug, Clone)]
enum Step {
    Subscribe(Vec<u8>),
    Unsubscribe(Vec<u8>),
    Change(u8, Option<u32>),
    Send,
    Answer { nack: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(0..8_u8, 0..4);
    prop_oneof![
        some().prop_map(Step::Subscribe),
        some().prop_map(Step::Unsubscribe),
        (0..8_u8, prop::option::of(1..5_u32)).prop_map(|(name, version)| Step::Change(name, version)),
        Just(Step::Send),
        any::<bool>().prop_map(|nack| Step::Answer { nack }),
    ]
}

/// The client's side, as the protocol describes it.
#[derive(Default)]
struct Model {
    subscribed: BTreeMap<String, Option<Version>>,
    unanswered: Option<DeltaResponse>,
    world: BTreeMap<String, u32>,
}

type Version = super::super::recorder::Version;

impl Model {
    fn take(&mut self, response: DeltaResponse) {
        assert!(response.resources.len() + response.removed.len() <= LIMITS.response_resources);
        for (name, resource) in &response.resources {
            if let Some(held) = self.subscribed.get_mut(&**name) {
                *held = Some(resource.version);
            }
        }
        for name in &response.removed {
            if let Some(held) = self.subscribed.get_mut(&**name) {
                *held = None;
            }
        }
        assert!(
            self.unanswered.replace(response).is_none(),
            "a second response before the first was answered"
        );
    }
}

fn send(state: &mut DeltaState, model: &mut Model) -> bool {
    let world = &model.world;
    let answer = |name: &str| world.get(name).map_or(Answer::Missing, |number| found(*number));
    match state.next_response(Instant::now(), |(_, name)| Some(answer(name))) {
        Some(response) => {
            model.take(response);
            true
        }
        None => false,
    }
}

fn answer(state: &mut DeltaState, model: &mut Model, nack: bool) {
    let Some(response) = model.unanswered.take() else { return };
    let error = nack.then(|| "no".to_owned());
    let request = DeltaRequest { nonce: response.nonce, error, ..DeltaRequest::default() };
    assert!(state.request(ResourceType::Endpoints, request).is_ok());
}

proptest! {
    #[test]
    fn the_client_ends_with_what_there_is(steps in prop::collection::vec(step(), 0..60)) {
        let (mut state, mut model) = (DeltaState::new(LIMITS, false), Model::default());
        for step in steps {
            match step {
                Step::Subscribe(of) => {
                    let subscribe: Vec<String> = of.iter().map(|n| format!("n{n}")).collect();
                    let request = DeltaRequest { subscribe: subscribe.clone(), ..DeltaRequest::default() };
                    if state.request(ResourceType::Endpoints, request).is_err() {
                        // The stream ends here; the story too.
                        let all: std::collections::BTreeSet<_> =
                            model.subscribed.keys().cloned().chain(subscribe).collect();
                        prop_assert!(all.len() > LIMITS.names);
                        return Ok(());
                    }
                    for name in subscribe {
                        model.subscribed.entry(name).or_default();
                    }
                }
                Step::Unsubscribe(of) => {
                    let unsubscribe: Vec<String> = of.iter().map(|n| format!("n{n}")).collect();
                    for name in &unsubscribe {
                        model.subscribed.remove(name);
                    }
                    let request = DeltaRequest { unsubscribe, ..DeltaRequest::default() };
                    prop_assert!(state.request(ResourceType::Endpoints, request).is_ok());
                }
                Step::Change(name, now) => {
                    let name = format!("n{name}");
                    match now {
                        Some(number) => _ = model.world.insert(name.clone(), number),
                        None => _ = model.world.remove(&name),
                    }
                    state.changed(&(ResourceType::Endpoints, name.as_str().into()));
                }
                Step::Send => _ = send(&mut state, &mut model),
                Step::Answer { nack } => answer(&mut state, &mut model, nack),
            }
        }
        // Everything is answered, and nothing more is said.
        let mut rounds = 0;
        loop {
            answer(&mut state, &mut model, false);
            if !send(&mut state, &mut model) {
                break;
            }
            rounds += 1;
            prop_assert!(rounds < 20);
        }
        for (name, held) in &model.subscribed {
            prop_assert_eq!(*held, model.world.get(name).map(|number| version(*number)), "{}", name);
        }
        prop_assert_eq!(state.subscriptions().count(), model.subscribed.len());
        prop_assert!(state.waiting_since().is_none());
    }
}
