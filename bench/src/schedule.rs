//! When requests are due. An open loop has a clock that does not wait for answers: latency counts from the moment at
//! which a request was due, so that a proxy that stalls does not make the load wait for it. The clock is the kernel's
//! timerfd, for the runtime's timers round to a millisecond.

use std::time::Duration;

use anyhow::Result;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

/// Tells one connection when its next request is due.
pub enum Due {
    /// When the last one was answered.
    AtOnce,
    /// By the clock.
    Clock(UnboundedReceiver<Instant>),
}

impl Due {
    /// The moment at which the next request is due, once it has come.
    pub async fn next(&mut self) -> Option<Instant> {
        match self {
            Self::AtOnce => Some(Instant::now()),
            Self::Clock(due) => due.recv().await,
        }
    }
}

/// So many connections that share a rate; without one each of them is always due.
///
/// # Errors
/// When the kernel gives no clock.
pub fn share(connections: usize, rate: Option<u32>) -> Result<Vec<Due>> {
    let Some(rate) = rate else {
        return Ok((0..connections).map(|_| Due::AtOnce).collect());
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "an open loop drops nothing that is due, however long it waits"
    )]
    let (senders, due): (Vec<_>, Vec<_>) =
        (0..connections).map(|_| unbounded_channel()).map(|(sender, due)| (sender, Due::Clock(due))).unzip();
    let clock = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    tokio::task::spawn_local(tick(clock, Duration::from_secs(1) / rate.max(1), senders));
    Ok(due)
}

async fn tick(clock: TimerFd, period: Duration, senders: Vec<UnboundedSender<Instant>>) -> Result<()> {
    // Connections first.
    tokio::time::sleep(Duration::from_millis(200)).await;
    clock.set(Expiration::Interval(TimeSpec::from_duration(period)), TimerSetTimeFlags::empty())?;
    // It is read as a pipe is: bytes come when it has ticked.
    let mut clock = pipe::Receiver::from_owned_fd_unchecked(clock.into())?;
    let (mut due, mut next) = (Instant::now(), senders.iter().cycle());
    loop {
        clock.read_exact(&mut [0; 8]).await?;
        // One reading tells of all ticks that have passed: what is due is what the time says.
        while due + period <= Instant::now() {
            due += period;
            if next.next().is_none_or(|sender| sender.send(due).is_err()) {
                return Ok(());
            }
        }
    }
}
