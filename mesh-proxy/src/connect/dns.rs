//! Names to addresses, for external names only: names of the mesh are never asked of DNS. Answers are kept as
//! long as they say, failures for a moment, and their number is bounded.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::time::Instant;

/// Names kept.
const BOUND: usize = 1024;
/// How long an answer is kept at least, so that a TTL of zero does not mean a question for each request.
const MIN_TTL: Duration = Duration::from_secs(1);
/// And at most.
const MAX_TTL: Duration = Duration::from_secs(300);
/// How long a failure is kept.
const FAILURE_TTL: Duration = Duration::from_secs(1);

type Answer = Result<Rc<[IpAddr]>, Rc<str>>;

/// Resolves names, with a cache per worker.
#[derive(Default)]
pub(crate) struct Resolver {
    client: OnceCell<Result<TokioResolver, Rc<str>>>,
    cache: RefCell<HashMap<String, (Answer, Instant)>>,
}

impl Resolver {
    /// The addresses of `host`, never empty; the same `Rc` as long as the answer holds.
    pub(crate) async fn resolve(&self, host: &str) -> Answer {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Rc::from([ip]));
        }
        if let Some((answer, until)) = self.cache.borrow().get(host)
            && *until > Instant::now()
        {
            return answer.clone();
        }
        let (answer, ttl) = match self.ask(host).await {
            Ok((ips, ttl)) => (Ok(ips), ttl.clamp(MIN_TTL, MAX_TTL)),
            Err(reason) => (Err(reason), FAILURE_TTL),
        };
        self.keep(host, answer.clone(), Instant::now() + ttl);
        answer
    }

    async fn ask(&self, host: &str) -> Result<(Rc<[IpAddr]>, Duration), Rc<str>> {
        let client = self.client.get_or_init(client).as_ref().map_err(Rc::clone)?;
        let reason = |error: &dyn std::fmt::Display| Rc::from(format!("{host} does not resolve: {error}"));
        let answer = Box::pin(client.lookup_ip(host)).await.map_err(|error| reason(&error))?;
        let mut ips: Vec<IpAddr> = answer.iter().collect();
        if ips.is_empty() {
            return Err(reason(&"the name has no address"));
        }
        ips.sort_unstable(); // IPv4 first
        let now = Instant::now().into_std();
        Ok((ips.into(), answer.valid_until().saturating_duration_since(now)))
    }

    fn keep(&self, host: &str, answer: Answer, until: Instant) {
        let mut cache = self.cache.borrow_mut();
        if cache.len() >= BOUND {
            let now = Instant::now();
            cache.retain(|_, (_, until)| *until > now);
            if cache.len() >= BOUND {
                cache.clear();
            }
        }
        cache.insert(host.to_owned(), (answer, until));
    }
}

fn client() -> Result<TokioResolver, Rc<str>> {
    TokioResolver::builder_tokio()
        .and_then(hickory_resolver::ResolverBuilder::build)
        .map_err(|error| Rc::from(format!("DNS is not configured: {error}")))
}
