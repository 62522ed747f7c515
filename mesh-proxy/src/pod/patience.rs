//! The time before the proxy is ready, which may be long: mesh-control may be away, or not even its name be known. One
//! line now and then says what is missing; the connections themselves are tried again by those who need them.

use std::path::PathBuf;
use std::time::Duration;

use mesh_common::process::Readiness;
use mesh_common::trust::TrustBundle;

use crate::tls::TlsContext;
use crate::xds::XdsStatus;

/// How often it is said.
const EVERY: Duration = Duration::from_secs(10);

/// The file with the mesh's roots, which may come after the process has begun: kubelet mounts what is there, when it is.
pub(crate) struct LateBundle {
    /// Where it will be.
    pub(crate) path: PathBuf,
    /// Where its roots count.
    pub(crate) tls: TlsContext,
}

/// Ends when the proxy is ready; until then says what is missing.
pub(crate) async fn until_ready(
    readiness: Readiness,
    control: String,
    status: XdsStatus,
    bundle: Option<LateBundle>,
) {
    for round in 1_u32.. {
        tokio::time::sleep(EVERY).await;
        let missing = readiness.missing().join(", ");
        if missing.is_empty() {
            return;
        }
        // What the control plane itself says of roots counts alone.
        if let Some(bundle) = bundle.as_ref().filter(|_| status.totals().responses == 0) {
            bundle.look();
        }
        let reason = status.connection().last_error.unwrap_or_else(|| "no answer yet".to_owned());
        let waited = EVERY * round;
        tracing::warn!(missing, control, reason, ?waited, "not ready yet, trying on");
    }
}

impl LateBundle {
    fn look(&self) {
        let Ok(text) = std::fs::read_to_string(&self.path) else { return };
        if let Ok(roots) = TrustBundle::from_pem(&text) {
            self.tls.add_roots(&roots);
        }
    }
}
