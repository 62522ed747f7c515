//! Delta ADS, as simple as it can be: what is there is sent, what is not is removed, changes follow.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use mesh_common::xds::proto::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use mesh_common::xds::proto::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Nack, Shared};

pub(super) struct Ads(pub(super) Arc<Shared>);

/// Names that a stream holds, by type URL and name, each with the version that was sent.
type Held = BTreeMap<(String, String), Option<u64>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.0.lock().calls += 1;
        let (answers, receiver) = mpsc::channel(64);
        tokio::spawn(run(Arc::clone(&self.0), request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn run(
    shared: Arc<Shared>,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
) {
    let mut changed = shared.changed.subscribe();
    let mut held = Held::new();
    loop {
        let batch = tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => on_request(&shared, &mut held, request),
                Ok(None) | Err(_) => return,
            },
            alive = changed.changed() => {
                if alive.is_err() {
                    return;
                }
                changes(&shared, &mut held)
            }
        };
        for answer in batch {
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    }
}

fn on_request(
    shared: &Shared,
    held: &mut Held,
    request: DeltaDiscoveryRequest,
) -> Vec<DeltaDiscoveryResponse> {
    let url = request.type_url;
    if let Some(error) = request.error_detail {
        shared.lock().nacks.push(Nack { type_url: url.clone(), reason: error.message });
    }
    for name in request.resource_names_unsubscribe {
        held.remove(&(url.clone(), name));
    }
    let mut batch = Vec::new();
    for name in request.resource_names_subscribe {
        let key = (url.clone(), name);
        let found = shared.lock().resources.get(&key).cloned();
        held.insert(key.clone(), found.as_ref().map(|(version, _)| *version));
        batch.push(answer(&key, found));
    }
    batch
}

fn changes(shared: &Shared, held: &mut Held) -> Vec<DeltaDiscoveryResponse> {
    let state = shared.lock();
    let mut batch = Vec::new();
    for (key, sent) in held {
        let found = state.resources.get(key);
        let version = found.map(|(version, _)| *version);
        if version != *sent {
            *sent = version;
            batch.push(answer(key, found.cloned()));
        }
    }
    batch
}

fn answer(
    (url, name): &(String, String),
    found: Option<(u64, mesh_common::xds::protobuf::Any)>,
) -> DeltaDiscoveryResponse {
    let mut answer = DeltaDiscoveryResponse { type_url: url.clone(), ..DeltaDiscoveryResponse::default() };
    match found {
        Some((version, resource)) => {
            answer.nonce = format!("{name} {version}");
            answer.resources.push(Resource {
                name: name.clone(),
                version: version.to_string(),
                resource: Some(resource),
                ..Resource::default()
            });
        }
        None => {
            answer.nonce = format!("{name} removed");
            answer.removed_resources.push(name.clone());
        }
    }
    answer
}
