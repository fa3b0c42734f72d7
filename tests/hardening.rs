//! What confines a node: the container's seccomp profile, the systemd unit, the image.
//!
//! The profile is tried on the real server: `tuning/seccomp.py` compares it with what strace sees,
//! and runs the server under it. Where a tool is missing a test says SKIPPED.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The exit code by which `seccomp.py` says that something is missing here.
const SKIPPED: i32 = 77;
/// Ceiling for the exposure level of `systemd-analyze security`, times ten; 100 is the worst.
const EXPOSURE_MAX: &str = "20";

fn tuning(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(name)
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a subcommand of `seccomp.py` on the server that cargo has built.
fn seccomp(subcommand: &str) {
    let output = Command::new("python3")
        .arg(tuning("seccomp.py"))
        .args([subcommand, env!("CARGO_BIN_EXE_ringlane")])
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return println!("SKIPPED: no python3 ({error})"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    if output.status.code() != Some(SKIPPED) {
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "seccomp.py {subcommand}: {said}{error}");
    }
}

#[test]
fn the_profile_lists_what_the_server_calls_and_nothing_it_does_not() {
    seccomp("trace");
}

#[test]
fn the_server_serves_under_the_profile_and_the_rest_is_refused() {
    seccomp("test");
}

/// The unit with the binary that cargo has built, since systemd wants the file to exist.
fn unit() -> PathBuf {
    let text = read(tuning("ringlane.service"));
    assert!(text.contains("ExecStart=/usr/local/bin/ringlane serve "));
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hardening");
    fs::create_dir_all(&directory).expect("the scratch directory is writable");
    let path = directory.join("ringlane.service");
    let built = env!("CARGO_BIN_EXE_ringlane");
    fs::write(&path, text.replace("/usr/local/bin/ringlane", built)).expect("a file");
    path
}

/// What `systemd-analyze` says, or nothing where it is missing or too old.
fn systemd_analyze(arguments: &[&str]) -> Option<(bool, String)> {
    let version = Command::new("systemd-analyze").arg("--version").output();
    let version = match version {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => {
            println!("SKIPPED: no systemd-analyze ({error})");
            return None;
        }
    };
    let number = version.split_whitespace().nth(1).and_then(|number| number.parse().ok());
    if number.is_none_or(|number: u32| number < 250) {
        println!("SKIPPED: systemd 250 or newer is needed, this is {version}");
        return None;
    }
    let output = Command::new("systemd-analyze").args(arguments).output().expect("it just ran");
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn systemd_accepts_the_unit_without_a_warning() {
    let unit = unit();
    let Some((fine, said)) = systemd_analyze(&["verify", &unit.to_string_lossy()]) else { return };
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains("ringlane")).collect();
    assert!(fine && complaints.is_empty(), "{said}");
}

#[test]
fn systemd_finds_the_unit_little_exposed() {
    let unit = unit();
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let arguments =
        ["security", "--offline=yes", "--no-pager", &threshold, &unit.to_string_lossy()];
    let Some((fine, said)) = systemd_analyze(&arguments) else { return };
    assert!(fine, "{said}");
}

/// The system calls of a group of systemd's, with those of the groups in it.
fn group(name: &str) -> Option<BTreeSet<String>> {
    let (_, said) = systemd_analyze(&["syscall-filter", "--no-pager", name])?;
    let mut calls = BTreeSet::new();
    for word in said.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#')) {
        if word.starts_with('@') {
            calls.extend(group(word)?);
        } else if !word.is_empty() {
            calls.insert(word.to_owned());
        }
    }
    Some(calls)
}

/// The calls of the profile's rules whose comment begins with one of these words.
fn profile_calls(kinds: &[&str]) -> BTreeSet<String> {
    let text = read(tuning("seccomp.json"));
    let mut calls = BTreeSet::new();
    for rule in text.split("\"comment\": \"").skip(1) {
        if kinds.iter().any(|kind| rule.starts_with(kind)) {
            let names = rule.split_once("\"names\": [").and_then(|(_, rest)| rest.split_once(']'));
            let (names, _) = names.expect("every rule names calls");
            calls.extend(names.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    assert!(calls.len() > 40, "the profile was not understood: {calls:?}");
    calls
}

#[test]
fn the_unit_allows_every_call_of_the_server() {
    let text = read(tuning("ringlane.service"));
    let mut allowed = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (removes, words) = match line.strip_prefix('~') {
            Some(words) => (true, words),
            None => (false, line),
        };
        for word in words.split_whitespace() {
            let calls = match word.starts_with('@') {
                true => match group(word) {
                    Some(calls) => calls,
                    None => return,
                },
                false => BTreeSet::from([word.to_owned()]),
            };
            match removes {
                true => allowed.retain(|call| !calls.contains(call)),
                false => allowed.extend(calls),
            }
        }
    }
    let needed = profile_calls(&["always: ", "at times: "]);
    let missing: Vec<&String> = needed.difference(&allowed).collect();
    assert!(missing.is_empty(), "the unit forbids what the server calls: {missing:?}");
}

#[test]
fn the_image_runs_as_nobody_special_and_copies_what_exists() {
    let text = read(tuning("Dockerfile"));
    let last_stage = text.rsplit("\nFROM ").next().expect("a stage");
    let user = last_stage.lines().find_map(|line| line.strip_prefix("USER "));
    let number = user.and_then(|user| user.split(':').next()?.parse::<u32>().ok());
    assert!(number.is_some_and(|number| number > 0), "a user by number, not root: {user:?}");
    assert!(!text.contains("ADD ") && !text.contains("curl"), "nothing is fetched besides");
    // The profile belongs to one C library: that of the image it is used with.
    assert!(text.contains("debian12") && text.contains("bookworm"));
    assert!(read(tuning("seccomp.py")).contains("bookworm"));
}

#[test]
fn the_manual_starts_containers_with_what_they_need() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manual = read(root.join("docs/tuning.md"));
    for example in ["docker run", "services:"] {
        let (_, text) = manual.split_once(example).unwrap_or_else(|| panic!("no {example}"));
        let text = text.split("```").next().expect("the rest of the example");
        for needed in ["seccomp", "tuning/seccomp.json", "no-new-privileges", "memlock", "nofile"] {
            assert!(text.contains(needed), "the example `{example}` lacks {needed}");
        }
    }
}
