//! A folder of manifests as a source of events. It must never take half of a file: a file that somebody has written to
//! and not yet closed changes nothing, and a restart forgets nothing that was in force.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::error::WatchError;
use super::folder::Folder as Content;
use super::last_good::LastGood;
use super::manifests;
use crate::ingest::ingest;
use crate::model::store::{ConfigError, SharedModel};

/// After an event, how long to wait for those that belong to it.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// However much happens, what is known is taken after this.
const MAX_DEBOUNCE: Duration = Duration::from_millis(60);
/// Events get lost (a full queue, a network file system): the folder is compared this often.
const RESCAN: Duration = Duration::from_secs(2);
/// Up to this many files that changed together are waited for until the disk has them.
const MAX_SYNCED: usize = 32;

/// A watched folder.
pub struct Folder {
    root: PathBuf,
    inotify: AsyncFd<Inotify>,
    folders: HashMap<WatchDescriptor, PathBuf>,
    /// Written to, and not closed since.
    open: BTreeSet<PathBuf>,
    /// Written and closed, or moved here: read again whatever its time and size say.
    touched: BTreeSet<PathBuf>,
    stamps: BTreeMap<PathBuf, Stamp>,
    content: Content,
    last_good: LastGood,
    /// Good texts that have yet to be kept.
    unkept: BTreeMap<PathBuf, String>,
    /// Of files that are gone.
    unforgotten: BTreeSet<PathBuf>,
    /// Why the state folder does not take them.
    state_errors: Vec<ConfigError>,
    unreadable: Vec<ConfigError>,
    /// Something happened while the folder was read: look again soon.
    again: bool,
    /// What the last look did not find.
    missing: BTreeSet<PathBuf>,
}

/// What tells that a file is another one than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    length: u64,
    inode: u64,
}

impl Folder {
    /// Starts to watch: nothing that happens in the folder after this is missed. Needs a runtime.
    ///
    /// # Errors
    /// When the folder is not there, or cannot be read or watched, or the state folder cannot be used.
    #[expect(
        deprecated,
        reason = "`register` asks for a promise in unsafe code; `Inotify` owns its descriptor"
    )]
    pub fn open(path: &Path, state: &Path) -> Result<Self, WatchError> {
        let unwatchable = |reason| WatchError::Unwatchable { path: path.to_owned(), reason };
        let state_error = |reason| WatchError::State { path: state.to_owned(), reason };
        std::fs::read_dir(path).map_err(|reason| WatchError::Unreadable { path: path.to_owned(), reason })?;
        let inotify = Inotify::init().and_then(AsyncFd::new).map_err(unwatchable)?;
        let mut folder = Self {
            root: path.to_owned(),
            inotify,
            folders: HashMap::new(),
            open: BTreeSet::new(),
            touched: BTreeSet::new(),
            stamps: BTreeMap::new(),
            content: Content::default(),
            last_good: LastGood::open(state, path).map_err(state_error)?,
            unkept: BTreeMap::new(),
            unforgotten: BTreeSet::new(),
            state_errors: Vec::new(),
            unreadable: Vec::new(),
            missing: BTreeSet::new(),
            again: false,
        };
        folder.watch(path).map_err(unwatchable)?;
        Ok(folder)
    }

    /// Takes up what was in force when the process ran last, reads the folder, says that the model is synced once
    /// everything in it has a form that was good, then follows every change. Never returns: drop the future to stop.
    pub async fn follow(mut self, model: SharedModel) {
        self.restore(&model);
        let mut held = BTreeSet::new();
        loop {
            self.take_changes(&model);
            let unknown = self.unknown();
            if unknown.is_empty() && self.missing.is_empty() {
                break;
            }
            if unknown != held {
                for ConfigError { file, line, reason } in model.config_errors() {
                    tracing::error!(file, line, reason, "not serving until this file is mended or removed");
                }
            }
            held = unknown;
            self.wait().await;
        }
        model.set_synced();
        loop {
            self.wait().await;
            self.take_changes(&model);
        }
    }

    /// Tells the model what was in force when the process ran last, as if the process had never ended.
    fn restore(&mut self, model: &SharedModel) {
        let remembered = self.last_good.load().unwrap_or_else(|error| {
            tracing::error!(%error, "the last good content of the configuration cannot be read");
            Vec::new()
        });
        let mut later = Vec::new();
        for found in remembered {
            let parse = |text: &str| manifests::parse(&found.path, text.as_bytes());
            let (first, second) = match &found.before {
                Some(before) => (parse(before), parse(&found.text).ok()),
                None => (parse(&found.text), None),
            };
            // Another version of this program wrote it, and took what this one does not.
            let Ok(first) = first else { continue };
            let length = u64::try_from(found.text.len()).unwrap_or(u64::MAX);
            self.stamps.insert(found.path.clone(), Stamp { length, ..Stamp::NEVER });
            self.content.restore(&found.path, first);
            later.extend(second.map(|second| (found.path, second)));
        }
        self.tell(model);
        for (path, manifests) in later {
            self.content.restore(&path, manifests);
        }
        self.tell(model);
        if !self.stamps.is_empty() {
            tracing::info!(files = self.stamps.len(), "took up what was in force before");
        }
    }

    /// What cannot be read and never was good: what would be in force without it, nobody has asked for.
    fn unknown(&self) -> BTreeSet<PathBuf> {
        let mut unknown = self.content.never_good();
        let known = |folder: &Path| self.stamps.keys().any(|path| path.starts_with(folder));
        let folders = self.unreadable.iter().map(|error| PathBuf::from(&error.file));
        unknown.extend(folders.filter(|folder| !known(folder)));
        unknown
    }

    /// Until something happened and calmed down, or it is time to compare.
    async fn wait(&mut self) {
        let rescan = Instant::now() + RESCAN;
        if !self.again {
            tokio::select! {
                () = self.event() => {}
                () = sleep_until(rescan) => return,
            }
        }
        let latest = Instant::now() + MAX_DEBOUNCE;
        loop {
            let calm = (Instant::now() + DEBOUNCE).min(latest);
            tokio::select! {
                () = self.event() => {}
                () = sleep_until(calm) => return,
            }
        }
    }

    /// Waits for an event, and notes it and all that came with it. Cancel-safe.
    async fn event(&mut self) {
        let ready = match self.inotify.readable_mut().await {
            Ok(mut guard) => {
                guard.clear_ready();
                true
            }
            Err(_) => false,
        };
        if ready {
            self.again |= self.note_events();
        } else {
            // Only at the end of the runtime; the next comparison is due anyway.
            std::future::pending::<()>().await;
        }
    }

    /// Notes the events that are there now, without waiting. Returns whether there were any.
    fn note_events(&mut self) -> bool {
        let closing =
            EventMask::CLOSE_WRITE | EventMask::MOVED_TO | EventMask::MOVED_FROM | EventMask::DELETE;
        let mut buffer = [0_u8; 8192];
        let mut any = false;
        // An error is the end of what is there.
        while let Ok(events) = self.inotify.get_mut().read_events(&mut buffer) {
            for event in events {
                any = true;
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    // Whoever closed a file may be among the lost: compare everything.
                    self.open.clear();
                    self.stamps.values_mut().for_each(|stamp| *stamp = Stamp::NEVER);
                }
                if event.mask.contains(EventMask::IGNORED) {
                    self.folders.remove(&event.wd);
                }
                let folder = self.folders.get(&event.wd);
                let (Some(folder), Some(name)) = (folder, event.name) else { continue };
                let path = folder.join(name);
                if event.mask.contains(EventMask::MODIFY) {
                    self.open.insert(path);
                } else if event.mask.intersects(closing) {
                    self.open.remove(&path);
                    self.touched.insert(path);
                }
            }
        }
        any
    }

    /// Reads what changed and tells the model.
    fn take_changes(&mut self, model: &SharedModel) {
        self.note_events();
        // Small files from a local disk: read here, on the task that has nothing else to do.
        let found = self.scan();
        // A file that is replaced is away, or empty, for a moment: gone is what two looks in a row do not find.
        let absent: BTreeSet<PathBuf> = self
            .stamps
            .iter()
            .filter(|(path, known)| {
                found.get(*path).is_none_or(|stamp| stamp.length == 0 && known.length > 0)
                    && !self.open.contains(*path)
            })
            .map(|(path, _)| path.clone())
            .collect();
        let gone: Vec<PathBuf> = absent.intersection(&self.missing).cloned().collect();
        let doubtful = absent.len() > gone.len();
        self.missing = absent;
        let mut parsed = Vec::new();
        for (path, stamp) in found {
            let same = self.stamps.get(&path) == Some(&stamp) && !self.touched.contains(&path);
            if same || self.open.contains(&path) || self.missing.contains(&path) {
                continue;
            }
            let content = std::fs::read(&path);
            parsed.push((path, stamp, content));
        }
        self.touched.clear();
        // Whoever wrote into a file while it was read has left an event by now.
        self.again = self.note_events() || doubtful;
        for path in gone {
            self.missing.remove(&path);
            self.stamps.remove(&path);
            self.content.remove(&path);
            self.unkept.remove(&path);
            self.unforgotten.insert(path);
        }
        for (path, stamp, content) in parsed {
            if self.open.contains(&path) || self.touched.contains(&path) {
                continue;
            }
            let result = match content {
                Ok(content) => {
                    self.stamps.insert(path.clone(), stamp);
                    let parsed = manifests::parse(&path, &content);
                    if let (Ok(_), Ok(text)) = (&parsed, String::from_utf8(content)) {
                        self.unforgotten.remove(&path);
                        self.unkept.insert(path.clone(), text);
                    }
                    parsed
                }
                Err(error) => {
                    // It is tried again; and it is known, for when the file goes away.
                    self.stamps.insert(path.clone(), Stamp::NEVER);
                    Err(vec![unreadable(&path, &error)])
                }
            };
            self.content.put(&path, result);
        }
        self.tell(model);
        self.remember();
    }

    /// Keeps what is good now for the next start. What cannot be kept is tried again with the next look.
    fn remember(&mut self) {
        // A first start with thousands of files must not wait for the disk thousands of times.
        let sync = self.unkept.len() <= MAX_SYNCED;
        let (last_good, content) = (&mut self.last_good, &self.content);
        let mut failed = Vec::new();
        self.unkept.retain(|path, text| {
            let kept = last_good.keep(path, text, content.is_taken(path), sync);
            kept.map_err(|error| failed.push((path.clone(), error))).is_err()
        });
        self.unforgotten.retain(|path| {
            let forgotten = last_good.forget(path);
            forgotten.map_err(|error| failed.push((path.clone(), error))).is_err()
        });
        let complaint = |(path, error): (PathBuf, io::Error)| ConfigError {
            file: path.display().to_string(),
            line: 0,
            reason: format!(
                "a restart would not know what is in force: the state folder does not take it: {error}"
            ),
        };
        self.state_errors = failed.into_iter().map(complaint).collect();
    }

    fn tell(&mut self, model: &SharedModel) {
        let events = self.content.events();
        let mut refused = Vec::new();
        if !events.is_empty() {
            let changed = model.update(|mesh| {
                for event in &events {
                    refused.extend(ingest(mesh, event).err().unwrap_or_default());
                }
            });
            tracing::debug!(events = events.len(), facts = changed.len(), "took changes of the folder");
        }
        self.content.refuse(refused);
        let mut errors = self.content.errors();
        errors.extend(self.unreadable.iter().chain(&self.state_errors).cloned());
        let before = model.config_errors();
        for ConfigError { file, line, reason } in errors.iter().filter(|error| !before.contains(error)) {
            tracing::warn!(file, line, reason, "the configuration has an error");
        }
        if before.len() != errors.len() || errors.iter().any(|error| !before.contains(error)) {
            model.set_config_errors(errors);
        }
    }

    /// All manifests of the folder and its subfolders. New subfolders are watched before they are read.
    fn scan(&mut self) -> BTreeMap<PathBuf, Stamp> {
        let mut found = BTreeMap::new();
        self.unreadable.clear();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            let entries = self.watch(&folder).and_then(|()| std::fs::read_dir(&folder));
            let entries = match entries {
                Ok(entries) => entries,
                // Gone between being listed and being read.
                Err(error) if error.kind() == io::ErrorKind::NotFound && folder != self.root => continue,
                Err(error) => {
                    self.keep(&folder, &mut found);
                    self.unreadable.push(unreadable(&folder, &error));
                    continue;
                }
            };
            for entry in entries {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        self.keep(&folder, &mut found);
                        self.unreadable.push(unreadable(&folder, &error));
                        break;
                    }
                };
                let path = entry.path();
                // Hidden: editors' copies, and the folders behind a mounted ConfigMap's links.
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                // Follows links: that is how a ConfigMap's files are mounted.
                let metadata = match std::fs::metadata(&path) {
                    Ok(metadata) => metadata,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => {
                        self.keep(&path, &mut found);
                        self.unreadable.push(unreadable(&path, &error));
                        continue;
                    }
                };
                if metadata.is_dir() {
                    // Links to folders could run in circles.
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        folders.push(path);
                    }
                } else if metadata.is_file() && is_manifest(&path) {
                    found.insert(path, Stamp::of(&metadata));
                }
            }
        }
        found
    }

    /// What cannot be listed is not gone.
    fn keep(&self, folder: &Path, found: &mut BTreeMap<PathBuf, Stamp>) {
        let inside = self.stamps.iter().filter(|(path, _)| path.starts_with(folder));
        found.extend(inside.map(|(path, stamp)| (path.clone(), *stamp)));
    }

    fn watch(&mut self, folder: &Path) -> io::Result<()> {
        let mask = WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ATTRIB;
        let descriptor = self.inotify.get_mut().watches().add(folder, mask)?;
        self.folders.insert(descriptor, folder.to_owned());
        Ok(())
    }
}

impl Stamp {
    /// No file is like this: it differs from whatever is found.
    const NEVER: Self = Self { modified: (0, 0), length: 0, inode: 0 };

    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            length: metadata.len(),
            inode: metadata.ino(),
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    ConfigError { file: path.display().to_string(), line: 0, reason: format!("it cannot be read: {error}") }
}
