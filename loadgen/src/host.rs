//! The host of a measurement, without which a figure means little.

use std::fs;

use serde::{Deserialize, Serialize};

/// Facts about the machine. Unavailable ones are "unknown".
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// The CPU's model name.
    pub cpu: String,
    /// How many CPUs are online.
    pub cpus_online: usize,
    /// Whether the machine is virtual, as far as the CPU says.
    pub virtual_machine: bool,
    /// Memory in MiB.
    pub memory_mebibytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Frequency governor of the first CPU.
    pub governor: String,
    /// Transparent huge pages.
    pub huge_pages: String,
    /// Load average over a minute when the run started: other work distorts figures.
    pub load_average: String,
    /// Open files allowed, soft limit.
    pub open_files: String,
    /// Locked memory allowed in bytes, soft limit.
    pub locked_memory: String,
    /// Longest backlog of a listening socket.
    pub somaxconn: String,
}

impl Host {
    /// Asks the running system.
    pub fn observe() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = labelled(&memory, "MemTotal").unwrap_or_default();
        Self {
            cpu: labelled(&cpuinfo, "model name").unwrap_or_else(unknown),
            cpus_online: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            virtual_machine: labelled(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            memory_mebibytes: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 10,
            kernel: line("/proc/sys/kernel/osrelease"),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            huge_pages: line("/sys/kernel/mm/transparent_hugepage/enabled"),
            load_average: line("/proc/loadavg").split(' ').next().unwrap_or_default().into(),
            open_files: limit(&limits, "Max open files"),
            locked_memory: limit(&limits, "Max locked memory"),
            somaxconn: line("/proc/sys/net/core/somaxconn"),
        }
    }

    /// The facts in one line.
    pub fn sentence(&self) -> String {
        format!(
            "{} ({} CPUs{}), {} MiB, Linux {}, governor {}, load {}, limits: {} open files, {} B \
             locked, somaxconn {}",
            self.cpu,
            self.cpus_online,
            if self.virtual_machine { ", virtual" } else { "" },
            self.memory_mebibytes,
            self.kernel,
            self.governor,
            self.load_average,
            self.open_files,
            self.locked_memory,
            self.somaxconn,
        )
    }
}

/// This process's command line, quoted so that a shell takes it back.
pub fn command_line() -> String {
    let arguments: Vec<String> = std::env::args().map(|argument| quoted(&argument)).collect();
    arguments.join(" ")
}

fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,%@+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.into();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// Now, as `2026-01-31T23:59:59Z`.
pub fn date() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    date_of(now.unwrap_or_default().as_secs())
}

/// Days are counted in eras of 400 years that begin on the first of March, so that the leap day is
/// the last of its year.
fn date_of(seconds: u64) -> String {
    let (day, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, turn) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    let year = era * 400 + year + turn;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

fn unknown() -> String {
    "unknown".into()
}

fn line(path: &str) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().to_owned(),
        Err(_) => unknown(),
    }
}

fn labelled(text: &str, label: &str) -> Option<String> {
    let (_, value) = text.lines().find(|line| line.starts_with(label))?.split_once(':')?;
    Some(value.trim().to_owned())
}

fn limit(limits: &str, label: &str) -> String {
    let soft = limits.lines().find_map(|line| line.strip_prefix(label));
    soft.and_then(|rest| rest.split_ascii_whitespace().next()).map_or_else(unknown, Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date_of(seconds), date);
        }
    }

    #[test]
    fn arguments_survive_a_shell() {
        assert_eq!(quoted("--mix=get=9,set=1"), "--mix=get=9,set=1");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn this_host_says_something() {
        let host = Host::observe();
        assert!(host.cpus_online > 0 && host.memory_mebibytes > 0);
        assert_ne!(host.kernel, "unknown");
    }
}
