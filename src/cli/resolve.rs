//! Turns settings and host facts into one valid [`Config`]; pure, so every default is testable.

use std::net::{IpAddr, Ipv4Addr};

use ringlane::config::{
    CONNECTION_MEMORY_BYTES, CONNECTIONS_MAX, CORE_CONNECTION_MEMORY_BYTES_MIN,
    CORE_MEMORY_BYTES_MIN, Config, LogLevel, MEMORY_BYTES, PORT, Permissions, Queues, UnixSocket,
    size::Size,
};
use ringlane::server::host::HostFacts;
use ringlane::server::preflight;
use ringlane::shard::Eviction;

use super::settings::Settings;
use super::{CliError, cluster};

/// A configuration, and how the host changed the documented defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Checked and ready to run.
    pub config: Config,
    /// Sentences for the log.
    pub notes: Vec<String>,
}

/// Completes `settings` from the defaults and the host, and checks the result.
pub fn resolve(settings: Settings, host: &HostFacts) -> Result<Resolution, CliError> {
    let mut notes = Vec::new();
    let (listen, port) = addresses(&settings)?;
    let memory_bytes = match settings.memory {
        Some(memory) => memory.0,
        None => MEMORY_BYTES.min(host.memory_bytes / 4) >> 20 << 20,
    };
    let item_bytes_max = settings.max_item_size.map_or(1 << 20, |size| size.0);
    let cpus = cpus(&settings, host, memory_bytes, item_bytes_max, &mut notes)?;
    let cluster = cluster::resolve(&settings)?;
    let mut config = Config {
        listen,
        port,
        shard_ports: settings.shard_ports.map(|base| base.0),
        unix_socket: settings.unix_socket.as_ref().map(|path| UnixSocket {
            path: path.clone(),
            mode: settings.unix_mode.map_or(0o700, |mode| mode.0),
        }),
        memory_bytes,
        lock_memory: settings.lock_memory.unwrap_or(false),
        item_bytes_max,
        eviction: eviction(&settings)?,
        default_ttl: settings.default_ttl.map(|ttl| ttl.0),
        connections_max: settings.max_connections.map_or(CONNECTIONS_MAX, |count| count.0),
        connection_memory_bytes: settings.connection_memory.map_or_else(
            || CONNECTION_MEMORY_BYTES.max(CORE_CONNECTION_MEMORY_BYTES_MIN * cpus.len() as u64),
            |size| size.0,
        ),
        idle_timeout: settings.idle_timeout.map(|timeout| timeout.0),
        admin: settings.admin.map(|address| address.0),
        log: settings.log.map_or(log_level(settings.verbose), |name| name.0),
        verbosity: settings.verbose.min(2),
        permissions: Permissions {
            cas: !settings.disable_cas.unwrap_or(false),
            flush: !settings.disable_flush_all.unwrap_or(false),
            shutdown: settings.enable_shutdown.unwrap_or(false),
            dump: !settings.disable_dumping.unwrap_or(false),
        },
        prefix_delimiter: settings.prefix_delimiter.map(|delimiter| delimiter.0),
        pid_file: settings.pid_file,
        queues: Queues::for_cores(cpus.len()),
        cluster,
        cpus,
        ..Config::default()
    };
    if let Some(backlog) = settings.backlog {
        config.backlog = backlog.0;
    }
    if let Some(busy_poll) = settings.busy_poll {
        config.busy_poll = busy_poll.0;
    }
    if settings.max_connections.is_none() {
        fit_connections(&mut config, host, &mut notes);
    }
    config.check().map_err(|error| CliError(error.to_string()))?;
    notes.extend(config.cluster.as_ref().and_then(cluster::note));
    Ok(Resolution { config, notes })
}

/// TCP addresses and their one port. A unix socket alone means no TCP, as with memcached.
fn addresses(settings: &Settings) -> Result<(Vec<IpAddr>, u16), CliError> {
    let mut port = settings.port.map(|port| port.0);
    for address in settings.listen.iter().flatten() {
        match (address.port, port) {
            (Some(own), Some(other)) if own != other => {
                return Err(CliError(format!(
                    "--listen {}:{own} conflicts with port {other}: all addresses share one port, \
                     so choose one",
                    address.ip
                )));
            }
            (own, other) => port = own.or(other),
        }
    }
    let unix_only = settings.unix_socket.is_some()
        && settings.listen.is_none()
        && settings.shard_ports.is_none();
    Ok(match port {
        Some(0) if unix_only => (vec![], PORT),
        None if unix_only => (vec![], PORT),
        Some(0) => {
            return Err(CliError(
                "--port 0 leaves nothing to listen on: use a port from 1 to 65535, or give only \
                 --unix-socket"
                    .into(),
            ));
        }
        port => {
            let mut listen: Vec<IpAddr> = Vec::new();
            for address in settings.listen.iter().flatten() {
                if !listen.contains(&address.ip) {
                    listen.push(address.ip);
                }
            }
            if listen.is_empty() {
                listen.push(Ipv4Addr::LOCALHOST.into());
            }
            (listen, port.unwrap_or(PORT))
        }
    })
}

/// The CPU of each core.
fn cpus(
    settings: &Settings,
    host: &HostFacts,
    memory_bytes: u64,
    item_bytes_max: u32,
    notes: &mut Vec<String>,
) -> Result<Vec<usize>, CliError> {
    let named = settings.cpus.as_ref().map(|cpus| cpus.0.clone());
    let mut cpus = named.clone().unwrap_or_else(|| host.allowed_cpus.clone());
    if let Some(count) = settings.cores {
        let count = count.0 as usize;
        if count > cpus.len() {
            let whose = if named.is_some() { "in --cpus" } else { "that this process may use" };
            return Err(CliError(format!(
                "--cores {count} exceeds the {} CPUs {whose} ({}): lower it, or list a CPU twice \
                 in --cpus to run two cores on it",
                cpus.len(),
                preflight::ranges(&cpus)
            )));
        }
        cpus.truncate(count);
    } else if named.is_none() {
        let quota = host.cpu_quota_millis.map_or(usize::MAX, |quota| quota.div_ceil(1000) as usize);
        if quota < cpus.len() {
            cpus.truncate(quota.max(1));
            notes.push(format!(
                "using {} cores, the CPU quota of the control group; --cores overrides it",
                cpus.len()
            ));
        }
        // Every core needs a few pages and room for two of the largest items.
        let core_memory = CORE_MEMORY_BYTES_MIN.max(2 * item_bytes_max as u64);
        let fed = (memory_bytes / core_memory).max(1) as usize;
        if fed < cpus.len() {
            cpus.truncate(fed);
            notes.push(format!(
                "using {fed} cores, since {} of memory does not suffice for more; --cores \
                 overrides it",
                Size(memory_bytes)
            ));
        }
    }
    Ok(cpus)
}

fn eviction(settings: &Settings) -> Result<Eviction, CliError> {
    let none = settings.disable_evictions.unwrap_or(false);
    match settings.eviction.map(|name| name.0) {
        Some(policy) if none && policy != Eviction::None => Err(CliError(format!(
            "--eviction {} contradicts -M, which means --eviction none: omit one of them",
            policy.name()
        ))),
        _ if none => Ok(Eviction::None),
        policy => Ok(policy.unwrap_or_default()),
    }
}

fn log_level(verbose: u8) -> LogLevel {
    match verbose {
        0 => LogLevel::Info,
        1 => LogLevel::Debug,
        _ => LogLevel::Trace,
    }
}

/// Lowers the default number of connections to what the file limit allows.
fn fit_connections(config: &mut Config, host: &HostFacts, notes: &mut Vec<String>) {
    let other_files = preflight::files_needed(config) - config.connections_max as u64;
    let possible = host.files_max.saturating_sub(other_files).max(1);
    if possible < config.connections_max as u64 {
        config.connections_max = possible as u32;
        notes.push(format!(
            "allowing {possible} concurrent connections, since the open file limit is {}; raise it \
             with `ulimit -Hn`",
            host.files_max
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostFacts {
        HostFacts {
            allowed_cpus: vec![0, 1, 4, 5],
            cpu_quota_millis: None,
            memory_bytes: 16 << 30,
            memory_is_limited: false,
            files_max: 1 << 20,
            memlock_bytes_max: 8 << 20,
            kernel: "6.1.0".into(),
        }
    }

    fn settings(line: &str) -> Settings {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            settings: Settings,
        }
        let words = std::iter::once("ringlane").chain(line.split_whitespace());
        Line::try_parse_from(words).expect(line).settings
    }

    fn config(line: &str, host: &HostFacts) -> Config {
        resolve(settings(line), host).expect(line).config
    }

    fn complaint(line: &str) -> String {
        resolve(settings(line), &host()).expect_err(line).to_string()
    }

    #[test]
    fn without_settings_every_allowed_cpu_is_a_core_and_the_rest_is_default() {
        let resolved = resolve(Settings::default(), &host()).expect("defaults are valid");
        assert_eq!(
            resolved.config,
            Config { cpus: vec![0, 1, 4, 5], queues: Queues::for_cores(4), ..Config::default() }
        );
        assert!(resolved.notes.is_empty(), "{:?}", resolved.notes);
    }

    #[test]
    fn memory_is_one_gibibyte_or_a_quarter_of_ram() {
        let poor = HostFacts { memory_bytes: 1000 << 20, ..host() };
        assert_eq!(config("", &poor).memory_bytes, 250 << 20);
        assert_eq!(config("-m 600", &poor).memory_bytes, 600 << 20);
    }

    #[test]
    fn cores_are_the_first_allowed_or_named_cpus() {
        assert_eq!(config("-t 2", &host()).cpus, [0, 1]);
        assert_eq!(config("--cpus 5,4", &host()).cpus, [5, 4]);
        assert_eq!(config("--cpus 5,4 -t 1", &host()).cpus, [5]);
        assert_eq!(config("--cpus 1,1", &host()).cpus, [1, 1]);
        let text = complaint("-t 5");
        assert!(text.contains("--cores 5") && text.contains("0-1,4-5"), "{text}");
    }

    #[test]
    fn a_cpu_quota_or_little_memory_lowers_the_number_of_cores_unless_it_is_given() {
        let limited = HostFacts { cpu_quota_millis: Some(1500), ..host() };
        let resolved = resolve(Settings::default(), &limited).expect("valid");
        assert_eq!((resolved.config.cpus, resolved.notes.len()), (vec![0, 1], 1));
        assert_eq!(config("-t 3", &limited).core_count(), 3);
        assert_eq!(config("-m 6", &host()).core_count(), 3);
        assert_eq!(config("-m 1024 -I 128m", &host()).core_count(), 4);
        assert_eq!(config("-m 1024 -I 256m", &host()).core_count(), 2);
        assert!(complaint("-m 6 -t 4").contains("6MiB"));
    }

    #[test]
    fn a_unix_socket_replaces_tcp_unless_that_is_wanted_too() {
        let unix = config("-s /tmp/r.sock", &host());
        assert!(unix.listen.is_empty());
        assert_eq!(unix.unix_socket.map(|u| u.mode), Some(0o700));
        assert!(config("-s /tmp/r.sock -p 0", &host()).listen.is_empty());
        assert_eq!(config("-s /tmp/r.sock -p 11300", &host()).port, 11300);
        assert_eq!(config("-s /tmp/r.sock -l 127.0.0.2", &host()).listen.len(), 1);
        assert!(complaint("-p 0").contains("--port 0"));
        assert!(complaint("-p 0 -l 127.0.0.1 -s /tmp/r.sock").contains("--port 0"));
    }

    #[test]
    fn addresses_share_one_port() {
        assert_eq!(config("-l 127.0.0.1:11300,127.0.0.2", &host()).port, 11300);
        assert_eq!(config("-l 127.0.0.1,127.0.0.1", &host()).listen.len(), 1);
        let text = complaint("-l 127.0.0.1:11300,127.0.0.2:11301");
        assert!(text.contains("127.0.0.2:11301") && text.contains("11300"), "{text}");
        assert!(complaint("-l 127.0.0.1:11300 -p 11301").contains("11301"));
    }

    #[test]
    fn the_default_number_of_connections_yields_to_the_file_limit_and_a_given_one_does_not() {
        let limited = HostFacts { files_max: 4096, ..host() };
        let resolved = resolve(Settings::default(), &limited).expect("valid");
        assert!(preflight::files_needed(&resolved.config) == 4096, "{resolved:?}");
        assert_eq!(resolved.notes.len(), 1);
        assert_eq!(config("-c 9000", &limited).connections_max, 9000);
    }

    #[test]
    fn verbosity_raises_the_log_level_unless_one_is_given() {
        assert_eq!(config("", &host()).log, LogLevel::Info);
        assert_eq!(config("-v", &host()).log, LogLevel::Debug);
        assert_eq!(config("-vvv", &host()).log, LogLevel::Trace);
        assert_eq!(config("-vvv", &host()).verbosity, 2);
        assert_eq!(config("-v --log off", &host()).log, LogLevel::Off);
    }

    #[test]
    fn permissions_follow_memcacheds_flags() {
        let closed = Permissions { cas: false, flush: false, shutdown: true, dump: false };
        assert_eq!(config("-C -F -A -X", &host()).permissions, closed);
        assert_eq!(config("", &host()).permissions, Permissions::default());
    }

    #[test]
    fn eviction_and_its_short_form_must_not_contradict() {
        assert_eq!(config("-M", &host()).eviction, Eviction::None);
        assert_eq!(config("-M --eviction none", &host()).eviction, Eviction::None);
        assert!(complaint("-M --eviction lru").contains("contradicts"));
    }
}
