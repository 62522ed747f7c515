//! The load: connections that send what is due, measured once they are warm.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use tokio::task::JoinSet;

use crate::report::{Report, Tally};
use crate::schedule::{self, Due};
use crate::{bulk, http1, http2};

/// What a load is.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// Where to.
    #[arg(long)]
    pub to: SocketAddr,
    /// What is sent.
    #[arg(long)]
    pub kind: Kind,
    /// Connections.
    #[arg(long, default_value = "64")]
    pub connections: usize,
    /// Requests per second of all connections together, whatever becomes of them; without it each connection sends its
    /// next request when the last one is answered.
    #[arg(long)]
    pub rate: Option<u32>,
    /// Bytes of an answer.
    #[arg(long, default_value = "1024")]
    pub bytes: usize,
    /// Seconds that are measured.
    #[arg(long, default_value = "5")]
    pub seconds: f64,
    /// Seconds before that.
    #[arg(long, default_value = "1")]
    pub warm_up: f64,
    /// Host of requests.
    #[arg(long)]
    pub authority: String,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// HTTP/1.1 requests on kept connections.
    Http1,
    /// HTTP/2 requests.
    Http2,
    /// gRPC calls.
    Grpc,
    /// Messages on one gRPC stream for each connection.
    GrpcStream,
    /// An HTTP/1.1 request on a new connection each.
    Connect,
    /// Bytes from the backend.
    Bulk,
    /// One HTTP/1.1 request for each connection, and then nothing.
    Idle,
}

impl Load {
    /// Warms up, calls `warm`, measures.
    ///
    /// # Errors
    /// When the load cannot be made, or an idle connection cannot be opened.
    pub async fn run(self, warm: impl FnOnce()) -> Result<Report> {
        let load = Rc::new(self);
        let tally = Rc::new(Tally::default());
        let idle = if load.kind == Kind::Idle { load.open().await? } else { Vec::new() };
        if load.kind != Kind::Idle {
            for due in schedule::share(load.connections, load.rate)? {
                tokio::task::spawn_local(Rc::clone(&load).keep_on(Rc::clone(&tally), due));
            }
        }
        tokio::time::sleep(Duration::try_from_secs_f64(load.warm_up)?).await;
        warm();
        let report = tally.measure(Duration::try_from_secs_f64(load.seconds)?).await;
        drop(idle);
        Ok(report)
    }

    /// One connection's part for ever: one that fails is made anew, a moment later.
    async fn keep_on(self: Rc<Self>, tally: Rc<Tally>, mut due: Due) {
        loop {
            if let Err(error) = self.connection(&tally, &mut due).await {
                tally.failed(&error);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn connection(&self, tally: &Tally, due: &mut Due) -> Result<()> {
        let (to, authority, bytes) = (self.to, self.authority.as_str(), self.bytes);
        match self.kind {
            Kind::Http1 | Kind::Idle => http1::run(to, authority, bytes, tally, due).await,
            Kind::Http2 => http2::run(to, authority, (http2::Kind::Plain, bytes), tally, due).await,
            Kind::Grpc => http2::run(to, authority, (http2::Kind::Call, bytes), tally, due).await,
            Kind::GrpcStream => http2::run(to, authority, (http2::Kind::Stream, bytes), tally, due).await,
            Kind::Bulk => bulk::take(to, tally).await,
            Kind::Connect => {
                let Some(due) = due.next().await else { return Ok(()) };
                let request = http1::request(authority, bytes, true);
                http1::Connection::open(to).await?.exchange(request.as_bytes()).await?;
                tally.answered(due);
                Ok(())
            }
        }
    }

    /// Connections that rest.
    async fn open(&self) -> Result<Vec<http1::Connection>> {
        ensure!(self.rate.is_none(), "connections that rest have no rate");
        // At once, so that few can use another one's upstream connection.
        let mut opening = JoinSet::new();
        for _ in 0..self.connections {
            let (to, request) = (self.to, http1::request(&self.authority, self.bytes, false));
            opening.spawn_local(async move {
                let mut connection = http1::Connection::open(to).await?;
                connection.exchange(request.as_bytes()).await?;
                anyhow::Ok(connection)
            });
        }
        let mut all = Vec::new();
        while let Some(opened) = opening.join_next().await {
            all.push(opened??);
        }
        Ok(all)
    }
}
