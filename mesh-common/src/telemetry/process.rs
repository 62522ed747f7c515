//! What every process of the mesh tells of itself: its memory, under the name that Prometheus' own clients use, read from
//! `/proc` (proc(5)) when it is asked for; and how long its start took. What is not known is absent.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::process::Readiness;

/// Bytes in a page where the kernel does not say otherwise; every platform that we run on has this.
const PAGE: u64 = 4096;

/// Registers the figures of this process.
pub fn register(registry: &mut Registry, readiness: Readiness) {
    registry.register_collector(Box::new(Process { readiness }));
}

#[derive(Debug)]
struct Process {
    readiness: Readiness,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let statm = std::fs::read_to_string("/proc/self/statm").ok();
        if let Some(resident) = statm.and_then(|text| resident(&text)) {
            let help = "Memory of the process that is in RAM";
            let gauge = ConstGauge::new(i64::try_from(resident).unwrap_or(i64::MAX));
            let unit = Some(&Unit::Bytes);
            gauge.encode(encoder.encode_descriptor(
                "process_resident_memory",
                help,
                unit,
                gauge.metric_type(),
            )?)?;
        }
        if let Some(took) = self.readiness.took() {
            let help = "Time from the start of the process until it was ready";
            let gauge = ConstGauge::new(took.as_secs_f64());
            let unit = Some(&Unit::Seconds);
            gauge.encode(encoder.encode_descriptor(
                "mesh_start_to_ready",
                help,
                unit,
                gauge.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

/// Resident bytes from the content of `/proc/PID/statm`: its second number counts pages.
fn resident(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_bytes() {
        assert_eq!(resident("12345 3000 1200 4000 0 2000 0\n"), Some(3000 * 4096));
        for broken in ["", "1", "1 x", "1 99999999999999999999"] {
            assert_eq!(resident(broken), None, "{broken}");
        }
    }

    #[test]
    fn memory_is_told_always_and_the_start_once_it_is_over() {
        let (mut registry, readiness) = (Registry::default(), Readiness::default());
        let (one, other) = (readiness.condition("one"), readiness.condition("other"));
        register(&mut registry, readiness);
        let figure = |name: &str| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.rsplit(' ').next()?.parse::<f64>().ok()
        };
        assert!(figure("process_resident_memory_bytes ").unwrap() > 1e6);
        one.met();
        assert_eq!(figure("mesh_start_to_ready_seconds "), None);
        other.met();
        assert!(figure("mesh_start_to_ready_seconds ").unwrap() > 0.0);
    }
}
