//! A folder on a real disk, with everything that people and programs do to files.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::files::Folder;
use crate::ingest::tests::settings;
use crate::model::facts::Facts as _;
use crate::model::policy::MtlsMode;
use crate::model::store::{Mesh, SharedModel};

struct Fixture {
    folder: tempfile::TempDir,
    state: tempfile::TempDir,
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
        let fixture = Self::begin(files);
        fixture.synced().await;
        fixture
    }

    /// Until all was read.
    async fn synced(&self) {
        self.until("synced", |f| f.model.is_synced()).await;
    }

    /// Does not wait until all was read.
    fn begin(files: &[(&str, &str)]) -> Self {
        let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let (model, task) = run(folder.path(), state.path());
        Self { folder, state, model, task }
    }

    /// As if the process had been killed; then this happens, and it starts again.
    async fn restart(&mut self, meanwhile: impl FnOnce(&Self)) {
        self.task.abort();
        assert!((&mut self.task).await.unwrap_err().is_cancelled());
        meanwhile(self);
        (self.model, self.task) = run(self.folder.path(), self.state.path());
    }

    fn reasons(&self) -> Vec<String> {
        let short = |file: &str| file.rsplit('/').next().unwrap_or_default().to_owned();
        let errors = self.model.config_errors().into_iter();
        errors.map(|error| format!("{}:{}: {}", short(&error.file), error.line, error.reason)).collect()
    }

    /// What the port 80 of the pod takes.
    fn mode(&self) -> Option<MtlsMode> {
        let reader = self.model.read();
        let key = reader.mesh().pod_keys().into_iter().next()?;
        Some(reader.inbound(&key)?.default_mode)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn services(&self) -> Vec<String> {
        let keys = self.model.read().mesh().service_keys();
        keys.into_iter().map(|key| key.hostname.split('.').next().unwrap_or_default().to_owned()).collect()
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

fn run(folder: &Path, state: &Path) -> (SharedModel, tokio::task::JoinHandle<()>) {
    let model = SharedModel::new(Mesh::new(settings()));
    assert!(!model.is_synced());
    let task = tokio::spawn(Folder::open(folder, state).unwrap().follow(model.clone()));
    (model, task)
}

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop}
spec: {serviceAccountName: web, containers: [{name: app, image: app}]}
status: {phase: Running, podIP: 127.0.9.1, podIPs: [{ip: 127.0.9.1}]}
";

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

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
    fs::write(fixture.path("more/c.json"), r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"}}"#)
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
    let fixture = Fixture::start(&[("a.yaml", &service("a"))]).await;
    fs::write(fixture.path("broken.yaml"), "kind: [\n").unwrap();
    fixture.until("the first error", |f| f.model.config_errors().len() == 1).await;
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
    let state = tempfile::tempdir().unwrap();
    let error = Folder::open(Path::new("/does/not/exist"), state.path()).err().unwrap();
    assert!(error.to_string().starts_with("the folder /does/not/exist cannot be read: "), "{error}");
}

#[tokio::test]
async fn a_restart_with_a_broken_file_keeps_what_was_in_force() {
    for broken in ["kind: [\n", &STRICT.replace("STRICT", "STRCT"), &STRICT[..STRICT.len() - 10], "\u{1}"] {
        let mut fixture = Fixture::start(&[("pod.yaml", POD), ("policy.yaml", STRICT)]).await;
        assert_eq!(fixture.mode(), Some(MtlsMode::Strict));
        // Twice: what a restart restored, the next one knows too.
        for _ in 0..2 {
            fixture.restart(|f| fs::write(f.path("policy.yaml"), broken).unwrap()).await;
            fixture.synced().await;
            assert_eq!(fixture.mode(), Some(MtlsMode::Strict), "{broken:?}");
            let reasons = fixture.reasons();
            let expected = "last good content, from before this start, stays in force";
            assert!(reasons[0].starts_with("policy.yaml:") && reasons[0].contains(expected), "{reasons:?}");
        }
        fs::write(fixture.path("policy.yaml"), STRICT.replace("STRICT", "PERMISSIVE")).unwrap();
        fixture.until("the mended file", |f| f.mode() == Some(MtlsMode::Permissive)).await;
        assert_eq!(fixture.reasons(), [""; 0]);
        fixture.restart(|f| fs::remove_file(f.path("policy.yaml")).unwrap()).await;
        fixture.synced().await;
        fixture.restart(|f| fs::write(f.path("policy.yaml"), broken).unwrap()).await;
        fixture.until("the error", |f| f.reasons().iter().any(|reason| reason.contains("never good"))).await;
        assert!(!fixture.model.is_synced(), "what a removed file said is forgotten");
    }
}

#[tokio::test]
async fn a_restart_that_meets_an_object_the_model_refuses_keeps_the_old_one() {
    let bad = STRICT
        .replace("{mtls: {mode: STRICT}}", "{mtls: {mode: DISABLE}, portLevelMtls: {80: {mode: STRICT}}}");
    let policy = STRICT.replace("STRICT", "DISABLE");
    let mut fixture = Fixture::start(&[("pod.yaml", POD), ("policy.yaml", &policy)]).await;
    assert_eq!(fixture.mode(), Some(MtlsMode::Disable));
    fs::write(fixture.path("policy.yaml"), format!("{bad}{}", service("later"))).unwrap();
    fixture.until("the other object of the file", |f| f.services() == ["later"]).await;
    for _ in 0..2 {
        fixture.restart(|_| ()).await;
        fixture.synced().await;
        assert_eq!((fixture.mode(), fixture.services()), (Some(MtlsMode::Disable), vec!["later".to_owned()]));
        assert!(
            fixture.reasons()[0].ends_with("its last good form stays in force"),
            "{:?}",
            fixture.reasons()
        );
    }
}

#[tokio::test]
async fn nothing_is_served_until_everything_was_good_once() {
    let no_port = "spec: {mtls: {mode: STRICT}}";
    let refused = STRICT.replace(no_port, "spec: {portLevelMtls: {80: {mode: STRICT}}}");
    assert_ne!(refused, STRICT);
    for (broken, line) in [(STRICT.replace("spec:", "spce:"), 4), (refused, 4), ("a: [\n".to_owned(), 2)] {
        let fixture = Fixture::begin(&[("pod.yaml", POD), ("policy.yaml", &broken)]);
        fixture.until("the error", |f| !f.reasons().is_empty()).await;
        let reasons = fixture.reasons();
        assert!(reasons[0].contains("never good"), "{reasons:?}");
        // Other files come and go: it is still not known what this one wants.
        fs::write(fixture.path("a.yaml"), service("a")).unwrap();
        fixture.until("another file", |f| f.services() == ["a"]).await;
        assert!(!fixture.model.is_synced(), "{broken}");
        match line {
            4 => fs::write(fixture.path("policy.yaml"), STRICT).unwrap(),
            _ => fs::remove_file(fixture.path("policy.yaml")).unwrap(),
        }
        fixture.synced().await;
        assert_eq!(fixture.reasons(), [""; 0]);
        let expected = if line == 4 { MtlsMode::Strict } else { MtlsMode::Permissive };
        assert_eq!(fixture.mode(), Some(expected));
    }
}

#[tokio::test]
async fn a_restart_while_a_file_is_being_replaced_tells_no_removal() {
    let mut fixture = Fixture::start(&[("a.yaml", &service("a")), ("b.yaml", &service("b"))]).await;
    // Empty, as an editor leaves it for a moment; and gone for good.
    fixture
        .restart(|f| {
            fs::remove_file(f.path("b.yaml")).unwrap();
            fs::write(f.path("a.yaml"), "").unwrap();
        })
        .await;
    fs::write(fixture.path("a.yaml"), service("c")).unwrap();
    fixture.synced().await;
    assert_eq!(fixture.services(), ["c"]);
}

#[tokio::test]
async fn what_the_state_folder_does_not_take_is_told_and_tried_again() {
    let mut fixture = Fixture::start(&[("a.yaml", &service("a"))]).await;
    let (entries, away) = (fixture.state.path().join("last-good"), fixture.state.path().join("away"));
    fs::rename(&entries, &away).unwrap();
    fs::write(fixture.path("a.yaml"), service("b")).unwrap();
    let told = |f: &Fixture| f.reasons().iter().any(|reason| reason.contains("a restart would not know"));
    fixture.until("the complaint", told).await;
    assert_eq!(fixture.services(), ["b"]);
    fs::rename(&away, &entries).unwrap();
    fixture.until("no complaint", |f| !told(f)).await;
    fixture.restart(|f| fs::write(f.path("a.yaml"), "kind: [").unwrap()).await;
    fixture.synced().await;
    assert_eq!(fixture.services(), ["b"]);
}
