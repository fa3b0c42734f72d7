//! The tool as a whole, against servers that behave and servers that do not.

#[path = "servers/mod.rs"]
mod servers;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use servers::{Manner, Memcached, start};

/// Runs the tool on a small workload; its output, which must come within a minute.
fn ringload(arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_ringload")])
        .args(arguments)
        .output()
        .expect("timeout is part of coreutils")
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// Runs the tool and reads the JSON it writes.
fn measured(name: &str, arguments: &[&str]) -> Value {
    let path = temporary(&format!("{name}.json"));
    let output = ringload(&[arguments, &["--json", path.to_str().expect("plain")]].concat());
    assert!(output.status.success(), "{}", words(&output));
    let text = std::fs::read_to_string(&path).expect("it was written");
    std::fs::remove_file(&path).expect("it is there");
    serde_json::from_str(&text).expect("valid JSON")
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ringload-test-{}-{name}", std::process::id()))
}

fn fault(run: &Value, kind: &str) -> u64 {
    let faults = run["faults"].as_array().expect("a list");
    let found = faults.iter().find(|fault| fault["kind"] == kind);
    found.map_or(0, |fault| fault["count"].as_u64().expect("a count"))
}

const SHORT: [&str; 8] =
    ["--seconds", "1", "--warmup", "0.1", "--keys", "500", "--connections", "4"];

#[test]
fn an_honest_server_passes_with_every_command_in_both_loops() {
    let address = start(Manner::Honest);
    let mix = "get=50,set=20,delete=10,incr=10,multiget=10";
    for pace in [&["--closed", "--pipeline", "8"][..], &["--rate", "2000"]] {
        let flags = ["run", "--address", &address, "--mix", mix, "--multiget-keys", "5"];
        let document = measured("honest", &[&flags[..], &SHORT, pace].concat());
        let run = &document["runs"][0];
        assert_eq!(document["schema_version"], 1);
        assert!(run["requests"].as_u64() > Some(500), "{run}");
        assert_eq!(run["faults"].as_array().map(Vec::len), Some(0), "{run}");
        for class in ["get hit", "set", "delete hit", "incr hit", "multiget hit"] {
            let classes = run["classes"].as_array().expect("a list");
            assert!(classes.iter().any(|entry| entry["name"] == class), "{class}: {classes:?}");
        }
    }
}

#[test]
fn wrong_answers_fail_the_run_with_the_key_and_both_values() {
    for (manner, mix, what) in [
        (Manner::Stale, "get=1,set=1", "stale: version"),
        (Manner::Swapped, "get=1", "the value of key number"),
        (Manner::Damaged, "get=1", "differs from byte 20 on"),
        (Manner::Stuck, "incr=1", "an increment did not grow the counter"),
    ] {
        let address = start(manner);
        let flags = ["run", "--address", &address, "--closed", "--mix", mix, "--keys", "20"];
        let flags = [&flags[..], &["--populate", "--seconds", "20", "--connections", "4"]].concat();
        let output = ringload(&flags);
        let words = words(&output);
        assert_eq!(output.status.code(), Some(3), "{manner:?}: {words}");
        for part in ["wrong answer for key key:", what, "expected \"", "received \""] {
            assert!(words.contains(part), "{manner:?} without {part}: {words}");
        }
    }
}

#[test]
fn values_of_an_earlier_workload_are_written_over_first() {
    let address = start(Manner::Honest);
    let flags = ["run", "--address", &address, "--closed"];
    for lengths in ["32", "10-1000", "50:1,60:1"] {
        let flags = [&flags[..], &["--value-bytes", lengths], &SHORT].concat();
        let run = &measured("earlier", &flags)["runs"][0];
        assert_eq!(run["hit_ratio"], 1.0, "{lengths}: {run}");
    }
    // Misses fill themselves here, but values of other lengths would not go away.
    let flags = [&flags[..], &["--value-bytes", "32", "--cache-aside"], &SHORT].concat();
    measured("earlier", &flags);
}

#[test]
fn values_too_large_for_a_long_pipeline_are_written_one_after_the_other() {
    let address = start(Manner::Honest);
    let flags = ["populate", "--address", &address, "--keys", "40", "--connections", "4"];
    let run = &measured("large", &[&flags[..], &["--value-bytes", "1MiB"]].concat())["runs"][0];
    assert_eq!(run["load"]["pipeline"], 1, "{run}");
}

#[test]
fn what_is_not_verified_does_not_fail() {
    let address = start(Manner::Swapped);
    let flags = ["run", "--address", &address, "--closed", "--mix", "get=1", "--verify", "off"];
    let document = measured("unverified", &[&flags[..], &SHORT].concat());
    assert!(document["runs"][0]["requests"].as_u64() > Some(100));
}

#[test]
fn nobody_at_the_address_is_one_sentence() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    for address in [free.to_string(), temporary("none.sock").display().to_string()] {
        let output = ringload(&["run", "--address", &address, "--closed"]);
        let words = words(&output);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("cannot connect"), "{words}");
        assert_eq!(words.trim().lines().count(), 1, "{words}");
    }
}

#[test]
fn a_server_that_dies_in_the_middle_fails_the_run_which_shows_what_it_had() {
    let json = temporary("dies.json");
    let json = json.to_str().expect("plain");
    for (command, pace, shown) in
        [("run", "--rate", "connection refused"), ("sweep", "--rates", "\n        2000  ")]
    {
        // Enough for the keys to be written and for about half of the run.
        let address = start(Manner::DiesAfter(4000));
        let load = ["--connections", "4", "--keys", "500", "--warmup", "0.1", "--seconds", "3"];
        let flags = [command, "--address", &address, pace, "2000", "--json", json];
        let output = ringload(&[&flags[..], &load].concat());
        let words = words(&output);
        assert_eq!(output.status.code(), Some(1), "{command}: {words}");
        assert!(words.contains("the server went away before the end"), "{command}: {words}");
        assert!(words.contains(shown), "{command}: {words}");
        if command == "run" {
            let written = std::fs::read_to_string(json).expect("it was written");
            let document: Value = serde_json::from_str(&written).expect("valid JSON");
            assert!(document["runs"][0]["requests"].as_u64() > Some(100), "{document}");
        }
    }
    let _ = std::fs::remove_file(json);
}

#[test]
fn a_rate_far_beyond_the_server_is_said_to_be_and_not_taken_for_silence() {
    let address = start(Manner::Honest);
    let flags = ["run", "--address", &address, "--rate", "50M", "--seconds", "1", "--warmup", "1"];
    let output = ringload(&[&flags[..], &["--keys", "500", "--connections", "4"]].concat());
    let words = words(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("the server fell so far behind"), "{words}");
}

#[test]
fn a_foreign_protocol_is_named_and_never_a_silent_zero() {
    let address = start(Manner::Foreign);
    for command in ["run", "populate", "verify"] {
        let flags = [command, "--address", &address, "--timeout", "1s", "--quiet"];
        let output = ringload(&[&flags[..], &SHORT].concat());
        let words = words(&output);
        assert_eq!(output.status.code(), Some(1), "{command}: {words}");
        assert!(words.contains("does not speak the text protocol"), "{command}: {words}");
        assert!(words.contains("SSH-2.0-OpenSSH_9.2"), "{command}: {words}");
    }
    let flags = ["run", "--address", &address, "--protocol", "binary"];
    let output = ringload(&[&flags[..], &SHORT].concat());
    assert!(words(&output).contains("does not speak the binary protocol"), "{}", words(&output));
}

#[test]
fn a_mute_server_is_given_up() {
    let address = start(Manner::Mute);
    let flags = ["run", "--address", &address, "--closed", "--timeout", "500ms", "--populate=no"];
    let output = ringload(&[&flags[..], &SHORT].concat());
    let words = words(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("no request was answered: no answer from"), "{words}");
}

#[test]
fn lost_connections_are_counted_and_made_anew() {
    let address = start(Manner::Closes(50));
    let flags = ["run", "--address", &address, "--closed", "--pipeline", "4"];
    let document = measured("closes", &[&flags[..], &SHORT, &["--cache-aside"]].concat());
    let run = &document["runs"][0];
    assert!(run["requests"].as_u64() > Some(400), "more than the first connections served: {run}");
    let closed = fault(run, "connection closed by the server") + fault(run, "connection reset");
    assert!(closed > 0, "{run}");
    assert!(fault(run, "request lost with its connection") > 0, "{run}");
}

#[test]
fn refused_writes_are_counted_in_the_servers_words() {
    let address = start(Manner::Full);
    let flags = ["run", "--address", &address, "--closed", "--mix", "get=1,set=1", "--populate=no"];
    let document = measured("full", &[&flags[..], &SHORT].concat());
    let run = &document["runs"][0];
    assert!(fault(run, "error answer") > 0, "{run}");
    let first = run["faults"][0]["first"].as_str().expect("words");
    assert!(first.contains("SERVER_ERROR out of memory storing object"), "{first}");
}

#[test]
fn churn_renews_connections_without_faults() {
    let address = start(Manner::Honest);
    let flags = ["run", "--address", &address, "--closed", "--churn", "20", "--cache-aside"];
    let document = measured("churn", &[&flags[..], &SHORT].concat());
    let run = &document["runs"][0];
    assert_eq!(run["faults"].as_array().map(Vec::len), Some(0), "{run}");
    assert!(run["connections_renewed"].as_u64() > Some(3), "{run}");
}

#[test]
fn every_key_is_written_and_read_back() {
    let address = start(Manner::Honest);
    let keys = ["--address", &address, "--keys", "3000", "--value-bytes", "0-3000", "--quiet"];
    let output = ringload(&[&["verify", "--complete"], &keys[..]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    assert!(words(&output).contains("3000 keys are missing"), "{}", words(&output));
    let output = ringload(&[&["populate"], &keys[..]].concat());
    assert!(output.status.success(), "{}", words(&output));
    let output = ringload(&[&["verify", "--complete"], &keys[..]].concat());
    assert!(output.status.success(), "{}", words(&output));
    assert!(words(&output).contains("3000 of 3000 keys hold their value"), "{}", words(&output));
}

#[test]
fn memcached_passes_in_text_and_meta_with_its_cpu_time() {
    let Some(memcached) = Memcached::start() else { return };
    for protocol in ["text", "meta"] {
        for pace in [&["--closed", "--pipeline", "16"][..], &["--rate", "3000"]] {
            let mix = "get=60,set=20,delete=5,incr=10,multiget=5";
            let flags = ["run", "--address", &memcached.address, "--protocol", protocol];
            let more = ["--mix", mix, "--value-bytes", "10-30000", "--ttl", "0:9,1:1"];
            let flags = [&flags[..], &more, &SHORT, pace].concat();
            let document = measured(&format!("memcached-{protocol}"), &flags);
            let run = &document["runs"][0];
            assert_eq!(run["faults"].as_array().map(Vec::len), Some(0), "{run}");
            let cpu = run["server_cpu"]["micros_per_request"].as_f64();
            assert!(cpu > Some(0.0), "found by its port, pid {}: {run}", memcached.pid());
        }
    }
}

#[test]
fn a_comparison_yields_ratios_and_a_page() {
    if Memcached::start().is_none() {
        return;
    }
    let server =
        |name: &str| format!("{name}=memcached -u nobody -U 0 -l 127.0.0.1 -m 64 -t 1 -p {{port}}");
    let (page, table) = (temporary("page.html"), temporary("table.md"));
    let (one, two) = (server("one"), server("two"));
    let flags = ["compare", &one, &two, "--rounds", "2", "--closed"];
    let files = ["--html", page.to_str().expect("plain"), "--markdown"];
    let flags = [&flags[..], &files, &[table.to_str().expect("plain")], &SHORT].concat();
    let document = measured("compare", &flags);
    assert_eq!(document["runs"].as_array().map(Vec::len), Some(4));
    let ratio = &document["comparison"]["rows"][0]["ratios"][0];
    assert_eq!(ratio["against"], "two");
    assert!(ratio["cpu"]["median"].as_f64() > Some(0.0), "{ratio}");
    let page = std::fs::read_to_string(page).expect("written");
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("http"));
    let table = std::fs::read_to_string(table).expect("written");
    assert!(table.contains("| as asked | two |"), "{table}");
}
