//! gRPC's own xDS client against the control plane. `MESH_GRPC_PYTHON` names a Python with grpcio.

use mesh_test::scenario::grpc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resolves_and_follows() -> anyhow::Result<()> {
    Box::pin(grpc::resolves_and_follows()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secured_where_plaintext_is_refused() -> anyhow::Result<()> {
    Box::pin(grpc::secured("STRICT")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secured_where_plaintext_is_taken_too() -> anyhow::Result<()> {
    Box::pin(grpc::secured("PERMISSIVE")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_is_refused_by_strict_servers() -> anyhow::Result<()> {
    Box::pin(grpc::plaintext_is_refused_by_strict_servers()).await
}
