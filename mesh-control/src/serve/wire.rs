//! The aggregated discovery service on the wire. The messages that go out are written here by hand, field
//! numbers as published by Envoy, because a resource's body is one shared buffer and never a copy per stream.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::delta::{DeltaRequest, DeltaResponse};
use super::protocol::{Incoming, Told};
use super::sotw::{SotwRequest, SotwResponse};

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`, the part that is sent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireResponse {
    /// New and changed resources.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<WireResource>,
    /// The type of all of them.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be repeated in the answer.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names that stand for nothing.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// `envoy.service.discovery.v3.DiscoveryResponse`, the part that is sent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireSotwResponse {
    /// The version of all that the client holds then.
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// Resources.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<WireAny>,
    /// The type of all of them.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be repeated in the answer.
    #[prost(string, tag = "5")]
    pub nonce: String,
}

/// `envoy.service.discovery.v3.Resource`, the part that is sent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireResource {
    /// Its version.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Its body.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<WireAny>,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// `google.protobuf.Any` over a shared buffer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireAny {
    /// The type.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

impl From<DeltaResponse> for WireResponse {
    fn from(response: DeltaResponse) -> Self {
        let DeltaResponse { kind, nonce, resources, removed } = response;
        let resource = |(name, resource): (Arc<str>, Arc<super::cache::Resource>)| WireResource {
            version: resource.version.to_string(),
            resource: Some(WireAny { type_url: kind.url().to_owned(), value: resource.body.clone() }),
            name: name.to_string(),
        };
        Self {
            resources: resources.into_iter().map(resource).collect(),
            type_url: kind.url().to_owned(),
            nonce,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<SotwResponse> for WireSotwResponse {
    fn from(response: SotwResponse) -> Self {
        let SotwResponse { kind, version, nonce, resources } = response;
        let any = |resource: Arc<super::cache::Resource>| WireAny {
            type_url: kind.url().to_owned(),
            value: resource.body.clone(),
        };
        Self {
            version_info: version.to_string(),
            resources: resources.into_iter().map(any).collect(),
            type_url: kind.url().to_owned(),
            nonce,
        }
    }
}

/// Reads an incremental request.
///
/// # Errors
/// When it has a type that is not served, or a field that is not.
pub fn decode(request: DeltaDiscoveryRequest) -> Result<(ResourceType, DeltaRequest), Status> {
    let DeltaDiscoveryRequest {
        // Taken from the first request by whoever opens the stream; later ones may repeat it.
        node: _,
        type_url,
        resource_names_subscribe,
        resource_names_unsubscribe,
        resource_locators_subscribe,
        resource_locators_unsubscribe,
        initial_resource_versions,
        response_nonce,
        error_detail,
    } = request;
    if !resource_locators_subscribe.is_empty() || !resource_locators_unsubscribe.is_empty() {
        return Err(Status::invalid_argument(
            "resource_locators_subscribe and resource_locators_unsubscribe are not supported; use resource names",
        ));
    }
    let kind = resource_type(&type_url)?;
    let request = DeltaRequest {
        subscribe: resource_names_subscribe,
        unsubscribe: resource_names_unsubscribe,
        initial_versions: initial_resource_versions,
        nonce: response_nonce,
        error: error_detail.map(|status| status.message),
    };
    Ok((kind, request))
}

/// Reads a state-of-the-world request.
///
/// # Errors
/// When it has a type that is not served, or a field that is not.
pub fn decode_sotw(request: DiscoveryRequest) -> Result<(ResourceType, SotwRequest), Status> {
    let DiscoveryRequest {
        version_info,
        // Taken from the first request by whoever opens the stream; later ones may repeat it.
        node: _,
        resource_names,
        resource_locators,
        type_url,
        response_nonce,
        error_detail,
    } = request;
    if !resource_locators.is_empty() {
        return Err(Status::invalid_argument("resource_locators is not supported; use resource names"));
    }
    let request = SotwRequest {
        names: resource_names,
        version: version_info,
        nonce: response_nonce,
        error: error_detail.map(|status| status.message),
    };
    Ok((resource_type(&type_url)?, request))
}

fn resource_type(url: &str) -> Result<ResourceType, Status> {
    ResourceType::from_url(url).ok_or_else(|| {
        Status::invalid_argument(format!("type_url: resources of type {url:?} are not served"))
    })
}

/// The responses of one stream, before they are written.
pub type Outgoing = ReceiverStream<Result<Told, Status>>;

/// Takes streams.
pub trait StreamHandler: Send + Sync + 'static {
    /// Takes a stream. Answers once the caller is proven, before the first request: the client may wait for that. Its
    /// responses are of the form of its requests.
    ///
    /// # Errors
    /// When the caller cannot be told or the server takes no more streams.
    fn open(&self, request: Request<Incoming>) -> impl Future<Output = Result<Outgoing, Status>> + Send;
}

/// The service.
pub struct DiscoveryService<H>(Arc<H>);

/// Requests above this size are refused.
const MAX_REQUEST_BYTES: usize = 4 << 20;

impl<H: StreamHandler> DiscoveryService<H> {
    /// The service on top of a handler.
    pub fn new(handler: Arc<H>) -> Self {
        Self(handler)
    }
}

impl<H> Clone for DiscoveryService<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H> NamedService for DiscoveryService<H> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<H: StreamHandler> tower::Service<http::Request<Body>> for DiscoveryService<H> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let handler = Arc::clone(&self.0);
        Box::pin(async move {
            Ok(match request.uri().path().rsplit('/').next() {
                Some("DeltaAggregatedResources") => {
                    let codec = ProstCodec::<WireResponse, DeltaDiscoveryRequest>::default();
                    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST_BYTES);
                    grpc.streaming(Delta(handler), request).await
                }
                Some("StreamAggregatedResources") => {
                    let codec = ProstCodec::<WireSotwResponse, DiscoveryRequest>::default();
                    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST_BYTES);
                    grpc.streaming(Sotw(handler), request).await
                }
                _ => Status::unimplemented("there is no such method").into_http(),
            })
        })
    }
}

/// Messages as they go out.
type Written<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers with what `handler` opens, each response written by `write`.
fn answer<H: StreamHandler, T: Send + 'static>(
    handler: Arc<H>,
    request: Request<Incoming>,
    write: fn(Told) -> Option<T>,
) -> Boxed<Result<Response<Written<T>>, Status>> {
    Box::pin(async move {
        let responses = handler.open(request).await?;
        let written = responses.filter_map(move |told| told.map(write).transpose());
        Ok(Response::new(Box::pin(written) as Written<T>))
    })
}

/// The incremental form.
struct Delta<H>(Arc<H>);

impl<H: StreamHandler> StreamingService<DeltaDiscoveryRequest> for Delta<H> {
    type Response = WireResponse;
    type ResponseStream = Written<WireResponse>;
    type Future = Boxed<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        answer(Arc::clone(&self.0), request.map(Incoming::Delta), |told| match told {
            Told::Delta(response) => Some(response.into()),
            Told::Sotw(_) => None,
        })
    }
}

/// The form in which a response says everything that there is.
struct Sotw<H>(Arc<H>);

impl<H: StreamHandler> StreamingService<DiscoveryRequest> for Sotw<H> {
    type Response = WireSotwResponse;
    type ResponseStream = Written<WireSotwResponse>;
    type Future = Boxed<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        answer(Arc::clone(&self.0), request.map(Incoming::Sotw), |told| match told {
            Told::Sotw(response) => Some(response.into()),
            Told::Delta(_) => None,
        })
    }
}
