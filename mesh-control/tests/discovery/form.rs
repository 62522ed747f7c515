//! The two forms of the protocol as a client speaks them: each test of what a stream may do runs over both.

use std::collections::HashMap;

use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::cluster::v3::Cluster;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::config::endpoint::v3::ClusterLoadAssignment;
use mesh_common::xds::proto::config::listener::v3::Listener;
use mesh_common::xds::proto::config::route::v3::RouteConfiguration;
use mesh_common::xds::proto::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_common::xds::proto::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use mesh_common::xds::protobuf::Any;
use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// A form, and what a client of it has to remember.
pub(crate) trait Form: Default {
    /// The method of the service.
    const METHOD: &'static str;
    type Request: Send + 'static;
    type Response;

    /// Opens a stream.
    async fn open(
        channel: Channel,
        request: Request<ReceiverStream<Self::Request>>,
    ) -> Result<Streaming<Self::Response>, Status>;

    /// Says who asks.
    fn introduce(request: &mut Self::Request, node: Node);

    /// Asks for these names beside those that were asked for.
    fn more(&mut self, type_url: &str, names: Vec<String>, nonce: &str) -> Self::Request;

    /// Takes a response.
    fn acknowledge(&mut self, response: &Self::Response) -> Self::Request;

    fn type_url(response: &Self::Response) -> &str;

    /// Its type, the names it has, `-` and the names it says to be removed.
    fn summary(response: &Self::Response) -> String;
}

/// Incremental: only what is new is said.
#[derive(Debug, Default)]
pub(crate) struct Delta;

impl Form for Delta {
    const METHOD: &'static str = "DeltaAggregatedResources";
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    async fn open(
        channel: Channel,
        request: Request<ReceiverStream<Self::Request>>,
    ) -> Result<Streaming<Self::Response>, Status> {
        let answer =
            AggregatedDiscoveryServiceClient::new(channel).delta_aggregated_resources(request).await?;
        Ok(answer.into_inner())
    }

    fn introduce(request: &mut Self::Request, node: Node) {
        request.node = Some(node);
    }

    fn more(&mut self, type_url: &str, names: Vec<String>, nonce: &str) -> Self::Request {
        DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names,
            response_nonce: nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn acknowledge(&mut self, response: &Self::Response) -> Self::Request {
        self.more(&response.type_url, Vec::new(), &response.nonce)
    }

    fn type_url(response: &Self::Response) -> &str {
        &response.type_url
    }

    fn summary(response: &Self::Response) -> String {
        let names = response.resources.iter().map(|resource| resource.name.clone());
        let removed = response.removed_resources.iter().map(|name| format!("-{name}"));
        line(&response.type_url, names.chain(removed))
    }
}

/// State of the world: each request says all that is wanted.
#[derive(Debug, Default)]
pub(crate) struct StateOfTheWorld {
    wanted: HashMap<String, Wanted>,
}

#[derive(Debug, Default)]
struct Wanted {
    names: Vec<String>,
    nonce: String,
    version: String,
}

impl Form for StateOfTheWorld {
    const METHOD: &'static str = "StreamAggregatedResources";
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    async fn open(
        channel: Channel,
        request: Request<ReceiverStream<Self::Request>>,
    ) -> Result<Streaming<Self::Response>, Status> {
        let answer =
            AggregatedDiscoveryServiceClient::new(channel).stream_aggregated_resources(request).await?;
        Ok(answer.into_inner())
    }

    fn introduce(request: &mut Self::Request, node: Node) {
        request.node = Some(node);
    }

    fn more(&mut self, type_url: &str, names: Vec<String>, nonce: &str) -> Self::Request {
        let wanted = self.wanted.entry(type_url.to_owned()).or_default();
        wanted.names.extend(names);
        let nonce = if nonce.is_empty() { &wanted.nonce } else { nonce };
        DiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names: wanted.names.clone(),
            version_info: wanted.version.clone(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    fn acknowledge(&mut self, response: &Self::Response) -> Self::Request {
        let wanted = self.wanted.entry(response.type_url.clone()).or_default();
        wanted.nonce.clone_from(&response.nonce);
        wanted.version.clone_from(&response.version_info);
        self.more(&response.type_url, Vec::new(), "")
    }

    fn type_url(response: &Self::Response) -> &str {
        &response.type_url
    }

    fn summary(response: &Self::Response) -> String {
        line(&response.type_url, response.resources.iter().map(name))
    }
}

fn line(type_url: &str, names: impl Iterator<Item = String>) -> String {
    let kind = ResourceType::from_url(type_url).unwrap().short().to_owned();
    std::iter::once(kind).chain(names).collect::<Vec<_>>().join(" ")
}

/// In this form only the resource itself says what it is called.
fn name(any: &Any) -> String {
    let value = any.value.as_slice();
    match ResourceType::from_url(&any.type_url).unwrap() {
        ResourceType::Cluster => Cluster::decode(value).unwrap().name,
        ResourceType::Endpoints => ClusterLoadAssignment::decode(value).unwrap().cluster_name,
        ResourceType::Listener => Listener::decode(value).unwrap().name,
        ResourceType::Route => RouteConfiguration::decode(value).unwrap().name,
        other => panic!("{other:?} has no name in itself"),
    }
}

/// Each of these tests, over both forms.
macro_rules! over_both_forms {
    ($($name:ident),* $(,)?) => {
        mod delta {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name::<crate::form::Delta>().await;
                }
            )*
        }

        mod state_of_the_world {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name::<crate::form::StateOfTheWorld>().await;
                }
            )*
        }
    };
}
pub(crate) use over_both_forms;
