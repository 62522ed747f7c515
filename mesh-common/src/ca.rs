//! The certificate service: messages, client and server of `istio.v1.auth.IstioCertificateService`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)] // generated code

tonic::include_proto!("istio.v1.auth");
