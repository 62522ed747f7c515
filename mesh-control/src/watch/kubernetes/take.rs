//! Takes events into the model, many in one commit, and keeps account of what the model did not take. It must never say
//! that everything is known while a kind was not read, or while nobody knows what settings are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::process::Condition;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::resource::MESH_CONFIG;
use crate::api::{InvalidObject, Kind, ObjectId};
use crate::ingest::{Event, ingest};
use crate::model::store::{ConfigError, SharedModel};

/// How long a first event waits for those that belong to it.
const GATHER: Duration = Duration::from_millis(5);

/// Takes events.
pub(super) struct Taker {
    model: SharedModel,
    /// How people find the settings.
    settings: String,
    /// Kinds that were not read completely yet.
    waiting: Vec<(Kind, Arc<Condition>)>,
    complete: BTreeSet<Kind>,
    refused: BTreeMap<ObjectId, Vec<InvalidObject>>,
}

impl Taker {
    pub(super) fn new(model: SharedModel, namespace: &str, waiting: Vec<(Kind, Arc<Condition>)>) -> Self {
        let settings = format!("ConfigMap {namespace}/{MESH_CONFIG}");
        Self { model, settings, waiting, complete: BTreeSet::new(), refused: BTreeMap::new() }
    }

    /// Takes events until nobody sends any more.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut batch = Vec::new();
        while events.recv_many(&mut batch, super::QUEUE).await > 0 {
            if batch.len() < super::QUEUE {
                sleep(GATHER).await;
                while batch.len() < super::QUEUE
                    && let Ok(event) = events.try_recv()
                {
                    batch.push(event);
                }
            }
            self.take(&batch);
            batch.clear();
        }
    }

    fn take(&mut self, batch: &[Event]) {
        let before = self.refused.clone();
        let refused = &mut self.refused;
        let facts = self.model.update(|mesh| {
            for event in batch {
                match event {
                    Event::Apply(id, _) | Event::Refuse(id, ..) | Event::Delete(id) => {
                        refused.remove(id);
                    }
                    Event::Retain(kind, names) => {
                        refused.retain(|id, _| id.kind != *kind || names.contains(id));
                    }
                    Event::Reset(kind, _) => refused.retain(|id, _| id.kind != *kind),
                }
                for (id, error) in ingest(mesh, event).err().unwrap_or_default() {
                    refused.entry(id).or_default().push(error);
                }
            }
        });
        tracing::debug!(events = batch.len(), facts = facts.len(), "took changes of the cluster");
        if before != self.refused {
            self.complain(&before);
        }
        let complete = batch.iter().filter_map(|event| match event {
            Event::Retain(kind, _) | Event::Reset(kind, _) => Some(*kind),
            Event::Apply(..) | Event::Refuse(..) | Event::Delete(_) => None,
        });
        self.complete.extend(complete);
        self.meet();
    }

    /// Tells what is wrong now.
    fn complain(&self, before: &BTreeMap<ObjectId, Vec<InvalidObject>>) {
        let errors = self.refused.iter().flat_map(|(id, errors)| {
            let object = self.name(id);
            errors.iter().map(move |error| ConfigError {
                file: object.clone(),
                line: 0,
                reason: format!("{error}; {}", in_force(id.kind)),
            })
        });
        self.model.set_config_errors(errors.collect());
        for (id, errors) in self.refused.iter().filter(|(id, errors)| before.get(id) != Some(errors)) {
            let reasons: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let (object, reason) = (self.name(id), reasons.join("; "));
            match id.kind {
                Kind::MeshConfig => tracing::error!(object, reason, "the mesh's settings cannot be used"),
                _ => tracing::warn!(object, reason, "an object cannot be used as it is written"),
            }
        }
        for id in before.keys().filter(|id| !self.refused.contains_key(id)) {
            tracing::info!(object = self.name(id), "an object that could not be used was mended or removed");
        }
    }

    /// Meets the conditions of kinds that are known now.
    fn meet(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let (complete, refused) = (&self.complete, &self.refused);
        let settings = &self.settings;
        self.waiting.retain(|(kind, condition)| {
            let broken = refused.get(&ObjectId::mesh_config()).filter(|_| *kind == Kind::MeshConfig);
            match broken {
                Some(errors) => {
                    let first = errors.first().map(ToString::to_string).unwrap_or_default();
                    condition.because(&format!("{settings} was never good: {first}; mend or remove it"));
                    true
                }
                None if complete.contains(kind) => {
                    condition.met();
                    false
                }
                None => true,
            }
        });
        if self.waiting.is_empty() {
            self.model.set_synced();
        }
    }

    fn name(&self, id: &ObjectId) -> String {
        match id.kind {
            Kind::MeshConfig => self.settings.clone(),
            _ => id.to_string(),
        }
    }
}

/// What holds while an object cannot be used.
fn in_force(kind: Kind) -> &'static str {
    match kind {
        Kind::HttpRoute => "what it concerns is answered with 500 until it is mended",
        Kind::PeerAuthentication => "its last good form stays in force, or STRICT if there was none",
        _ => "its last good form stays in force",
    }
}
