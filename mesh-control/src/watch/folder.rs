//! What a folder holds: which file says what, and what that means as events. Pure. A file that cannot be read as a
//! whole keeps what it said last.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::manifests::Manifest;
use crate::api::{InvalidObject, Kind, Object, ObjectId};
use crate::ingest::Event;
use crate::model::store::ConfigError;

/// The state of a folder.
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<PathBuf, File>,
    /// What was told last, by object: where it is written, and what.
    told: BTreeMap<ObjectId, (PathBuf, usize, Object)>,
    /// Objects that the model refused.
    refused: BTreeMap<ObjectId, InvalidObject>,
    /// Of these, those of which it never took another form.
    never_taken: BTreeSet<ObjectId>,
    /// Told for the first time with the last events.
    new: BTreeSet<ObjectId>,
    started: bool,
}

#[derive(Debug, Default)]
struct File {
    good: Vec<Manifest>,
    source: Source,
    errors: Vec<ConfigError>,
}

/// Where the good content of a file is from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Source {
    /// There never was any.
    #[default]
    Never,
    /// From the last run of the process.
    Restored,
    /// The file.
    File,
}

impl Folder {
    /// A file was read.
    pub fn put(&mut self, path: &Path, parsed: Result<Vec<Manifest>, Vec<ConfigError>>) {
        let file = self.files.entry(path.to_owned()).or_default();
        match parsed {
            Ok(manifests) => *file = File { good: manifests, source: Source::File, errors: Vec::new() },
            Err(errors) => file.errors = errors,
        }
    }

    /// A file said this when the process ran last.
    pub fn restore(&mut self, path: &Path, manifests: Vec<Manifest>) {
        let file = File { good: manifests, source: Source::Restored, errors: Vec::new() };
        self.files.insert(path.to_owned(), file);
    }

    /// A file is gone.
    pub fn remove(&mut self, path: &Path) {
        self.files.remove(path);
    }

    /// What is to be told since the last call. The first call tells everything.
    pub fn events(&mut self) -> Vec<Event> {
        let mut now: BTreeMap<ObjectId, (PathBuf, usize, Object)> = BTreeMap::new();
        // In the order of paths, so that every reader of the same folder prefers the same of two.
        for (path, file) in &self.files {
            for Manifest { id, object, line } in &file.good {
                now.entry(id.clone()).or_insert_with(|| (path.clone(), *line, object.clone()));
            }
        }
        let events = if self.started { changes(&self.told, &now) } else { everything(&now) };
        self.new = now.keys().filter(|id| !self.told.contains_key(*id)).cloned().collect();
        for event in &events {
            match event {
                Event::Apply(id, _) | Event::Delete(id) => {
                    self.refused.remove(id);
                    if self.never_taken.remove(id) {
                        self.new.insert(id.clone());
                    }
                }
                Event::Reset(..) => self.refused.clear(),
                // A folder tells whole files, and names nothing that it cannot read.
                Event::Refuse(..) | Event::Retain(..) => {}
            }
        }
        self.started = true;
        self.told = now;
        events
    }

    /// The model did not take these.
    pub fn refuse(&mut self, refused: Vec<(ObjectId, InvalidObject)>) {
        self.never_taken
            .extend(refused.iter().map(|(id, _)| id).filter(|id| self.new.contains(*id)).cloned());
        self.refused.extend(refused);
    }

    /// Whether the model took every object of a file.
    pub fn is_taken(&self, path: &Path) -> bool {
        self.refused.keys().all(|id| self.told.get(id).is_none_or(|(file, ..)| file != path))
    }

    /// The files of which something has no form that was ever good.
    pub fn never_good(&self) -> BTreeSet<PathBuf> {
        let broken = self.files.iter().filter(|(_, file)| file.source == Source::Never).map(|(path, _)| path);
        let refused = self.never_taken.iter().filter_map(|id| self.told.get(id)).map(|(path, ..)| path);
        broken.chain(refused).cloned().collect()
    }

    /// Everything that is wrong with the folder now.
    pub fn errors(&self) -> Vec<ConfigError> {
        let mut errors: Vec<ConfigError> = self.files.values().flat_map(File::complaints).collect();
        for (id, error) in &self.refused {
            if let Some((path, line, _)) = self.told.get(id) {
                let file = path.display().to_string();
                let in_force = match self.never_taken.contains(id) {
                    true => "it was never good",
                    false => "its last good form stays in force",
                };
                errors.push(ConfigError { file, line: *line, reason: format!("{id}: {error}; {in_force}") });
            }
        }
        errors.extend(self.duplicates());
        errors
    }

    fn duplicates(&self) -> Vec<ConfigError> {
        let mut seen: BTreeMap<&ObjectId, (&Path, usize)> = BTreeMap::new();
        let mut errors = Vec::new();
        for (path, file) in &self.files {
            for Manifest { id, line, .. } in &file.good {
                let Some((first, first_line)) = seen.insert(id, (path, *line)) else { continue };
                seen.insert(id, (first, first_line));
                let first = first.display();
                let reason = format!("{id} is in {first}, line {first_line}, too; that one stays in force");
                errors.push(ConfigError { file: path.display().to_string(), line: *line, reason });
            }
        }
        errors
    }
}

impl File {
    /// What is wrong with it, and what is in force instead.
    fn complaints(&self) -> impl Iterator<Item = ConfigError> {
        let in_force = match self.source {
            Source::Never => "nothing of this file is in force, for it was never good",
            Source::Restored => "the file's last good content, from before this start, stays in force",
            Source::File => "the file's last good content stays in force",
        };
        self.errors.iter().map(move |error| {
            let ConfigError { file, line, reason } = error.clone();
            ConfigError { file, line, reason: format!("{reason}; {in_force}") }
        })
    }
}

type Told = BTreeMap<ObjectId, (PathBuf, usize, Object)>;

fn everything(now: &Told) -> Vec<Event> {
    let of_kind = |kind: Kind| {
        let of_kind = now.iter().filter(|(id, _)| id.kind == kind);
        Event::Reset(kind, of_kind.map(|(id, (_, _, object))| (id.clone(), object.clone())).collect())
    };
    Kind::ALL.map(of_kind).into()
}

/// Deletions first, so that what moves from one object to another (an address) is free before it is taken.
fn changes(before: &Told, now: &Told) -> Vec<Event> {
    let ids: BTreeSet<&ObjectId> = before.keys().chain(now.keys()).collect();
    let deleted = ids.iter().filter(|id| !now.contains_key(**id)).map(|id| Event::Delete((*id).clone()));
    let applied =
        now.iter().filter(|(id, (_, _, object))| before.get(*id).is_none_or(|(_, _, known)| known != object));
    let applied = applied.map(|(id, (_, _, object))| Event::Apply(id.clone(), object.clone()));
    deleted.chain(applied).collect()
}

#[cfg(test)]
mod tests {
    use super::super::manifests;
    use super::*;

    fn service(name: &str, port: u16) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
    }

    fn put(folder: &mut Folder, path: &str, text: &str) -> Vec<String> {
        folder.put(Path::new(path), manifests::parse(Path::new(path), text.as_bytes()));
        told(folder)
    }

    fn told(folder: &mut Folder) -> Vec<String> {
        let text = |event: Event| match event {
            Event::Apply(id, _) => format!("apply {id}"),
            Event::Delete(id) => format!("delete {id}"),
            Event::Reset(kind, objects) => format!("reset {} {}", kind.name(), objects.len()),
            Event::Refuse(id, ..) => format!("refuse {id}"),
            Event::Retain(kind, names) => format!("retain {} {}", kind.name(), names.len()),
        };
        folder.events().into_iter().map(text).collect()
    }

    #[test]
    fn a_folder_over_time() {
        let mut folder = Folder::default();
        assert_eq!(put(&mut folder, "a.yaml", &service("a", 80)).len(), Kind::ALL.len());
        assert!(told(&mut folder).is_empty());
        assert_eq!(
            put(&mut folder, "b.yaml", &(service("b", 80) + &service("c", 80))),
            ["apply Service default/b", "apply Service default/c"]
        );
        // The same content, or only other lines: nothing to tell.
        assert!(put(&mut folder, "a.yaml", &format!("# comment\n{}", service("a", 80))).is_empty());
        assert_eq!(
            put(&mut folder, "b.yaml", &service("b", 81)),
            ["delete Service default/c", "apply Service default/b"]
        );
        // Broken: nothing changes, and the error says where.
        assert!(put(&mut folder, "b.yaml", "a: [\n").is_empty());
        let errors = folder.errors();
        assert_eq!((errors.len(), errors[0].file.as_str()), (1, "b.yaml"));
        // An object that moves to another file is not deleted in between.
        folder.remove(Path::new("b.yaml"));
        assert!(put(&mut folder, "c.yaml", &service("b", 81)).is_empty());
        assert!(folder.errors().is_empty());
    }

    #[test]
    fn two_of_the_same() {
        let mut folder = Folder::default();
        put(&mut folder, "a.yaml", &service("a", 80));
        assert!(put(&mut folder, "b.yaml", &service("a", 81)).is_empty());
        let errors = folder.errors();
        assert_eq!(errors.len(), 1);
        assert_eq!((errors[0].file.as_str(), errors[0].line), ("b.yaml", 2));
        assert!(errors[0].reason.contains("a.yaml, line 2"), "{}", errors[0].reason);
        folder.remove(Path::new("a.yaml"));
        assert_eq!(told(&mut folder), ["apply Service default/a"]);
        assert!(folder.errors().is_empty());
    }

    #[test]
    fn what_the_model_refuses_is_named() {
        let mut folder = Folder::default();
        put(&mut folder, "a.yaml", &service("a", 80));
        let id = ObjectId { kind: Kind::Service, namespace: "default".to_owned(), name: "a".to_owned() };
        let error = InvalidObject { pointer: "/spec/ports/0/port".to_owned(), reason: "no".to_owned() };
        folder.refuse(vec![(id.clone(), error.clone())]);
        let refused = "Service default/a: spec.ports[0].port: no";
        assert_eq!(folder.errors()[0].reason, format!("{refused}; it was never good"));
        assert_eq!(folder.never_good(), [PathBuf::from("a.yaml")].into());
        assert!(!folder.is_taken(Path::new("a.yaml")) && folder.is_taken(Path::new("b.yaml")));
        put(&mut folder, "a.yaml", &service("a", 81));
        assert!(folder.errors().is_empty() && folder.never_good().is_empty());
        // It was good once: what the model took then stays.
        put(&mut folder, "a.yaml", &service("a", 82));
        folder.refuse(vec![(id, error)]);
        assert_eq!(folder.errors()[0].reason, format!("{refused}; its last good form stays in force"));
        assert!(folder.never_good().is_empty());
    }

    #[test]
    fn what_was_in_force_before_a_restart_is_in_force_after_it() {
        let mut folder = Folder::default();
        let before = manifests::parse(Path::new("a.yaml"), service("a", 80).as_bytes()).unwrap();
        folder.restore(Path::new("a.yaml"), before);
        assert_eq!(told(&mut folder).iter().filter(|event| event.ends_with(" 1")).count(), 1);
        assert!(put(&mut folder, "a.yaml", "a: [\n").is_empty());
        assert!(folder.errors()[0].reason.ends_with("from before this start, stays in force"));
        assert!(folder.never_good().is_empty());
        assert!(put(&mut folder, "b.yaml", "a: [\n").is_empty());
        assert_eq!(folder.never_good(), [PathBuf::from("b.yaml")].into());
        assert!(folder.errors()[1].reason.ends_with("for it was never good"));
        folder.remove(Path::new("b.yaml"));
        assert!(folder.never_good().is_empty());
        assert!(put(&mut folder, "a.yaml", &service("a", 80)).is_empty());
        assert!(folder.errors().is_empty());
    }
}
