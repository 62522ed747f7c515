//! The way to the API server. Makes the client; asks nothing.

pub use kube::Client;

/// Why there is no API server to ask.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a service account nor a KUBECONFIG that can be used.
    #[error(
        "the API server of Kubernetes is not known: {0}; run this in a pod with a service account, or set KUBECONFIG"
    )]
    Config(String),
    /// The configuration names something that cannot be used.
    #[error(
        "the way to the API server of Kubernetes cannot be used: {0}; mend the file that KUBECONFIG names"
    )]
    Client(String),
}

/// The client, by KUBECONFIG or by the pod's service account.
///
/// # Errors
/// When neither is there, or what is there cannot be used.
pub async fn connect() -> Result<Client, ConnectError> {
    let config = kube::Config::infer().await.map_err(|error| ConnectError::Config(error.to_string()))?;
    Client::try_from(config).map_err(|error| ConnectError::Client(error.to_string()))
}
