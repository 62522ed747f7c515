//! What each file of a folder said when it was good last, on disk, so that a restart forgets nothing that was in
//! force. It must never give back half of what was written: an entry that is not whole does not count.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

/// The folder of entries, inside of the state folder.
const FOLDER: &str = "last-good";

/// The entries of one folder of manifests.
#[derive(Debug)]
pub struct LastGood {
    entries: PathBuf,
    /// The folder of manifests as it is named, and its absolute path: entries of another folder are not ours.
    root: PathBuf,
    folder: String,
    /// What is on disk: file -> hash of its text.
    kept: BTreeMap<PathBuf, Kept>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    hash: u128,
    whole: bool,
}

/// What a file said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The file, below the folder as it was named.
    pub path: PathBuf,
    /// Its last text that could be parsed.
    pub text: String,
    /// When the model refused something in that text: the text before, of which it refused nothing.
    pub before: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    folder: String,
    file: String,
    text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<String>,
}

impl LastGood {
    /// The entries of the folder `manifests` inside of the state folder, which is made if it is not there.
    ///
    /// # Errors
    /// When the state folder cannot be used, or one of the paths is not UTF-8.
    pub fn open(state: &Path, manifests: &Path) -> io::Result<Self> {
        let entries = state.join(FOLDER);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&entries)?;
        let folder = text_of(&std::path::absolute(manifests)?)?.to_owned();
        Ok(Self { entries, root: manifests.to_owned(), folder, kept: BTreeMap::new() })
    }

    /// Reads every entry. What is not whole, and what belongs to a folder that is not there any more, is deleted.
    ///
    /// # Errors
    /// When the entries cannot be listed or read.
    pub fn load(&mut self) -> io::Result<Vec<Remembered>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.entries)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // The draft of a process that was killed; another process may be writing one now.
                continue;
            }
            let Ok(entry) = serde_json::from_slice::<Entry>(&fs::read(&path)?) else {
                tracing::warn!(entry = %path.display(), "an entry of last good content is damaged; it is deleted");
                remove(&path)?;
                continue;
            };
            if entry.folder != self.folder {
                if !Path::new(&entry.folder).exists() {
                    remove(&path)?;
                }
                continue;
            }
            let Entry { folder: _, file, text, before } = entry;
            let path = self.root.join(file);
            self.kept.insert(path.clone(), Kept { hash: hash(&text), whole: before.is_none() });
            found.push(Remembered { path, text, before });
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Remembers the text of a file. `whole`: the model took all of it; else the last text of which that was true
    /// is remembered beside it. `sync`: wait until it is on the disk.
    ///
    /// # Errors
    /// When it cannot be written. What was remembered before stays.
    pub fn keep(&mut self, path: &Path, text: &str, whole: bool, sync: bool) -> io::Result<()> {
        let kept = Kept { hash: hash(text), whole };
        if self.kept.get(path) == Some(&kept) {
            return Ok(());
        }
        let file = self.relative(path)?;
        let place = self.place(&file);
        let before = if whole { None } else { self.last_whole(&place, text) };
        let entry = Entry { folder: self.folder.clone(), file, text: text.to_owned(), before };
        write(&place, &serde_json::to_vec(&entry)?, sync)?;
        self.kept.insert(path.to_owned(), kept);
        Ok(())
    }

    /// Forgets a file that is gone.
    ///
    /// # Errors
    /// When the entry cannot be deleted.
    pub fn forget(&mut self, path: &Path) -> io::Result<()> {
        if self.kept.contains_key(path) {
            remove(&self.place(&self.relative(path)?))?;
            self.kept.remove(path);
        }
        Ok(())
    }

    fn last_whole(&self, place: &Path, text: &str) -> Option<String> {
        let known: Entry = serde_json::from_slice(&fs::read(place).ok()?).ok()?;
        known.before.or(Some(known.text)).filter(|known| known != text)
    }

    fn relative(&self, path: &Path) -> io::Result<String> {
        Ok(text_of(path.strip_prefix(&self.root).unwrap_or(path))?.to_owned())
    }

    fn place(&self, file: &str) -> PathBuf {
        let key = hash(&format!("{}\0{file}", self.folder));
        self.entries.join(format!("{key:032x}.json"))
    }
}

fn hash(text: &str) -> u128 {
    XxHash3_128::oneshot(text.as_bytes())
}

fn text_of(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the path is not UTF-8 text"))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        // Another process on the same folders was faster.
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The file appears whole, or stays what it was. Two processes on the same folders do not share a draft.
fn write(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    // Of a process that had this id and was killed.
    remove(&draft)?;
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft)?;
    let written = file.write_all(bytes).and_then(|()| if sync { file.sync_all() } else { Ok(()) });
    let moved = written.and_then(|()| fs::rename(&draft, path));
    if moved.is_err() {
        remove(&draft)?;
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folders(tempfile::TempDir);

    impl Folders {
        fn new() -> Self {
            let folders = Self(tempfile::tempdir().unwrap());
            fs::create_dir(folders.manifests()).unwrap();
            folders
        }

        fn manifests(&self) -> PathBuf {
            self.0.path().join("manifests")
        }

        fn state(&self) -> PathBuf {
            self.0.path().join("state")
        }

        fn open(&self) -> LastGood {
            LastGood::open(&self.state(), &self.manifests()).unwrap()
        }

        fn remembered(&self) -> Vec<(String, String, Option<String>)> {
            let short = |path: &Path| path.strip_prefix(self.manifests()).unwrap().display().to_string();
            let found = self.open().load().unwrap();
            found.into_iter().map(|found| (short(&found.path), found.text, found.before)).collect()
        }

        fn entries(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.state().join(FOLDER)).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        }
    }

    fn row(file: &str, text: &str, before: Option<&str>) -> (String, String, Option<String>) {
        (file.to_owned(), text.to_owned(), before.map(str::to_owned))
    }

    #[test]
    fn remembers_across_restarts() {
        let folders = Folders::new();
        let (a, b) = (folders.manifests().join("a.yaml"), folders.manifests().join("more/b.yaml"));
        let mut first = folders.open();
        first.keep(&a, "one", true, true).unwrap();
        first.keep(&a, "two", true, true).unwrap();
        first.keep(&b, "b", true, false).unwrap();
        assert_eq!(folders.remembered(), [row("a.yaml", "two", None), row("more/b.yaml", "b", None)]);
        // Texts that were taken in part stand beside the last that was taken whole.
        for (text, whole, before) in
            [("three", false, Some("two")), ("four", false, Some("two")), ("five", true, None)]
        {
            first.keep(&a, text, whole, true).unwrap();
            assert_eq!(folders.remembered()[0], row("a.yaml", text, before));
        }
        let mut second = folders.open();
        second.load().unwrap();
        second.forget(&b).unwrap();
        assert_eq!(folders.remembered(), [row("a.yaml", "five", None)]);
        first.forget(&b).unwrap();
        assert_eq!(folders.entries().len(), 1, "no drafts are left");
    }

    #[test]
    fn an_entry_that_is_not_whole_does_not_count() {
        let folders = Folders::new();
        folders.open().keep(&folders.manifests().join("a.yaml"), "one", true, true).unwrap();
        let entry = folders.entries().remove(0);
        let whole = fs::read(&entry).unwrap();
        for length in 0..whole.len() {
            fs::write(&entry, &whole[..length]).unwrap();
            assert_eq!(folders.remembered(), []);
            assert!(!entry.exists());
        }
    }

    #[test]
    fn another_folder_has_its_own() {
        let folders = Folders::new();
        let other = folders.0.path().join("other");
        fs::create_dir(&other).unwrap();
        let mut foreign = LastGood::open(&folders.state(), &other).unwrap();
        foreign.keep(&other.join("a.yaml"), "foreign", true, true).unwrap();
        folders.open().keep(&folders.manifests().join("a.yaml"), "mine", true, true).unwrap();
        assert_eq!(folders.remembered(), [row("a.yaml", "mine", None)]);
        assert_eq!(folders.entries().len(), 2);
        fs::remove_dir(&other).unwrap();
        assert_eq!(folders.remembered(), [row("a.yaml", "mine", None)]);
        assert_eq!(folders.entries().len(), 1, "nobody will ask for the other folder's");
    }
}
