//! A folder of manifests as a source of events. It must never take half of a file: a file that somebody has written to
//! and not yet closed changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::folder::Folder as Content;
use super::manifests;
use crate::ingest::ingest;
use crate::model::store::{ConfigError, SharedModel};

/// After an event, how long to wait for those that belong to it.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// However much happens, what is known is taken after this.
const MAX_DEBOUNCE: Duration = Duration::from_millis(60);
/// Events get lost (a full queue, a network file system): the folder is compared this often.
const RESCAN: Duration = Duration::from_secs(2);

/// Why a folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// It cannot be read.
    #[error("the folder {path} cannot be read: {source}; name an existing folder that this user may read")]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not watch it.
    #[error(
        "the folder {path} cannot be watched: {source}; see sysctl fs.inotify.max_user_watches and max_user_instances"
    )]
    Unwatchable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

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
    /// When the folder is not there, or cannot be read or watched.
    #[expect(
        deprecated,
        reason = "`register` asks for a promise in unsafe code; `Inotify` owns its descriptor"
    )]
    pub fn open(path: &Path) -> Result<Self, WatchError> {
        let unwatchable = |source| WatchError::Unwatchable { path: path.to_owned(), source };
        std::fs::read_dir(path).map_err(|source| WatchError::Unreadable { path: path.to_owned(), source })?;
        let inotify = Inotify::init().and_then(AsyncFd::new).map_err(unwatchable)?;
        let mut folder = Self {
            root: path.to_owned(),
            inotify,
            folders: HashMap::new(),
            open: BTreeSet::new(),
            touched: BTreeSet::new(),
            stamps: BTreeMap::new(),
            content: Content::default(),
            unreadable: Vec::new(),
            missing: BTreeSet::new(),
            again: false,
        };
        folder.watch(path).map_err(unwatchable)?;
        Ok(folder)
    }

    /// Reads the folder, says that the model is synced, then follows every change. Never returns: drop the future
    /// to stop.
    pub async fn follow(mut self, model: SharedModel) {
        self.take_changes(&model);
        model.set_synced();
        loop {
            self.wait().await;
            self.take_changes(&model);
        }
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
        }
        for (path, stamp, content) in parsed {
            if self.open.contains(&path) || self.touched.contains(&path) {
                continue;
            }
            let result = match content {
                Ok(content) => {
                    self.stamps.insert(path.clone(), stamp);
                    manifests::parse(&path, &content)
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
        errors.extend(self.unreadable.iter().cloned());
        let before = model.config_errors();
        for ConfigError { file, line, reason } in errors.iter().filter(|error| !before.contains(error)) {
            tracing::warn!(
                file,
                line,
                reason,
                "the configuration has an error; what was good last stays in force"
            );
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;
    use crate::ingest::tests::settings;
    use crate::model::store::Mesh;

    struct Fixture {
        folder: tempfile::TempDir,
        model: SharedModel,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Fixture {
        async fn start(files: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(folder.path().join(name), text).unwrap();
            }
            let model = SharedModel::new(Mesh::new(settings()));
            assert!(!model.is_synced());
            let task = tokio::spawn(Folder::open(folder.path()).unwrap().follow(model.clone()));
            model.synced().await;
            Self { folder, model, task }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn services(&self) -> Vec<String> {
            let keys = self.model.read().mesh().service_keys();
            keys.into_iter()
                .map(|key| key.hostname.split('.').next().unwrap_or_default().to_owned())
                .collect()
        }

        async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
            let patience = Instant::now() + Duration::from_secs(10);
            while !holds(self) {
                let error = (self.services(), self.model.config_errors());
                assert!(Instant::now() < patience, "never: {what}; now {error:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    fn service(name: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    }

    #[tokio::test]
    async fn follows_files_and_subfolders() {
        let fixture = Fixture::start(&[("a.yaml", &service("a")), ("notes.txt", "not: [yaml")]).await;
        assert_eq!(fixture.services(), ["a"]);
        let mut changes = fixture.model.subscribe();
        fs::write(fixture.path("b.yml"), service("b")).unwrap();
        fixture.until("a new file", |f| f.services() == ["a", "b"]).await;
        assert!(changes.try_next().is_some());
        fs::create_dir(fixture.path("more")).unwrap();
        fs::write(
            fixture.path("more/c.json"),
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"}}"#,
        )
        .unwrap();
        fixture.until("a file in a new subfolder", |f| f.services() == ["a", "b", "c"]).await;
        fs::write(fixture.path(".hidden"), service("d")).unwrap();
        fs::rename(fixture.path(".hidden"), fixture.path("a.yaml")).unwrap();
        fixture.until("a file put in place of another", |f| f.services() == ["b", "c", "d"]).await;
        fs::remove_file(fixture.path("b.yml")).unwrap();
        fs::remove_dir_all(fixture.path("more")).unwrap();
        fixture.until("deleted files", |f| f.services() == ["d"]).await;
        assert_eq!(fixture.model.config_errors(), []);
    }

    #[tokio::test]
    async fn half_a_file_changes_nothing() {
        let fixture = Fixture::start(&[("a.yaml", &(service("a") + &service("b")))]).await;
        let mut changes = fixture.model.subscribe();
        let mut file = fs::File::create(fixture.path("a.yaml")).unwrap();
        file.write_all(service("b").as_bytes()).unwrap();
        file.flush().unwrap();
        // Another file passes in the meantime: the open one was looked at, and left alone.
        fs::write(fixture.path("z.yaml"), service("z")).unwrap();
        fixture.until("the other file", |f| f.services() == ["a", "b", "z"]).await;
        file.write_all(service("c").as_bytes()).unwrap();
        drop(file);
        fixture.until("the closed file", |f| f.services() == ["b", "c", "z"]).await;
        assert!(changes.try_next().is_some());
    }

    #[tokio::test]
    async fn a_broken_file_is_named_and_its_last_good_content_stays() {
        let fixture = Fixture::start(&[("a.yaml", &service("a")), ("broken.yaml", "kind: [\n")]).await;
        assert_eq!(fixture.model.config_errors().len(), 1);
        fs::write(
            fixture.path("a.yaml"),
            "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec:\n  prots: 1\n",
        )
        .unwrap();
        fixture.until("the error", |f| f.model.config_errors().len() == 2).await;
        let error = fixture.model.config_errors().remove(0);
        assert!(error.file.ends_with("/a.yaml"), "{}", error.file);
        assert_eq!(error.line, 5);
        assert!(error.reason.starts_with("spec.prots: this field is not known"), "{}", error.reason);
        assert_eq!(fixture.services(), ["a"]);
        fs::write(fixture.path("a.yaml"), service("b")).unwrap();
        fs::remove_file(fixture.path("broken.yaml")).unwrap();
        fixture.until("no error", |f| f.model.config_errors().is_empty() && f.services() == ["b"]).await;
    }

    #[tokio::test]
    async fn needs_a_folder() {
        let error = Folder::open(Path::new("/does/not/exist")).err().unwrap();
        assert!(error.to_string().starts_with("the folder /does/not/exist cannot be read: "), "{error}");
    }
}
