//! CPU time of processes and of the calling thread, from `/proc`.
//!
//! The sum of user and system time comes from `schedstat`, in nanoseconds; `stat` has them
//! separately, but in ticks of 10 ms, and is only used to split the sum. The CPU time of the server
//! per request shows what a server costs: unlike throughput it does not depend on the speed of the
//! generator.

use std::fs;
use std::io;

/// CPU time used so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// User and system time in nanoseconds, by thread.
    threads: Vec<(u32, u64)>,
    /// User time in ticks of 10 ms.
    user_ticks: u64,
    /// System time in ticks of 10 ms.
    system_ticks: u64,
}

/// CPU time used between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuUse {
    /// User and system time in nanoseconds.
    pub total_ns: f64,
    /// User time in nanoseconds.
    pub user_ns: f64,
    /// System time in nanoseconds.
    pub system_ns: f64,
    /// User and system time of the thread that used most, in nanoseconds.
    pub busiest_ns: f64,
}

impl CpuTime {
    /// CPU time of all threads of a process that are alive.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let (user_ticks, system_ticks) = ticks(&fs::read_to_string(format!("/proc/{pid}/stat"))?)?;
        let mut threads = Vec::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            // A thread may end between the listing and the reading.
            let run_ns = fs::read_to_string(task.path().join("schedstat"))
                .ok()
                .and_then(|text| run_ns(&text));
            let id = task.file_name().to_str().and_then(|name| name.parse().ok());
            threads.extend(id.zip(run_ns));
        }
        if threads.iter().all(|&(_, run_ns)| run_ns == 0) {
            threads = vec![(pid, (user_ticks + system_ticks) * 10_000_000)];
        }
        Ok(Self { threads, user_ticks, system_ticks })
    }

    /// CPU time of the calling thread.
    pub fn of_this_thread() -> io::Result<Self> {
        let (user_ticks, system_ticks) = ticks(&fs::read_to_string("/proc/thread-self/stat")?)?;
        let total_ns = fs::read_to_string("/proc/thread-self/schedstat")
            .ok()
            .and_then(|text| run_ns(&text))
            .unwrap_or((user_ticks + system_ticks) * 10_000_000);
        Ok(Self { threads: vec![(0, total_ns)], user_ticks, system_ticks })
    }

    /// How long the calling thread was runnable while others used its CPU, in nanoseconds; 0 if the
    /// kernel does not report it.
    pub fn this_thread_waited_ns() -> u64 {
        let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let waited = schedstat.split_ascii_whitespace().nth(1);
        waited.and_then(|waited_ns| waited_ns.parse().ok()).unwrap_or(0)
    }

    /// The total time of several processes; `None` without any.
    pub fn sum(times: impl IntoIterator<Item = CpuTime>) -> Option<Self> {
        times.into_iter().reduce(|mut sum, other| {
            sum.threads.extend(other.threads);
            sum.user_ticks += other.user_ticks;
            sum.system_ticks += other.system_ticks;
            sum
        })
    }

    /// CPU time used since `earlier`.
    pub fn since(&self, earlier: &CpuTime) -> CpuUse {
        let user = self.user_ticks.saturating_sub(earlier.user_ticks) as f64;
        let system = self.system_ticks.saturating_sub(earlier.system_ticks) as f64;
        let share = if user + system > 0.0 { user / (user + system) } else { 0.5 };
        let (mut total_ns, mut busiest_ns) = (0.0, 0.0f64);
        for (id, run_ns) in &self.threads {
            let before = earlier.threads.iter().find(|(before, _)| before == id);
            let used_ns = run_ns.saturating_sub(before.map_or(0, |(_, ns)| *ns)) as f64;
            total_ns += used_ns;
            busiest_ns = busiest_ns.max(used_ns);
        }
        let (user_ns, system_ns) = (total_ns * share, total_ns * (1.0 - share));
        CpuUse { total_ns, user_ns, system_ns, busiest_ns }
    }
}

impl std::ops::AddAssign for CpuUse {
    fn add_assign(&mut self, other: Self) {
        self.total_ns += other.total_ns;
        self.user_ns += other.user_ns;
        self.system_ns += other.system_ns;
        self.busiest_ns = self.busiest_ns.max(other.busiest_ns);
    }
}

/// User and system ticks of a `stat` line. The command's name may contain spaces and brackets, so
/// fields are counted from the last bracket. A process that has ended but is still listed is an
/// error: its threads are gone with their times.
fn ticks(stat: &str) -> io::Result<(u64, u64)> {
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let mut fields = fields.split_ascii_whitespace();
    if let Some("Z" | "X") = fields.next() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended"));
    }
    let mut fields = fields.skip(10);
    let mut next = || fields.next().and_then(|field| field.parse().ok());
    match (next(), next()) {
        (Some(user), Some(system)) => Ok((user, system)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no times in /proc stat")),
    }
}

fn run_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_hostile_name() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0 20 0 1 0";
        assert_eq!(ticks(stat).unwrap(), (111, 222));
        assert!(ticks("garbage").is_err());
        let ended = "12 (a) Z 1 2 3 4 5 6 7 8 9 10 111 222 0 0 20 0 1 0";
        assert!(ticks(ended).is_err());
    }

    #[test]
    fn own_time_grows_and_divides() {
        let before = CpuTime::of_process(std::process::id()).unwrap();
        let mut word = 1u64;
        let own = || CpuTime::of_this_thread().unwrap().since(&CpuTime::default()).total_ns;
        while own() < 30_000_000.0 {
            (0..100_000).for_each(|_| word = crate::random::mix(word));
        }
        assert_ne!(word, 0);
        let used = CpuTime::of_process(std::process::id()).unwrap().since(&before);
        assert!(used.total_ns > 0.0);
        assert!((used.user_ns + used.system_ns - used.total_ns).abs() < 1.0);
        assert!(used.busiest_ns > 0.0 && used.busiest_ns <= used.total_ns);
    }

    #[test]
    fn a_missing_process_is_an_error() {
        assert!(CpuTime::of_process(u32::MAX).is_err());
    }
}
