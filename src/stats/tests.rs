use super::*;
use std::collections::HashSet;

/// The names of memcached's general statistics, its LRU threads being off.
const GENERAL: &str = "pid uptime time version libevent pointer_size rusage_user rusage_system \
    max_connections curr_connections total_connections rejected_connections connection_structures \
    response_obj_oom response_obj_count response_obj_bytes read_buf_count read_buf_bytes \
    read_buf_bytes_free read_buf_oom reserved_fds cmd_get cmd_set cmd_flush cmd_touch cmd_meta \
    get_hits get_misses get_expired get_flushed delete_misses delete_hits incr_misses incr_hits \
    decr_misses decr_hits cas_misses cas_hits cas_badval touch_hits touch_misses store_too_large \
    store_no_memory auth_cmds auth_errors bytes_read bytes_written limit_maxbytes accepting_conns \
    listen_disabled_num time_in_listen_disabled_us threads conn_yields hash_power_level hash_bytes \
    hash_is_expanding slab_reassign_rescues slab_reassign_chunk_rescues \
    slab_reassign_inline_reclaim slab_reassign_busy_items slab_reassign_busy_deletes \
    slab_reassign_busy_nomem slab_reassign_last_busy_status slab_reassign_running slabs_moved \
    malloc_fails log_worker_dropped log_worker_written log_watcher_skipped log_watcher_sent \
    log_watchers unexpected_napi_ids round_robin_fallback bytes curr_items total_items \
    slab_global_page_pool expired_unfetched evicted_unfetched evictions reclaimed \
    crawler_reclaimed crawler_items_checked lrutail_reflocked";

/// The settings that test suites and tools read.
const SETTINGS: &str = "maxbytes maxconns tcpport udpport inter verbosity oldest evictions \
    domain_socket umask shutdown_command growth_factor chunk_size num_threads detail_enabled \
    reqs_per_event cas_enabled tcp_backlog binding_protocol auth_enabled_sasl auth_enabled_ascii \
    item_size_max maxconns_fast slab_reassign slab_automove lru_crawler lru_maintainer_thread \
    lru_segmented hot_lru_pct warm_lru_pct temp_lru temporary_ttl idle_timeout flush_enabled \
    dump_enabled track_sizes hash_algorithm client_flags_size memory_file";

fn pairs(topic: Topic, change: impl FnOnce(&mut Vec<CoreStats>)) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    with_snapshot(change, |snapshot| {
        render(topic, snapshot, &mut |name, value| {
            pairs.push((name.to_string(), value.to_string()));
        });
    });
    pairs
}

/// Shows `look` a snapshot of two cores as `change` left them.
fn with_snapshot(change: impl FnOnce(&mut Vec<CoreStats>), look: impl FnOnce(&Snapshot<'_>)) {
    let mut cores = vec![CoreStats::default(), CoreStats::default()];
    change(&mut cores);
    let process = ProcessStats {
        pid: 42,
        uptime: Duration::from_secs(100),
        user: Duration::from_micros(1_000_005),
        ..ProcessStats::default()
    };
    let connections = [
        ConnectionStats {
            id: 7,
            address: ConnectionAddress::Tcp("127.0.0.1:11211".parse().unwrap()),
            listen_address: None,
            state: ConnectionState::Listening,
            idle_seconds: 3,
        },
        ConnectionStats {
            id: 8,
            address: ConnectionAddress::Tcp("[::1]:5000".parse().unwrap()),
            listen_address: Some(ConnectionAddress::Unix("/tmp/s".into())),
            state: ConnectionState::Parsing,
            idle_seconds: 0,
        },
    ];
    let snapshot = Snapshot {
        cluster: None,
        now: Instant::from_millis(1_700_000_000_000),
        process: &process,
        config: &Config::default(),
        knobs: &MemcachedKnobs::default(),
        verbosity: 1,
        flushed_at: Instant::from_millis(1_699_999_990_000),
        cores: &cores,
        connections: &connections,
    };
    look(&snapshot);
}

fn value<'p>(pairs: &'p [(String, String)], name: &str) -> &'p str {
    &pairs.iter().find(|pair| pair.0 == name).unwrap_or_else(|| panic!("no {name}")).1
}

#[test]
fn general_has_memcacheds_84_names_in_its_order() {
    let names: Vec<_> = pairs(Topic::General, |_| {}).into_iter().map(|pair| pair.0).collect();
    assert_eq!(names, GENERAL.split_whitespace().collect::<Vec<_>>());
    assert_eq!(names.len(), 84);
}

#[test]
fn figures_of_all_cores_are_added_up() {
    let pairs = pairs(Topic::General, |cores| {
        for (i, core) in cores.iter_mut().enumerate() {
            core.counters.cmd_get = 10 + i as u64;
            core.connections.bytes_read = 100;
            core.curr_connections = 2;
            core.gauges.items = 5;
            core.gauges.buckets = 1 << 10;
        }
    });
    assert_eq!(value(&pairs, "cmd_get"), "21");
    assert_eq!(value(&pairs, "bytes_read"), "200");
    assert_eq!(value(&pairs, "curr_connections"), "4");
    assert_eq!(value(&pairs, "curr_items"), "10");
    assert_eq!(value(&pairs, "hash_power_level"), "11");
    assert_eq!(value(&pairs, "hash_is_expanding"), "0");
    assert_eq!(value(&pairs, "threads"), "2");
    assert_eq!(value(&pairs, "rusage_user"), "1.000005");
    assert_eq!(value(&pairs, "uptime"), "100");
    assert_eq!(value(&pairs, "time"), "1700000000");
}

#[test]
fn settings_have_the_names_that_tools_read() {
    let pairs = pairs(Topic::Settings, |_| {});
    let names: HashSet<_> = pairs.iter().map(|pair| pair.0.as_str()).collect();
    assert_eq!(names.len(), pairs.len(), "no name comes twice");
    for name in SETTINGS.split_whitespace() {
        assert!(names.contains(name), "{name}");
    }
    assert_eq!(value(&pairs, "domain_socket"), "NULL");
    assert_eq!(value(&pairs, "inter"), "127.0.0.1");
    assert_eq!(value(&pairs, "evictions"), "on");
    assert_eq!(value(&pairs, "umask"), "700");
    assert_eq!(value(&pairs, "slab_automove_ratio"), "0.80");
    assert_eq!(value(&pairs, "slab_automove_freeratio"), "0.010");
    assert_eq!(value(&pairs, "oldest"), "90");
    assert_eq!(value(&pairs, "cas_enabled"), "yes");
}

#[test]
fn classes_of_all_cores_are_merged_by_number() {
    let class = |class, number, total_pages| ClassStats {
        class,
        number,
        total_pages,
        chunk_size: 96,
        chunks_per_page: 100,
        total_chunks: total_pages * 100,
        used_chunks: number,
        free_chunks: total_pages * 100 - number,
        age: number,
        ..ClassStats::default()
    };
    let change = |cores: &mut Vec<CoreStats>| {
        cores[0].classes = vec![class(3, 5, 1), class(1, 0, 1)];
        cores[1].classes = vec![class(3, 7, 2)];
        cores[1].gauges.slab_bytes = 3 << 20;
    };
    let items = pairs(Topic::Items, change);
    assert_eq!(items[0], ("items:3:number".into(), "12".into()));
    assert_eq!(value(&items, "items:3:age"), "7");
    assert!(items.iter().all(|pair| pair.0.starts_with("items:3:")), "only classes with items");
    let slabs = pairs(Topic::Slabs, change);
    assert_eq!(slabs[0], ("1:chunk_size".into(), "96".into()));
    assert_eq!(value(&slabs, "3:total_chunks"), "300");
    assert_eq!(value(&slabs, "3:free_chunks"), "288");
    assert_eq!(value(&slabs, "active_slabs"), "2");
    assert_eq!(value(&slabs, "total_malloced"), "3145728");
}

#[test]
fn connections_are_shown_one_by_one() {
    let pairs = pairs(Topic::Connections, |_| {});
    assert_eq!(value(&pairs, "7:addr"), "tcp:127.0.0.1:11211");
    assert!(!pairs.iter().any(|pair| pair.0 == "7:listen_addr"));
    assert_eq!(value(&pairs, "7:state"), "conn_listening");
    assert_eq!(value(&pairs, "8:addr"), "tcp6:[::1]:5000");
    assert_eq!(value(&pairs, "8:listen_addr"), "unix:/tmp/s");
    assert_eq!(value(&pairs, "8:secs_since_last_cmd"), "0");
}

#[test]
fn cores_are_shown_one_by_one() {
    let pairs = pairs(Topic::Cores, |cores| {
        cores[1].local_requests = 5;
        cores[1].forwarded_requests = 6;
        cores[1].busy = Duration::from_millis(7);
        cores[1].longest_turn = Duration::from_micros(800);
    });
    assert_eq!(value(&pairs, "core:0:requests"), "0");
    assert_eq!(value(&pairs, "core:1:requests"), "11");
    assert_eq!(value(&pairs, "core:1:forwarded"), "6");
    assert_eq!(value(&pairs, "core:1:busy_us"), "7000");
    assert_eq!(value(&pairs, "core:1:longest_turn_us"), "800");
}

#[test]
fn topics_are_known_by_their_first_word() {
    assert_eq!(Topic::parse(b""), Some(Topic::General));
    assert_eq!(Topic::parse(b"settings extra"), Some(Topic::Settings));
    assert_eq!(Topic::parse(b"detail  on"), Some(Topic::Detail(true)));
    assert_eq!(Topic::parse(b"detail off"), Some(Topic::Detail(false)));
    assert_eq!(Topic::parse(b"detail dump"), Some(Topic::DetailDump));
    assert_eq!(Topic::parse(b"detail"), Some(Topic::DetailUsage));
    assert_eq!(Topic::parse(b"detail x"), Some(Topic::DetailUsage));
    assert_eq!(Topic::parse(b"noreply"), None);
    assert_eq!(Topic::parse(b"set"), None);
}

/// Two cores that differ, one class of slabs.
fn busy_cores(cores: &mut [CoreStats]) {
    for (i, core) in cores.iter_mut().enumerate() {
        core.counters.get_hits = 10 + i as u64;
        core.counters.total_items = 3;
        core.gauges.items = 5;
        core.connections.bytes_read = 100;
        core.forwarded_requests = i as u64;
        core.busy = Duration::from_millis(1500);
        core.classes = vec![
            ClassStats { class: 4, chunk_size: 96, total_pages: 1, ..ClassStats::default() },
            ClassStats { class: 5, chunk_size: 104, ..ClassStats::default() },
        ];
    }
}

#[test]
fn prometheus_reads_sums_and_then_cores_and_classes_one_by_one() {
    with_snapshot(
        |cores| busy_cores(cores),
        |snapshot| {
            let text = prometheus::render(snapshot);
            for line in [
                "# TYPE ringlane_get_hits_total counter",
                "# HELP ringlane_get_hits_total Reads that found an item.",
                "ringlane_get_hits_total 21",
                "ringlane_items_stored_total 6",
                "# TYPE ringlane_items gauge",
                "ringlane_items 10",
                "ringlane_bytes_read_total 200",
                "ringlane_cpu_user_seconds_total 1.000005",
                "ringlane_core_forwarded_requests_total{core=\"1\",cpu=\"0\"} 1",
                "ringlane_core_busy_seconds_total{core=\"0\",cpu=\"0\"} 1.500000",
                "ringlane_class_pages{class=\"4\",chunk_bytes=\"96\"} 2",
            ] {
                assert!(text.lines().any(|found| found == line), "no {line} in {text}");
            }
            assert!(!text.contains("class=\"5\""), "a class without pages has nothing to tell");
        },
    );
}

#[test]
fn prometheus_text_is_well_formed() {
    with_snapshot(
        |cores| busy_cores(cores),
        |snapshot| {
            let text = prometheus::render(snapshot);
            assert!(text.ends_with('\n'));
            let (mut families, mut series) = (HashSet::new(), HashSet::new());
            let (mut name, mut kind) = ("", "");
            let mut lines = text.lines();
            while let Some(line) = lines.next() {
                if let Some(help) = line.strip_prefix("# HELP ") {
                    let declared = lines.next().expect("a TYPE follows");
                    let mut words = declared.split(' ');
                    assert_eq!(
                        (words.next(), words.next()),
                        (Some("#"), Some("TYPE")),
                        "{declared}"
                    );
                    name = words.next().expect("a name");
                    kind = words.next().expect("a kind");
                    assert!(help.starts_with(&format!("{name} ")) && help.ends_with('.'), "{help}");
                    assert!(families.insert(name), "{name} comes twice");
                    assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                    let fits = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
                    assert!(name.starts_with("ringlane_") && name.bytes().all(fits), "{name}");
                    continue;
                }
                let (sample, value) = line.rsplit_once(' ').expect("a name and a value");
                assert_eq!(sample.split('{').next(), Some(name), "a sample outside of its family");
                assert!(series.insert(sample), "{sample} comes twice");
                assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
                assert!(matches!(kind, "counter" | "gauge"), "{kind}");
            }
            assert!(families.len() > 60 && series.len() > families.len(), "{}", families.len());
        },
    );
}

#[test]
fn json_has_every_topic_with_its_names() {
    with_snapshot(
        |cores| busy_cores(cores),
        |snapshot| {
            let text = json::render(snapshot);
            for part in [
                "{\"general\":{\n\"pid\":42,",
                "\"version\":\"",
                "\"settings\":{",
                "\"domain_socket\":\"NULL\"",
                "\"items\":{},\n",
                "\"slabs\":{\n\"4:chunk_size\":96,",
                "\"7:addr\":\"tcp:127.0.0.1:11211\"",
                "\"core:1:forwarded\":1",
            ] {
                assert!(text.contains(part), "no {part} in {text}");
            }
            let count = |char| text.matches(char).count();
            assert_eq!((count('{'), count('}')), (7, 7));
            assert!(text.ends_with("}}\n") && !text.contains(",\n}"), "{text}");
        },
    );
}
