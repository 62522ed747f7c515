//! What the demo shows while it runs: one picture, drawn again each second on a terminal; a line each second
//! where nobody looks at a screen. Pure text: it never writes anything itself.

use std::time::Duration;

use super::load::Window;
use super::manifests::SPLIT;
use super::world::{ServerCounts, World};

const BAR: usize = 40;
/// Cursor home and clear to the end of the screen.
const REDRAW: &str = "\x1b[H\x1b[J";
const CLEAR: &str = "\x1b[2J";

/// The view.
#[derive(Debug)]
pub(super) struct View {
    terminal: bool,
    hints: String,
    last: ServerCounts,
}

impl View {
    pub(super) fn new(world: &World, terminal: bool) -> Self {
        let control = world.control_admin();
        let hints = format!(
            "Change the split   edit {split}\n\
             Who is connected   meshctl status --control-admin {control}\n\
             What became of it  meshctl routes --control-admin {control}\n\
             A sidecar's view   meshctl config {client}\n\
             Pods have the addresses {range}; Ctrl-C ends everything.\n",
            split = world.manifests().join(SPLIT).display(),
            client = world.client_admin(),
            range = world.range(),
        );
        Self { terminal, hints, last: ServerCounts::default() }
    }

    /// What is written before the first picture.
    pub(super) fn intro(&self) -> String {
        if self.terminal { CLEAR.to_owned() } else { self.hints.clone() + "\n" }
    }

    /// The picture of the last second.
    pub(super) fn draw(&mut self, age: Duration, window: &Window, counts: ServerCounts) -> String {
        let recent = ServerCounts {
            requests: counts.requests - self.last.requests,
            mutual_tls: counts.mutual_tls - self.last.mutual_tls,
        };
        self.last = counts;
        if self.terminal { self.picture(age, window, recent) } else { line(age, window, recent) }
    }

    fn picture(&self, age: Duration, window: &Window, servers: ServerCounts) -> String {
        let mut text = format!("{REDRAW}The shop in its mesh, for {} s\n\n", age.as_secs());
        let mut row = |name: &str, value: String| text.push_str(&format!("  {name:<14}{value}\n"));
        row("requests/s", format!("{}   failed {}", window.requests, window.failures));
        row("latency", format!("p50 {}   p99 {}", ms(window, 0.5), ms(window, 0.99)));
        let hops =
            format!("{:.1} % of {} requests at the servers", servers.share() * 100.0, servers.requests);
        row("mutual TLS", hops);
        for (version, share) in window.shares() {
            row(&format!("reviews {version}"), format!("{} {:.1} %", bar(share), share * 100.0));
        }
        text + "\n" + &self.hints
    }
}

fn line(age: Duration, window: &Window, servers: ServerCounts) -> String {
    let shares: Vec<String> =
        window.shares().iter().map(|(version, share)| format!("{version} {:.1} %", share * 100.0)).collect();
    format!(
        "{:>4} s  {} requests/s  {} failed  {}  p50 {}  p99 {}  mutual TLS {:.1} %\n",
        age.as_secs(),
        window.requests,
        window.failures,
        shares.join("  "),
        ms(window, 0.5),
        ms(window, 0.99),
        servers.share() * 100.0,
    )
}

fn ms(window: &Window, share: f64) -> String {
    format!("{:.1} ms", window.latency.percentile_ms(share))
}

fn bar(share: f64) -> String {
    let full = ((share * BAR as f64).round() as usize).min(BAR);
    "█".repeat(full) + &"░".repeat(BAR - full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_all_figures() {
        let mut window = Window { requests: 100, ..Window::default() };
        window.versions.insert("v1".to_owned(), 90);
        window.versions.insert("v2".to_owned(), 10);
        window.latency.record(Duration::from_millis(3));
        let counts = ServerCounts { requests: 400.0, mutual_tls: 400.0 };
        let text = line(Duration::from_secs(7), &window, counts);
        assert_eq!(
            text,
            "   7 s  100 requests/s  0 failed  v1 90.0 %  v2 10.0 %  p50 3.0 ms  p99 3.0 ms  \
             mutual TLS 100.0 %\n"
        );
    }

    #[test]
    fn bars_are_of_one_length() {
        for share in [0.0, 0.1, 0.5, 1.0, 1.1] {
            assert_eq!(bar(share).chars().count(), BAR);
        }
    }
}
