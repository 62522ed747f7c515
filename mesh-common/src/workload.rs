//! What a mesh address stands for: `istio.workload.Address`, used to name the peer in metrics.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)] // generated code

tonic::include_proto!("istio.workload");
