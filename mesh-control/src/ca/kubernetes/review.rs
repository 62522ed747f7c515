//! Tokens of a mesh on Kubernetes: the API server says whose they are (TokenReview), always for our audience, never
//! for any. What it says is believed only if every part of it is as it must be. No answer is kept: a token is worth
//! nothing from the moment on in which its pod is gone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::{Api, PostParams};
use mesh_common::spiffe::is_kubernetes_name;
use mesh_common::xds::names::TOKEN_AUDIENCE;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::ca::rate::{Pace, RateLimit};
use crate::ca::token::{Claimed, MAX_TOKEN_BYTES, TokenError};
use crate::fault::{Asked, ask, shortened};

/// Reviews under way. The API server answers one in some milliseconds.
const AT_ONCE: usize = 32;
/// For one review with its wait for a place.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of one address: enough for the pods of a node's own network, too little to keep others out.
const RATE: Pace = Pace { burst: 60, interval: Duration::from_millis(250) };
/// More addresses than this do not ask at once.
const RATED_ADDRESSES: usize = 100_000;

const ASKED: Asked<'_> = Asked {
    verb: "create",
    group: "authentication.k8s.io",
    resource: "tokenreviews",
    namespace: "",
    name: "",
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

/// What is counted of reviews.
#[derive(Debug)]
struct ReviewMetrics {
    reviews: Family<ByResult, Counter>,
    seconds: Histogram,
}

impl ReviewMetrics {
    fn new(registry: &mut Registry) -> Self {
        let seconds = Histogram::new([0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0]);
        let made = Self { reviews: Family::default(), seconds };
        let registry = registry.sub_registry_with_prefix("mesh_control");
        registry.register(
            "token_reviews",
            "Tokens that the API server was asked about, by result",
            made.reviews.clone(),
        );
        registry.register("token_review_seconds", "Time of a token review", made.seconds.clone());
        made
    }
}

/// Asks the API server whose a token is.
pub struct TokenReviewer {
    api: Api<TokenReview>,
    places: Semaphore,
    rate: Mutex<RateLimit>,
    metrics: ReviewMetrics,
}

impl TokenReviewer {
    /// Asks with this client, and registers what it counts.
    pub fn new(client: kube::Client, registry: &mut Registry) -> Self {
        let metrics = ReviewMetrics::new(registry);
        let rate = Mutex::new(RateLimit::new(RATE, RATED_ADDRESSES));
        Self { api: Api::all(client), places: Semaphore::new(AT_ONCE), rate, metrics }
    }

    /// What a token proves, as the API server says. `from` is the address that it came from.
    ///
    /// # Errors
    /// When it proves nothing, or the API server cannot be asked.
    pub async fn review(&self, token: &str, from: IpAddr) -> Result<Claimed, TokenError> {
        let begin = Instant::now();
        let outcome = self.ask(token, from).await;
        let result = match &outcome {
            Ok(_) => "ok",
            Err(TokenError::TooOften) => "rate",
            Err(TokenError::Unavailable(_)) => "unavailable",
            Err(_) => "refused",
        };
        self.metrics.reviews.get_or_create(&ByResult { result }).inc();
        self.metrics.seconds.observe(begin.elapsed().as_secs_f64());
        outcome
    }

    async fn ask(&self, token: &str, from: IpAddr) -> Result<Claimed, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLarge);
        }
        if !self.may_ask(from) {
            return Err(TokenError::TooOften);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let call = async {
            let _place = self.places.acquire().await;
            self.api.create(&PostParams::default(), &review).await
        };
        let reviewed = ask(ASKED, PATIENCE, call).await.map_err(|fault| {
            // Whatever it is, it is not the caller's fault.
            tracing::warn!(error = %fault, "a token cannot be reviewed");
            TokenError::Unavailable(fault.to_string())
        })?;
        proven(reviewed.status.unwrap_or_default(), token)
    }

    fn may_ask(&self, from: IpAddr) -> bool {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        rate.allow(&from.to_string(), Instant::now())
    }
}

/// What an answer proves; every part of it must be as it must be.
pub(in crate::ca) fn proven(status: TokenReviewStatus, token: &str) -> Result<Claimed, TokenError> {
    let TokenReviewStatus { audiences, authenticated, error, user } = status;
    let refused = |why: String| Err(TokenError::Invalid(why));
    if let Some(error) = error.filter(|error| !error.is_empty()) {
        return refused(format!("the API server says: {}", shortened(&error)));
    }
    if authenticated != Some(true) {
        return refused("the API server does not know it".to_owned());
    }
    // An API server that knows no audiences gives none back, whatever the token is for.
    if !audiences.iter().flatten().any(|audience| audience == TOKEN_AUDIENCE) {
        return refused(format!("its audience is not {TOKEN_AUDIENCE}"));
    }
    let UserInfo { username, groups, extra, uid: _ } = user.unwrap_or_default();
    if !groups.iter().flatten().any(|group| group == "system:serviceaccounts") {
        return refused("it is not one of a service account".to_owned());
    }
    let username = username.unwrap_or_default();
    let Some((namespace, service_account)) = service_account(&username) else {
        return refused(format!("{:?} is not a service account", shortened(&username)));
    };
    let extra = extra.unwrap_or_default();
    let (pod, uid) = (only(&extra, "pod-name"), only(&extra, "pod-uid"));
    let (Some(pod), Some(uid)) = (pod, uid) else {
        return refused("it is not bound to a pod; only projected tokens are".to_owned());
    };
    let not_after =
        end_of(token).ok_or_else(|| TokenError::Invalid("it does not say when it ends".to_owned()))?;
    Ok(Claimed {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: pod.to_owned(),
        uid: uid.to_owned(),
        node: only(&extra, "node-name").map(str::to_owned),
        not_after,
    })
}

/// `system:serviceaccount:<namespace>:<name>`, exactly.
fn service_account(username: &str) -> Option<(&str, &str)> {
    let mut parts = username.strip_prefix("system:serviceaccount:")?.split(':');
    let (namespace, name) = (parts.next()?, parts.next()?);
    let good = is_kubernetes_name(namespace) && !namespace.contains('.') && is_kubernetes_name(name);
    (good && parts.next().is_none()).then_some((namespace, name))
}

/// The value of an extra that has exactly one.
fn only<'a>(extra: &'a BTreeMap<String, Vec<String>>, name: &str) -> Option<&'a str> {
    match extra.get(&format!("authentication.kubernetes.io/{name}"))?.as_slice() {
        [one] if !one.is_empty() => Some(one),
        _ => None,
    }
}

/// When a token ends. The answer does not tell, but the API server has vouched for the token's own claims.
fn end_of(token: &str) -> Option<SystemTime> {
    #[derive(serde::Deserialize)]
    struct End {
        exp: u64,
    }
    let claims = token.split('.').nth(1)?;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).ok()?;
    let End { exp } = serde_json::from_slice(&claims).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp))
}
