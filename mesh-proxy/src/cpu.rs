//! How many CPUs this process may use: the container's limit, not the machine's size. A sidecar with a limit of
//! one CPU on a machine with 64 must not start 64 workers.

use std::path::Path;

/// The limit, rounded up, at least 1.
pub fn limit() -> usize {
    let machine = std::thread::available_parallelism().map_or(1, usize::from);
    let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    quota(Path::new("/sys/fs/cgroup"), &group).map_or(machine, |quota| quota.min(machine)).max(1)
}

/// The smallest `cpu.max` on the way from the process's own group (cgroup v2) to the root.
fn quota(root: &Path, proc_self_cgroup: &str) -> Option<usize> {
    let own = proc_self_cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = root.join(own);
    let groups = own.ancestors().take_while(|group| group.starts_with(root));
    groups.filter_map(|group| parse(&std::fs::read_to_string(group.join("cpu.max")).ok()?)).min()
}

/// `<quota> <period>` in microseconds, or `max <period>`.
fn parse(cpu_max: &str) -> Option<usize> {
    let (quota, period) = cpu_max.trim().split_once(' ')?;
    let (quota, period): (usize, usize) = (quota.parse().ok()?, period.parse().ok()?);
    if period == 0 { None } else { Some(quota.div_ceil(period).max(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_limit_of_the_group_and_its_parents() {
        for (text, cpus) in
            [("max 100000", None), ("150000 100000\n", Some(2)), ("50000 100000", Some(1)), ("x", None)]
        {
            assert_eq!(parse(text), cpus, "{text:?}");
        }
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("pod/container");
        std::fs::create_dir_all(&own).unwrap();
        assert_eq!(quota(root.path(), "0::/pod/container\n"), None);
        std::fs::write(own.join("cpu.max"), "max 100000").unwrap();
        std::fs::write(root.path().join("pod/cpu.max"), "300000 100000").unwrap();
        assert_eq!(quota(root.path(), "0::/pod/container\n"), Some(3));
        assert_eq!(quota(root.path(), "1:name=systemd:/x\n"), None);
        assert!(limit() >= 1);
    }
}
