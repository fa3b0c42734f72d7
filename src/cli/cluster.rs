//! Resolves the cluster settings: all or none, depending on `--cluster-listen`.

use ringlane::config::ClusterConfig;

use super::CliError;
use super::settings::Settings;

/// The cluster configuration, or `None` for a standalone node.
pub fn resolve(settings: &Settings) -> Result<Option<ClusterConfig>, CliError> {
    let Some(listen) = &settings.cluster_listen else {
        return match given(settings) {
            None => Ok(None),
            Some(flag) => Err(CliError(format!(
                "{flag} has no effect on a standalone node: give --cluster-listen ADDR:PORT or \
                 omit it"
            ))),
        };
    };
    let advertise = settings.cluster_advertise.unwrap_or(*listen).0;
    let mut cluster = ClusterConfig::new(advertise);
    cluster.listen = listen.0;
    let count = |number: Option<super::values::PositiveNumber>| number.map_or(1, |number| number.0);
    let copies = count(settings.replicas);
    let (write, read) = (count(settings.write_quorum), count(settings.read_quorum));
    cluster.replication = ClusterConfig::replication(copies, write, read)
        .map_err(|error| CliError(error.to_string()))?;

    macro_rules! take {
        ($($setting:ident => $($field:ident).+;)*) => {
            $(if let Some(value) = &settings.$setting {
                cluster.$($field).+ = value.0.clone();
            })*
        };
    }
    take! {
        node_id => node_id;
        weight => weight;
        ring_hash => ring_hash;
        vnodes => points_per_weight;
        probe_period => probe_period;
        dead_after => dead_after;
        forget_after => forget_after;
        operation_timeout => operation_timeout;
        hint_memory => hint_bytes_max;
        hint_age => hint_age_max;
        link_queue => link_queue_bytes_max;
        link_memory => link_bytes_max;
        operation_memory => operation_bytes_max;
        rebalance_rate => rebalance_bytes_per_second;
        leave_timeout => leave_timeout;
        hot_key_window => hot_keys.window;
        hot_key_threshold => hot_keys.threshold;
        hot_key_memory => hot_keys.cache_bytes_max;
        hot_key_age => hot_keys.cache_age_max;
    }
    if let Some(name) = &settings.cluster_name {
        cluster.name = name.clone();
    }
    cluster.insecure = settings.cluster_insecure.unwrap_or(false);
    cluster.key = settings.cluster_key_file.as_ref().map(|file| file.0.clone());
    cluster.join = settings.join.iter().flatten().map(|address| address.0).collect();
    cluster.members = settings
        .members
        .as_ref()
        .map(|members| members.iter().map(|member| member.0.clone()).collect());
    Ok(Some(cluster))
}

/// A warning about a cluster without a key, which `ClusterConfig::check` has allowed.
pub fn note(cluster: &ClusterConfig) -> Option<String> {
    cluster.key.is_none().then(|| {
        format!(
            "without --cluster-key-file anyone who reaches {} can join the cluster, and read and \
             change its items",
            cluster.listen
        )
    })
}

/// The flag of the first given setting that only applies to a cluster.
fn given(settings: &Settings) -> Option<&'static str> {
    macro_rules! first {
        ($($field:ident $flag:literal)*) => {
            [$(settings.$field.is_some().then_some($flag)),*].into_iter().flatten().next()
        };
    }
    first! {
        cluster_advertise "--cluster-advertise" node_id "--node-id" join "--join"
        members "--members" cluster_name "--cluster-name" cluster_key_file "--cluster-key-file"
        cluster_insecure "--cluster-insecure"
        replicas "--replicas" write_quorum "--write-quorum" read_quorum "--read-quorum"
        vnodes "--vnodes" ring_hash "--ring-hash" weight "--weight"
        probe_period "--probe-period" dead_after "--dead-after" forget_after "--forget-after"
        operation_timeout "--operation-timeout" hint_memory "--hint-memory" hint_age "--hint-age"
        link_queue "--link-queue" link_memory "--link-memory" operation_memory "--operation-memory"
        rebalance_rate "--rebalance-rate"
        leave_timeout "--leave-timeout"
        hot_key_window "--hot-key-window" hot_key_threshold "--hot-key-threshold"
        hot_key_memory "--hot-key-memory" hot_key_age "--hot-key-age"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn complaint(line: &str) -> String {
        resolve(&settings(line)).expect_err(line).to_string()
    }

    #[test]
    fn a_node_is_alone_unless_it_listens_for_others() {
        assert_eq!(resolve(&settings("-m 64")), Ok(None));
        for flags in ["--join 127.0.0.2:7000", "--replicas 3", "--hot-key-age 0"] {
            let text = complaint(flags);
            let flag = flags.split(' ').next().expect("a flag");
            assert!(text.starts_with(flag) && text.contains("--cluster-listen"), "{text}");
        }
    }

    #[test]
    fn a_node_is_called_by_the_address_others_know_it_by() {
        let cluster = |line: &str| resolve(&settings(line)).expect(line).expect("a cluster");
        let plain = cluster("--cluster-listen 127.0.0.2:7000");
        assert_eq!(plain, ClusterConfig::new("127.0.0.2:7000".parse().expect("an address")));
        assert_eq!(plain.node_id, "127.0.0.2:7000");
        let hidden = "--cluster-listen 0.0.0.0:7000 --cluster-advertise 10.0.0.1:7001";
        assert_eq!(cluster(hidden).node_id, "10.0.0.1:7001");
        assert_eq!(cluster(hidden).listen.port(), 7000);
        assert_eq!(cluster("--cluster-listen 127.0.0.2:7000 --node-id a").node_id, "a");
    }

    #[test]
    fn quorums_above_the_replicas_are_refused() {
        let line = "--cluster-listen 127.0.0.2:7000 --replicas 3 --write-quorum 4";
        assert!(complaint(line).contains("write quorum of 4"));
        let line = "--cluster-listen 127.0.0.2:7000 --read-quorum 2";
        assert!(complaint(line).contains("--replicas"));
    }
}
