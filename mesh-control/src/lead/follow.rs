//! A watch of the leader: hands on what the API server tells, and goes on after each failure. It must never take a
//! failure for a deletion.

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use kube::runtime::watcher::{self, Event};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A kind that is not defined is looked for this often.
const ABSENT_PAUSE: Duration = Duration::from_secs(5);

/// Hands on events until it is dropped. A kind that is not defined has no objects.
pub(super) async fn follow<K>(
    what: &'static str,
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    mut take: impl FnMut(Event<K>) + Send,
) {
    let mut events = pin!(events);
    let mut pause = FIRST_PAUSE;
    let mut failing = None;
    while let Some(event) = events.next().await {
        let error = match event {
            Ok(event) => {
                if !matches!(event, Event::Init) {
                    (pause, failing) = (FIRST_PAUSE, None);
                }
                take(event);
                continue;
            }
            Err(error) => error,
        };
        let label = label(&error);
        match label {
            // The normal end of a long watch, or of one that slept too long: it begins anew at once.
            "expired" => tracing::debug!(what, %error, "a watch begins anew"),
            "absent" => {
                take(Event::Init);
                take(Event::InitDone);
                if failing != Some(label) {
                    tracing::info!(
                        what,
                        "this kind is not defined in the cluster; waiting for its definition"
                    );
                }
                tokio::time::sleep(ABSENT_PAUSE).await;
            }
            _ => {
                if failing != Some(label) {
                    tracing::warn!(what, %error, "the API server does not tell the leader of changes; trying again");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        failing = Some(label);
    }
}

fn label(error: &watcher::Error) -> &'static str {
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        watcher::Error::WatchError(status) => status.code,
        _ => return "unavailable",
    };
    match code {
        410 => "expired",
        404 => "absent",
        403 => "forbidden",
        _ => "unavailable",
    }
}
