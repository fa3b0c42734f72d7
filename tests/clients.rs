//! Real clients against the real server: each script of `tests/clients` starts it and judges.
//!
//! A script whose client is not installed says so and counts as skipped, except where the
//! environment says `RINGLANE_CLIENTS=required`, as the CI does after it has installed them all.
//! `RINGLANE_BINARY` names another server to try.

use std::path::Path;
use std::process::Command;

/// The exit code by which a script says that its client is missing.
const SKIPPED: i32 = 77;

fn run(script: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let built = env!("CARGO_BIN_EXE_ringlane");
    let server = std::env::var("RINGLANE_BINARY").unwrap_or_else(|_| built.to_owned());
    let status = Command::new("python3").arg(path).arg(server).status();
    let required = std::env::var("RINGLANE_CLIENTS").is_ok_and(|value| value == "required");
    match status {
        Err(error) if !required => println!("SKIPPED: {script}: no python3 ({error})"),
        Err(error) => panic!("{script}: python3 does not start: {error}"),
        Ok(status) if status.code() == Some(SKIPPED) && !required => {}
        Ok(status) => assert!(status.success(), "{script}: {status}"),
    }
}

#[test]
fn a_source_tree_survives_pymemcache_and_libmemcached() {
    run("tree.py");
}

#[test]
fn clients_of_the_classic_binary_protocol_get_right_answers() {
    run("binary.py");
}

#[test]
fn memjs_gets_right_answers() {
    run("memjs.py");
}

#[test]
fn the_client_memcached_of_node_gets_right_answers() {
    run("memcached_js.py");
}

#[test]
fn libmemcacheds_tools_pass_their_own_tests() {
    run("tools.py");
}

#[test]
fn the_readmes_examples_work() {
    run("readme.py");
}
