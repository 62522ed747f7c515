//! The last configuration, kept in a file of the state folder: a proxy that was killed serves again at once,
//! with the control plane away too. Written beside the stream, never by it; at the next start it is taken in as
//! if it had just been received. It must never make anything worse: what cannot be read is left alone.

pub mod format;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::service::discovery::v3 as pb;
use mesh_common::xds::protobuf::Any;
use prost::Message as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::state_dir;

/// Name of the file.
const FILE: &str = "configuration.kept";
/// The largest file that is written. What a proxy holds is what its pod calls: this is far beyond it.
const BOUND: usize = 32 << 20;
/// More than the bound: headers, and the messages around the resources.
const READ_BOUND: u64 = 48 << 20;
/// News that come together are written together.
const GATHER: Duration = Duration::from_millis(200);
/// The least time between two writes is this, or so many times as long as the last one took.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_FACTOR: u32 = 20;

/// What is known of one name.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its type.
    pub kind: ResourceType,
    /// The name.
    pub name: Arc<str>,
    /// The resource as it was received; `None`: there is none of this name.
    pub resource: Option<Arc<pb::Resource>>,
}

impl Kept {
    fn size(&self) -> usize {
        // A tag and a length go before each.
        8 + self.resource.as_ref().map_or(self.name.len(), |resource| resource.encoded_len())
    }
}

type Book = BTreeMap<(ResourceType, Arc<str>), Option<Arc<pb::Resource>>>;

/// What is held at this moment, and the file it is kept in. The stream writes into it; [`Keeper::run`] writes it
/// to the file.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    node: Node,
    // Taken by the control thread only, for as long as it takes to copy pointers.
    book: Mutex<Book>,
    changed: Notify,
}

impl Keeper {
    /// For the file in this folder.
    pub(super) fn new(dir: &Path, node: Node) -> Arc<Self> {
        Arc::new(Self { path: dir.join(FILE), node, book: Mutex::default(), changed: Notify::new() })
    }

    /// What an earlier run has kept. A file that cannot be used is left alone and named in the log.
    pub(super) fn load(&self) -> Vec<pb::DeltaDiscoveryResponse> {
        let file = self.path.display();
        let bytes = match state_dir::read(&self.path, READ_BOUND) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Vec::new(),
            Err(error) => {
                tracing::warn!(%file, %error, "kept configuration cannot be read; it is asked for anew");
                return Vec::new();
            }
        };
        match format::decode(&bytes, &self.node) {
            Ok(kept) => kept,
            Err(reason @ format::Unusable::OtherNode { .. }) => {
                tracing::info!(%file, %reason, "kept configuration is not used");
                Vec::new()
            }
            Err(reason) => {
                tracing::warn!(%file, %reason, "kept configuration is broken; it is asked for anew");
                Vec::new()
            }
        }
    }

    /// A resource is in use.
    pub(super) fn put(&self, kind: ResourceType, name: &Arc<str>, version: &str, any: Any) {
        let resource = pb::Resource {
            name: name.to_string(),
            version: version.to_owned(),
            resource: Some(any),
            ..Default::default()
        };
        self.note(kind, name, Some(Arc::new(resource)));
    }

    /// There is none of this name.
    pub(super) fn missing(&self, kind: ResourceType, name: &Arc<str>) {
        self.note(kind, name, None);
    }

    /// The name is not asked for any more.
    pub(super) fn forget(&self, kind: ResourceType, name: &str) {
        if self.book().remove(&(kind, Arc::from(name))).is_some() {
            self.changed.notify_one();
        }
    }

    fn note(&self, kind: ResourceType, name: &Arc<str>, resource: Option<Arc<pb::Resource>>) {
        self.book().insert((kind, Arc::clone(name)), resource);
        self.changed.notify_one();
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what changed, for ever. May be dropped at any time.
    pub(super) async fn run(self: Arc<Self>) {
        let mut complained = false;
        loop {
            self.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            let (started, keeper) = (Instant::now(), Arc::clone(&self));
            // Off the control thread: the file may be large, and its disk slow.
            let written = tokio::task::spawn_blocking(move || keeper.write()).await;
            let file = self.path.display();
            match written {
                Ok(Ok(0)) => complained = false,
                Ok(Ok(left_out)) if !complained => {
                    complained = true;
                    tracing::warn!(%file, left_out, "not all configuration is kept: there is too much of it");
                }
                Ok(Err(error)) if !complained => {
                    complained = true;
                    tracing::warn!(%file, %error, "configuration cannot be kept for the next start");
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "the task that keeps configuration broke"),
            }
            tokio::time::sleep(PAUSE.max(started.elapsed() * PAUSE_FACTOR)).await;
        }
    }

    /// Writes the file. Returns how many resources were left out.
    fn write(&self) -> io::Result<usize> {
        let kept = |((kind, name), resource): (&(ResourceType, Arc<str>), &Option<Arc<pb::Resource>>)| Kept {
            kind: *kind,
            name: Arc::clone(name),
            resource: resource.clone(),
        };
        // Only pointers are copied while the stream may have to wait.
        let kept = self.book().iter().map(kept).collect();
        let (bytes, left_out) = format::encode(&self.node, kept, BOUND);
        state_dir::write(&self.path, &bytes).map(|()| left_out)
    }
}
