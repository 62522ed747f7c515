//! One stream, from the dial to its end. Look-ups are taken in at every await: nobody waits for a connection
//! to learn that their question has been noted.

use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use mesh_common::error::in_full;
use mesh_common::xds::proto::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_common::xds::proto::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

use super::connect::{self, Dial};
use super::state::State;
use crate::config::store::Demand;

/// Requests on their way into HTTP/2.
const REQUESTS_BOUND: usize = 16;
/// Limit for the answer's headers.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle look-ups are searched for this often.
const TICK: Duration = Duration::from_secs(30);
/// The largest response that is taken.
const RESPONSE_BOUND: usize = 32 << 20;
/// Look-ups taken in before the questions go out together.
const DEMAND_BATCH: usize = 256;

/// Why a stream ended.
pub(super) enum End {
    /// Nobody needs configuration any more.
    StoreGone,
    /// There is a workload certificate now.
    Certificate,
    /// For this reason.
    Failed(String),
}

type Demands = mpsc::Receiver<Demand>;

/// Opens a stream and serves it to its end.
pub(super) async fn run(
    state: &mut State,
    dial: &Dial,
    certificate: &mut watch::Receiver<bool>,
    demands: &mut Demands,
) -> End {
    let (requests, queued) = mpsc::channel(REQUESTS_BOUND);
    // Only a certificate that comes after the dial is news: a stream is never opened again for the same one.
    let had_certificate = *certificate.borrow_and_update();
    let responses = match attended(state, demands, Box::pin(open(dial.clone(), queued))).await {
        None => return End::StoreGone,
        Some(Err(reason)) => return End::Failed(reason),
        Some(Ok(opened)) => opened,
    };
    state.stream_opened();
    serve(state, responses, requests, (!had_certificate).then_some(certificate), demands).await
}

/// Waits before the next attempt. Breaks when nobody needs configuration any more.
pub(super) async fn wait(state: &mut State, wait: Duration, demands: &mut Demands) -> ControlFlow<()> {
    match attended(state, demands, Box::pin(tokio::time::sleep(wait))).await {
        Some(()) => ControlFlow::Continue(()),
        None => ControlFlow::Break(()),
    }
}

/// Runs `work` while look-ups are taken in. `None` when nobody can ask any more.
async fn attended<T>(
    state: &mut State,
    demands: &mut Demands,
    mut work: impl Future<Output = T> + Unpin,
) -> Option<T> {
    loop {
        tokio::select! {
            result = &mut work => return Some(result),
            demand = demands.recv() => take_in(state, demand?, demands),
        }
    }
}

fn take_in(state: &mut State, first: Demand, demands: &mut Demands) {
    state.demand(first);
    for _ in 1..DEMAND_BATCH {
        let Ok(demand) = demands.try_recv() else { break };
        state.demand(demand);
    }
    state.settle();
}

async fn open(
    dial: Dial,
    requests: mpsc::Receiver<DeltaDiscoveryRequest>,
) -> Result<Streaming<DeltaDiscoveryResponse>, String> {
    let (channel, token) = connect::channel(dial).await.map_err(|error| in_full(&error))?;
    let mut request = Request::new(ReceiverStream::new(requests));
    if let Some(token) = token {
        let mut value = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "the token has characters that no header can carry".to_owned())?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(RESPONSE_BOUND);
    match timeout(OPEN_TIMEOUT, client.delta_aggregated_resources(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(in_words(&status)),
        Err(_) => Err(format!("the control plane did not open the stream within {OPEN_TIMEOUT:?}")),
    }
}

async fn serve(
    state: &mut State,
    mut responses: Streaming<DeltaDiscoveryResponse>,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    mut certificate: Option<&mut watch::Receiver<bool>>,
    demands: &mut Demands,
) -> End {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            permit = requests.reserve(), if state.has_request() => match permit {
                Ok(permit) => if let Some(request) = state.next_request() { permit.send(request) },
                Err(_) => return closed(&mut responses).await,
            },
            response = responses.message(), if !state.is_congested() => match response {
                Ok(Some(response)) => {
                    if let Err(error) = state.receive(response) {
                        return End::Failed(error.to_string());
                    }
                    state.settle();
                }
                Ok(None) => return End::Failed("the control plane closed the stream".to_owned()),
                Err(status) => return End::Failed(in_words(&status)),
            },
            demand = demands.recv() => match demand {
                Some(demand) => take_in(state, demand, demands),
                None => return End::StoreGone,
            },
            () = certified(&mut certificate) => return End::Certificate,
            _ = tick.tick() => {
                state.tick();
                state.settle();
            }
        }
    }
}

/// The requests' side is gone: the reason comes on the other one.
async fn closed(responses: &mut Streaming<DeltaDiscoveryResponse>) -> End {
    match timeout(OPEN_TIMEOUT, responses.message()).await {
        Ok(Err(status)) => End::Failed(in_words(&status)),
        _ => End::Failed("the control plane closed the stream".to_owned()),
    }
}

/// Resolves when a stream that was opened without a certificate can be opened with one.
async fn certified(certificate: &mut Option<&mut watch::Receiver<bool>>) {
    if let Some(certificate) = certificate
        && certificate.wait_for(|there| *there).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn in_words(status: &Status) -> String {
    format!("the control plane answered {:?}: {}", status.code(), in_full_message(status))
}

fn in_full_message(status: &Status) -> String {
    let cause = std::error::Error::source(status).map(in_full);
    match cause {
        Some(cause) => format!("{}: {cause}", status.message()),
        None => status.message().to_owned(),
    }
}
