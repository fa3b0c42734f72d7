//! The output of `ringlane check`: the configuration, one line per setting.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use ringlane::config::size::Size;
use ringlane::config::{ClusterConfig, Config};
use ringlane::ring::RingHash;
use ringlane::server::preflight::ranges;

/// The configuration, one newline-terminated line per setting.
pub fn describe(config: &Config) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<16} {value}");
    };
    let span = |span: Option<Duration>, none: &str| match span {
        Some(span) => format!("{} s", span.as_secs()),
        None => none.to_owned(),
    };
    let mut listening: Vec<String> = config
        .listen
        .iter()
        .map(|&address| SocketAddr::new(address, config.port).to_string())
        .collect();
    if let Some(unix) = &config.unix_socket {
        listening.push(format!("{} (mode {:o})", unix.path.display(), unix.mode));
    }
    let cores = config.core_count();
    line("listen", listening.join(", "));
    if let Some(base) = config.shard_ports {
        line("shard ports", format!("{base} to {}", base as usize + cores - 1));
    }
    if let Some(admin) = config.admin {
        line("admin", admin.to_string());
    }
    line("cores", format!("{cores} on CPU {}", ranges(&config.cpus)));
    let per_core = config.shard().memory_bytes;
    line("memory", format!("{}, {} per core", Size(config.memory_bytes), mebibytes(per_core)));
    line("memory locked", if config.lock_memory { "yes" } else { "no" }.into());
    line("max item size", Size(config.item_bytes_max as u64).to_string());
    line("eviction", config.eviction.name().into());
    line("default TTL", span(config.default_ttl, "none"));
    line("max connections", config.connections_max.to_string());
    line("connection mem", Size(config.connection_memory_bytes).to_string());
    line("idle timeout", span(config.idle_timeout, "none"));
    line("busy poll", format!("at most {} µs", config.busy_poll.as_micros()));
    let permissions = config.permissions;
    let allowed: Vec<&str> = [
        ("cas", permissions.cas),
        ("flush_all", permissions.flush),
        ("shutdown", permissions.shutdown),
        ("listing keys", permissions.dump),
    ]
    .into_iter()
    .filter_map(|(name, allowed)| allowed.then_some(name))
    .collect();
    line("clients may", allowed.join(", "));
    if let Some(delimiter) = config.prefix_delimiter {
        line("key prefixes", format!("counted up to {}", char::from(delimiter)));
    }
    if let Some(path) = &config.pid_file {
        line("pid file", path.display().to_string());
    }
    if let Some(cluster) = &config.cluster {
        describe_cluster(cluster, &mut line);
    }
    line("log", config.log.name().into());
    text
}

fn describe_cluster(cluster: &ClusterConfig, line: &mut impl FnMut(&str, String)) {
    let mut at = format!("{} at {}", cluster.node_id, cluster.advertise);
    if cluster.listen != cluster.advertise {
        at += &format!(", listening on {}", cluster.listen);
    }
    line("cluster", cluster.name.clone());
    line("node", format!("{at}, weight {}", cluster.weight));
    let list = |addresses: &[SocketAddr]| {
        addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
    };
    if !cluster.join.is_empty() {
        line("join", list(&cluster.join));
    }
    if let Some(members) = &cluster.members {
        let members = members.iter().map(|member| format!("{}={}", member.id, member.address));
        line("members", members.collect::<Vec<_>>().join(", "));
    }
    let key =
        if cluster.key.is_some() { "given" } else { "none: anyone who reaches the port can join" };
    line("cluster key", key.into());
    let replication = cluster.replication;
    line(
        "replication",
        format!(
            "replicas {}, write quorum {}, read quorum {}",
            replication.replicas(),
            replication.write_quorum(),
            replication.read_quorum()
        ),
    );
    let hash = RingHash::NAMES.iter().find(|(_, hash)| *hash == cluster.ring_hash);
    line(
        "ring",
        format!(
            "{}, {} points per weight",
            hash.map_or("", |(name, _)| name),
            cluster.points_per_weight
        ),
    );
    line(
        "liveness",
        format!(
            "probe every {:?}, dead after {:?}, forget after {:?}",
            cluster.probe_period, cluster.dead_after, cluster.forget_after
        ),
    );
    line("operations", format!("time out after {:?}", cluster.operation_timeout));
    line(
        "hints",
        format!("at most {} for {:?}", Size(cluster.hint_bytes_max), cluster.hint_age_max),
    );
    line("link queue", Size(cluster.link_queue_bytes_max).to_string());
    line("link memory", format!("{} per direction", Size(cluster.link_bytes_max)));
    line("operation mem", Size(cluster.operation_bytes_max).to_string());
    line("rebalancing", format!("{} per second", Size(cluster.rebalance_bytes_per_second)));
    line("leave timeout", format!("{:?}", cluster.leave_timeout));
    let hot = cluster.hot_keys;
    line(
        "hot keys",
        format!(
            "{} requests in {:?}, copies at most {} for {:?}",
            hot.threshold,
            hot.window,
            Size(hot.cache_bytes_max),
            hot.cache_age_max
        ),
    );
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.4}", bytes as f64 / (1 << 20) as f64)
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
        + "MiB"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_memory_are_readable() {
        assert_eq!(mebibytes(512 << 20), "512MiB");
        assert_eq!(mebibytes((1 << 30) / 3), "341.3333MiB");
        assert_eq!(mebibytes(100 << 20), "100MiB");
    }

    #[test]
    fn a_member_of_a_cluster_shows_what_it_shares_with_the_others() {
        let cluster = ClusterConfig::new("127.0.0.2:7000".parse().expect("an address"));
        let text = describe(&Config { cluster: Some(cluster), ..Config::default() });
        for word in ["ringlane", "127.0.0.2:7000", "replicas 1", "md5, 150", "3s", "64MiB", "1000"]
        {
            assert!(text.contains(word), "{word} in {text}");
        }
    }

    #[test]
    fn every_line_names_what_a_flag_can_change() {
        let text = describe(&Config { shard_ports: Some(12000), ..Config::default() });
        for word in ["127.0.0.1:11211", "12000", "CPU 0", "1GiB", "lru", "10000", "flush_all"] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
}
