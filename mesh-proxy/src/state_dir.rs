//! Files of the state folder: what a restarted proxy needs to serve again with the control plane away. Meant for
//! a memory volume; nobody else may read them, and half a file is never seen.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// The content of a file; `None` when there is none.
///
/// # Errors
/// When the system says no, or the file is larger than `bound` bytes.
pub(crate) fn read(path: &Path, bound: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(bound.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > bound {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bound} bytes")));
    }
    Ok(Some(content))
}

/// Writes it whole or not at all, readable by this user only. Makes the folder when it is not there.
///
/// # Errors
/// When the system says no; the old content stays.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // `create_new`: a file that somebody else put there, readable to others, is never written to.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}
