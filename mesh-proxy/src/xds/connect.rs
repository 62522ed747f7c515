//! The way to the control plane, with this proxy's errors. All of it is [`mesh_common::identity::connect`].

pub use mesh_common::identity::connect::{
    ConnectError, ControlAddress, ControlIo, ControlTls, Dial, Dialled, Dialling, channel,
};

use crate::tls::TlsError;

/// A [`Dial`] over TCP and TLS. `tls` is asked at each connect, so that a new bundle or certificate counts.
pub fn dial_tls(
    control: ControlAddress,
    tls: impl Fn() -> Result<ControlTls, TlsError> + Send + Sync + 'static,
) -> Dial {
    mesh_common::identity::connect::dial_tls(control, tls)
}
