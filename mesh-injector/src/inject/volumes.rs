//! The proxy's volumes: memory for key and last configuration, the token, the roots; and the Secrets that pulling its
//! image takes. All are readable by the proxy's user whatever the pod's fsGroup is.

use serde_json::{Value, json};

use super::present::{array, put};
use crate::names::{ROOT_CONFIG_MAP, ROOT_VOLUME, STATE_VOLUME, TOKEN_AUDIENCE, TOKEN_VOLUME};
use crate::settings::Settings;

/// Readable by everybody in the pod who has it mounted: only the proxy has.
const MODE: u32 = 0o644;
const TOKEN_SECONDS: u32 = 3600;

/// Adds what is not there.
pub(super) fn add(out: &mut Value, settings: &Settings) {
    let spec = &mut out["spec"];
    let volumes = array(spec, "volumes");
    for volume in [
        json!({ "name": STATE_VOLUME, "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } }),
        json!({ "name": TOKEN_VOLUME, "projected": { "defaultMode": MODE, "sources": [
            { "serviceAccountToken": {
                "audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_VOLUME,
            } },
        ] } }),
        json!({ "name": ROOT_VOLUME, "configMap": {
            "name": ROOT_CONFIG_MAP, "optional": true, "defaultMode": MODE,
        } }),
    ] {
        put(volumes, volume, Vec::len);
    }
    if !settings.proxy.image_pull_secrets.is_empty() {
        let secrets = array(spec, "imagePullSecrets");
        for name in &settings.proxy.image_pull_secrets {
            put(secrets, json!({ "name": name }), Vec::len);
        }
    }
}
