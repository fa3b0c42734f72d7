//! What the host provides: CPUs, memory, limits. Read once at startup, then plain data.
//!
//! [`HostFacts`] is passed to the resolution of defaults, which can thus be tested without a host.
//! Control groups of both versions are understood: a container's own limit counts, not the machine
//! it runs on.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The host's resources available to this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// CPUs that the process may run on, ascending: its affinity, which the kernel limits to the
    /// control group's cpuset. Never empty.
    pub allowed_cpus: Vec<usize>,
    /// CPU quota of the control group in thousandths of a CPU; `None` without a quota.
    pub cpu_quota_millis: Option<u64>,
    /// Memory in bytes of the machine, or of the control group if that is less.
    pub memory_bytes: u64,
    /// Whether a control group rather than the machine sets `memory_bytes`.
    pub memory_is_limited: bool,
    /// File descriptors that the process may open once its soft limit is raised.
    pub files_max: u64,
    /// Memory in bytes that the process may lock once its soft limit is raised.
    pub memlock_bytes_max: u64,
    /// Kernel release, such as `6.1.0-18-amd64`.
    pub kernel: String,
}

impl HostFacts {
    /// Reads them from the kernel. Unreadable values count as unlimited, except that there is
    /// always a first CPU.
    pub fn gather() -> Self {
        let ram = rustix::system::sysinfo();
        let ram_bytes = (ram.totalram as u64).saturating_mul(ram.mem_unit.max(1) as u64);
        let groups = Groups::of_this_process();
        let limit = groups.memory_limit_bytes().filter(|&limit| limit < ram_bytes);
        Self {
            allowed_cpus: allowed_cpus(),
            cpu_quota_millis: groups.cpu_quota_millis(),
            memory_bytes: limit.unwrap_or(ram_bytes),
            memory_is_limited: limit.is_some(),
            files_max: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            memlock_bytes_max: getrlimit(Resource::Memlock).maximum.unwrap_or(u64::MAX),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }
    }
}

/// CPUs that the process may run on, ascending. Never empty.
pub fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return vec![0] };
    let cpus: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Raises the soft limit of open files to at least `needed`, and the hard one too if the process is
/// privileged. Returns the resulting limit, possibly less than `needed`.
pub fn raise_file_limit(needed: u64) -> u64 {
    raise(Resource::Nofile, needed)
}

/// Raises the soft limit of locked memory to at least `needed` bytes if permitted. Returns the
/// resulting limit.
pub fn raise_memlock_limit(needed: u64) -> u64 {
    raise(Resource::Memlock, needed)
}

/// Whether this process may lock memory beyond any limit.
pub fn may_lock_any_memory() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::IPC_LOCK))
}

fn raise(resource: Resource, needed: u64) -> u64 {
    let limit = getrlimit(resource);
    if limit.current.is_none_or(|current| current >= needed) {
        return limit.current.unwrap_or(u64::MAX);
    }
    let raised =
        Rlimit { current: Some(needed), maximum: limit.maximum.map(|maximum| maximum.max(needed)) };
    let within_hard_limit = Rlimit {
        current: Some(limit.maximum.map_or(needed, |maximum| maximum.min(needed))),
        maximum: limit.maximum,
    };
    // Raising the hard limit requires a privilege; without it the soft limit still reaches the hard
    // one.
    if setrlimit(resource, raised).is_err() {
        let _ = setrlimit(resource, within_hard_limit);
    }
    getrlimit(resource).current.unwrap_or(u64::MAX)
}

/// The directories of this process's control groups, innermost first.
struct Groups {
    /// Of the unified hierarchy (version 2).
    unified: Vec<PathBuf>,
    /// Of the memory controller (version 1).
    memory: Vec<PathBuf>,
    /// Of the CPU controller (version 1).
    cpu: Vec<PathBuf>,
}

impl Groups {
    fn of_this_process() -> Self {
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            unified: directories(&mounts, &membership, ""),
            memory: directories(&mounts, &membership, "memory"),
            cpu: directories(&mounts, &membership, "cpu"),
        }
    }

    /// The lowest memory limit from the process's group up to the root.
    fn memory_limit_bytes(&self) -> Option<u64> {
        let unified = self.unified.iter().filter_map(|group| number(&group.join("memory.max")));
        let memory =
            self.memory.iter().filter_map(|group| number(&group.join("memory.limit_in_bytes")));
        unified.chain(memory).min()
    }

    /// The lowest CPU quota from the process's group up to the root.
    fn cpu_quota_millis(&self) -> Option<u64> {
        let unified = self.unified.iter().filter_map(|group| {
            let text = fs::read_to_string(group.join("cpu.max")).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            quota_millis(quota.parse().ok()?, period.parse().ok()?)
        });
        let cpu = self.cpu.iter().filter_map(|group| {
            // Minus one means no quota and does not parse as u64.
            let quota = number(&group.join("cpu.cfs_quota_us"))?;
            quota_millis(quota, number(&group.join("cpu.cfs_period_us"))?)
        });
        unified.chain(cpu).min()
    }
}

fn quota_millis(quota: u64, period: u64) -> Option<u64> {
    quota.saturating_mul(1000).checked_div(period)
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The process's groups of `controller` (empty for the unified hierarchy), from its own up to the
/// root of the mount.
fn directories(mountinfo: &str, membership: &str, controller: &str) -> Vec<PathBuf> {
    // Lines of /proc/self/cgroup: `hierarchy:controllers:path`.
    let path = membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    });
    // Lines of mountinfo: `id parent major:minor root mount-point options ... - type source super`.
    let mount = mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let wanted = match controller {
            "" => kind == "cgroup2",
            _ => kind == "cgroup" && options.split(',').any(|name| name == controller),
        };
        wanted.then_some((root, point))
    });
    let (Some(path), Some((root, point))) = (path, mount) else { return Vec::new() };
    // A container may see only its part of the hierarchy: the mount starts at `root`.
    let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or("").trim_matches('/');
    let point = Path::new(point);
    let own = point.join(below);
    own.ancestors().take_while(|group| group.starts_with(point)).map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
25 1 0:22 / /proc rw,relatime - proc proc rw
30 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 24 0:28 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
";
    const MEMBERSHIP: &str = "\
4:memory:/system.slice/ringlane.service
2:cpu,cpuacct:/docker/abc
0::/user.slice
";

    fn names(controller: &str) -> Vec<String> {
        let found = directories(MOUNTS, MEMBERSHIP, controller);
        found.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn limits_are_looked_for_from_the_own_group_up_to_the_mount() {
        assert_eq!(
            names("memory"),
            [
                "/sys/fs/cgroup/memory/system.slice/ringlane.service",
                "/sys/fs/cgroup/memory/system.slice",
                "/sys/fs/cgroup/memory",
            ]
        );
        assert_eq!(names(""), ["/sys/fs/cgroup/unified/user.slice", "/sys/fs/cgroup/unified"]);
    }

    #[test]
    fn a_container_finds_its_group_at_the_mount_itself() {
        let found = names("cpu");
        assert_eq!(
            found.first().map(|s| s.trim_end_matches('/')),
            Some("/sys/fs/cgroup/cpu,cpuacct")
        );
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_host_without_control_groups_has_none() {
        assert!(directories("", MEMBERSHIP, "memory").is_empty());
        assert!(directories(MOUNTS, "", "memory").is_empty());
    }

    #[test]
    fn this_process_has_a_cpu_and_memory() {
        let facts = HostFacts::gather();
        assert!(!facts.allowed_cpus.is_empty());
        assert!(facts.allowed_cpus.is_sorted());
        assert!(facts.memory_bytes > 1 << 20);
        assert!(facts.files_max > 0);
        assert!(!facts.kernel.is_empty());
    }

    #[test]
    fn quotas_count_in_thousandths_of_a_cpu() {
        assert_eq!(quota_millis(150_000, 100_000), Some(1500));
        assert_eq!(quota_millis(1, 0), None);
    }
}
