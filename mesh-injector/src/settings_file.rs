//! The settings file, read again when it changes. A file that cannot be used never replaces settings that can.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;

use crate::metrics::Metrics;
use crate::settings::Settings;

/// The kubelet brings a changed ConfigMap within a minute or so; nobody waits for two seconds more.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Larger than any settings.
const BOUND: u64 = 1 << 20;

/// The settings in force, and the file they come from.
pub struct SettingsFile {
    path: PathBuf,
    text: String,
    current: Arc<ArcSwap<Settings>>,
    metrics: Metrics,
}

impl SettingsFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read or used.
    pub async fn open(path: &Path, metrics: Metrics) -> anyhow::Result<Self> {
        let text = read(path).await.with_context(|| format!("cannot read {}", path.display()))?;
        let settings =
            Settings::parse(&text).with_context(|| format!("{} cannot be used", path.display()))?;
        metrics.settings_valid(true);
        Ok(Self { path: path.to_owned(), text, current: Arc::new(ArcSwap::from_pointee(settings)), metrics })
    }

    /// The settings in force, now and later.
    pub fn current(&self) -> Arc<ArcSwap<Settings>> {
        Arc::clone(&self.current)
    }

    /// Follows the file, for ever.
    pub async fn follow(mut self) {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let text = match read(&self.path).await {
            Ok(text) if text == self.text => return,
            Ok(text) => text,
            Err(error) => {
                tracing::warn!(%error, file = %self.path.display(), "the settings cannot be read; those in force stay");
                return;
            }
        };
        match Settings::parse(&text) {
            Ok(settings) => {
                self.current.store(Arc::new(settings));
                self.metrics.settings_valid(true);
                tracing::info!("new settings are in force; pods that run keep what they have");
            }
            Err(error) => {
                self.metrics.settings_valid(false);
                tracing::error!(%error, file = %self.path.display(), "the settings cannot be used; those in force stay");
            }
        }
        self.text = text;
    }
}

async fn read(path: &Path) -> std::io::Result<String> {
    let size = tokio::fs::metadata(path).await?.len();
    if size > BOUND {
        let reason = format!("it has {size} bytes, more than {BOUND}");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, reason));
    }
    tokio::fs::read_to_string(path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_good_settings_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.yaml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("proxy: {image: one}");
        let mut file = SettingsFile::open(&path, Metrics::new()).await.unwrap();
        let current = file.current();
        let large = format!("proxy: {{image: large}}\n#{}", "x".repeat(1 << 20));
        for (text, image) in [
            ("proxy: {image: two}", "two"),
            ("proxy: {imag: three}", "two"),
            (large.as_str(), "two"),
            ("proxy: {image: four}", "four"),
        ] {
            write(text);
            file.look().await;
            assert_eq!(current.load().proxy.image, image, "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        file.look().await;
        assert_eq!(current.load().proxy.image, "four");
        assert!(SettingsFile::open(&path, Metrics::new()).await.is_err());
    }
}
