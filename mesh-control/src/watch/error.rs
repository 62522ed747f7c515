//! Why a folder is no source of configuration. Every reason names the folder.

use std::io;
use std::path::PathBuf;

/// Why a folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// It cannot be read.
    #[error("the folder {path} cannot be read: {reason}; name an existing folder that this user may read")]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The kernel does not watch it.
    #[error(
        "the folder {path} cannot be watched: {reason}; see sysctl fs.inotify.max_user_watches and max_user_instances"
    )]
    Unwatchable {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// What was good last cannot be kept.
    #[error(
        "the state folder {path} cannot keep the last good configuration: {reason}; give a folder that this user may \
         write"
    )]
    State {
        /// The state folder.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
}
