//! A Kubernetes API server in memory, as a service under [`kube::Client`]: create, get, list, watch, replace, patch
//! and delete with resource versions, conflicts, generations and status subresources as the real one has them. It
//! must never be more lenient than the real one where a test could rest on it.

mod patch;
mod path;
mod store;

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

pub use self::store::plural_of;

use self::path::{Target, parse};
use self::store::{Failure, Store};

type Answer = UnsyncBoxBody<Bytes, Infallible>;
type Reviewer = Arc<dyn Fn(&Value) -> Value + Send + Sync>;

/// The server. Cheap to clone; all clones are the same server.
#[derive(Clone)]
pub struct KubeApi {
    inner: Arc<Inner>,
}

struct Inner {
    store: Mutex<Store>,
    rules: Mutex<Rules>,
    /// The version of the last change: watches wait on it.
    version: watch::Sender<u64>,
    /// Each change of it ends all watches.
    hang_ups: watch::Sender<u64>,
}

/// What a test has set up.
#[derive(Default)]
struct Rules {
    /// Nothing is answered: the connection fails.
    unreachable: bool,
    faults: Vec<Fault>,
    /// Resources that no CRD defines.
    absent: BTreeSet<String>,
    /// Watches cannot begin with everything that is there.
    only_lists: bool,
    /// So many of those that do end before the mark of the end.
    cut: usize,
    /// Watches end at once.
    impatient: bool,
    reviewer: Option<Reviewer>,
    /// `GET /api/v1/...`, in the order in which they came.
    requests: Vec<String>,
}

/// An answer that a test wants.
struct Fault {
    verb: String,
    plural: String,
    code: u16,
    times: usize,
}

impl Default for KubeApi {
    fn default() -> Self {
        let inner = Inner {
            store: Mutex::default(),
            rules: Mutex::default(),
            version: watch::Sender::new(0),
            hang_ups: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl KubeApi {
    /// A client of this server. Must be called within a runtime.
    pub fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { server.answer(request).await }
        });
        kube::Client::new(service, "default")
    }

    /// Puts an object, whatever was there: as an administrator's `kubectl replace --force` would, but its uid stays.
    pub fn put(&self, object: Value) -> Value {
        let stored = self.store().put(object);
        self.tell();
        stored
    }

    /// An object: `get("configmaps", "shop", "mesh-root-cert")`; the namespace is empty for those that have none.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.store().find(plural, namespace, name)
    }

    /// Takes an object away.
    pub fn remove(&self, plural: &str, namespace: &str, name: &str) {
        self.store().remove(plural, namespace, name);
        self.tell();
    }

    /// From now on watches that would begin before this moment are told that they are too old (410).
    pub fn forget_history(&self) {
        self.store().forget_history();
    }

    /// The next `times` requests of this verb (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `*`) on
    /// this resource (`secrets`, `httproutes/status`) are answered with this status.
    pub fn fail(&self, verb: &str, plural: &str, code: u16, times: usize) {
        let fault = Fault { verb: verb.to_owned(), plural: plural.to_owned(), code, times };
        self.rules().faults.push(fault);
    }

    /// As [`KubeApi::fail`] for ever, with 403: what a missing RBAC rule does.
    pub fn forbid(&self, verb: &str, plural: &str) {
        self.fail(verb, plural, 403, usize::MAX);
    }

    /// Forgets all of [`KubeApi::fail`].
    pub fn heal(&self) {
        self.rules().faults.clear();
    }

    /// Whether connections fail.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.rules().unreachable = unreachable;
    }

    /// Ends all watches that are open.
    pub fn hang_up(&self) {
        self.inner.hang_ups.send_modify(|times| *times += 1);
    }

    /// A server that cannot begin a watch with everything that is there (`sendInitialEvents`).
    pub fn set_only_lists(&self, only: bool) {
        self.rules().only_lists = only;
    }

    /// So many watches that begin with everything end before they say that it was everything.
    pub fn cut_initial_events(&self, times: usize) {
        self.rules().cut = times;
    }

    /// Whether watches end as soon as they begin.
    pub fn set_impatient(&self, impatient: bool) {
        self.rules().impatient = impatient;
    }

    /// Whether a resource has a CRD; `httproutes`, or one version of it: `httproutes gateway.networking.k8s.io/v1`.
    /// Every one has, unless this says otherwise.
    pub fn set_defined(&self, plural: &str, defined: bool) {
        let mut rules = self.rules();
        if defined {
            rules.absent.remove(plural);
        } else {
            rules.absent.insert(plural.to_owned());
        }
    }

    /// Who answers TokenReviews: from the spec to the status.
    pub fn review_with(&self, reviewer: impl Fn(&Value) -> Value + Send + Sync + 'static) {
        self.rules().reviewer = Some(Arc::new(reviewer));
    }

    /// What was asked so far, as `PATCH /api/v1/namespaces/shop/configmaps/mesh-root-cert`.
    pub fn requests(&self) -> Vec<String> {
        self.rules().requests.clone()
    }

    /// What was asked so far that would change something, but leases.
    pub fn writes(&self) -> Vec<String> {
        let is_write = |request: &String| !request.starts_with("GET ") && !request.contains("/leases");
        self.requests().into_iter().filter(is_write).collect()
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Answer>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let target = parse(&parts);
        let line = format!("{} {}", parts.method, parts.uri.path());
        let (unreachable, reviewer) = {
            let mut rules = self.rules();
            rules.requests.push(line);
            (rules.unreachable, rules.reviewer.clone())
        };
        if unreachable {
            return Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "nobody is there"));
        }
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let Some(target) = target else { return Ok(failure(&Failure::no_page())) };
        if let Some(failed) = self.fault(&target) {
            return Ok(failure(&failed));
        }
        if target.plural == "tokenreviews" {
            let status = reviewer.map(|review| review(&body["spec"])).unwrap_or_default();
            let mut review = body;
            review["status"] = status;
            return Ok(reply(StatusCode::CREATED, &review));
        }
        if target.watch {
            return Ok(self.watch(&target));
        }
        let answered = self.act(&parts.method, &target, body);
        self.tell();
        Ok(match answered {
            Ok((code, object)) => reply(code, &target.shaped(object)),
            Err(failed) => failure(&failed),
        })
    }

    fn act(&self, method: &Method, target: &Target, body: Value) -> Result<(StatusCode, Value), Failure> {
        let mut store = self.store();
        let ok = |object| (StatusCode::OK, object);
        match (method.as_str(), target.name.is_empty()) {
            ("GET", true) => Ok(ok(store.list(target))),
            ("GET", false) => store.get(target).map(ok),
            ("POST", true) => store.create(target, body).map(|object| (StatusCode::CREATED, object)),
            ("PUT", false) => store.replace(target, body).map(ok),
            ("PATCH", false) => store.patch(target, &body).map(ok),
            ("DELETE", false) => store.delete(target).map(ok),
            _ => Err(Failure::new(405, "MethodNotAllowed", "the method is not allowed")),
        }
    }

    fn fault(&self, target: &Target) -> Option<Failure> {
        let mut rules = self.rules();
        let version = format!("{} {}", target.plural, target.api_version);
        if rules.absent.contains(&target.plural) || rules.absent.contains(&version) {
            return Some(Failure::no_page());
        }
        if target.initial && rules.only_lists {
            let what =
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            return Some(Failure::new(422, "Invalid", what));
        }
        let resource = target.resource();
        let hit = |fault: &&mut Fault| {
            fault.times > 0 && fault.plural == resource && (fault.verb == "*" || fault.verb == target.verb)
        };
        let fault = rules.faults.iter_mut().find(hit)?;
        fault.times -= 1;
        Some(Failure::injected(fault.code, target))
    }

    fn watch(&self, target: &Target) -> Response<Answer> {
        let mut first = VecDeque::new();
        let mut from = target.from_version;
        let mut cut = false;
        if target.initial {
            let store = self.store();
            first.extend(store.initial_events(target));
            from = store.version();
            drop(store);
            let mut rules = self.rules();
            cut = rules.cut > 0;
            rules.cut = rules.cut.saturating_sub(1);
            if cut {
                first.pop_back();
            }
        }
        let ends = cut || self.rules().impatient;
        let watch = Watch {
            server: self.clone(),
            target: target.clone(),
            first,
            from,
            version: self.inner.version.subscribe(),
            hang_ups: self.inner.hang_ups.subscribe(),
            end: tokio::time::Instant::now()
                + Duration::from_secs(if ends { 0 } else { target.seconds.max(1) }),
        };
        let events = stream::unfold(watch, async |mut watch| {
            let event = watch.next().await?;
            let line = Bytes::from(format!("{event}\n"));
            Some((Ok::<_, Infallible>(Frame::data(line)), watch))
        });
        let mut response = Response::new(StreamBody::new(events.boxed()).boxed_unsync());
        response.headers_mut().insert(http::header::CONTENT_TYPE, JSON);
        response
    }

    fn tell(&self) {
        let version = self.store().version();
        self.inner.version.send_replace(version);
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.inner.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.inner.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open watch.
struct Watch {
    server: KubeApi,
    target: Target,
    first: VecDeque<Value>,
    from: u64,
    version: watch::Receiver<u64>,
    hang_ups: watch::Receiver<u64>,
    end: tokio::time::Instant,
}

impl Watch {
    async fn next(&mut self) -> Option<Value> {
        if let Some(event) = self.first.pop_front() {
            return Some(event);
        }
        loop {
            self.version.borrow_and_update();
            if let Some((at, event)) = self.server.store().next_event(&self.target, self.from) {
                self.from = at;
                return Some(event);
            }
            tokio::select! {
                changed = self.version.changed() => changed.ok()?,
                _ = self.hang_ups.changed() => return None,
                () = tokio::time::sleep_until(self.end) => return None,
            }
        }
    }
}

const JSON: http::HeaderValue = http::HeaderValue::from_static("application/json");

fn reply(code: StatusCode, body: &Value) -> Response<Answer> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(http::header::CONTENT_TYPE, JSON);
    response
}

fn failure(failed: &Failure) -> Response<Answer> {
    let code = StatusCode::from_u16(failed.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": failed.message, "reason": failed.reason, "code": failed.code, "details": failed.details,
        }),
    )
}
