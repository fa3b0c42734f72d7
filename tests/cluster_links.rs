//! Nodes as real processes on loopback: they find each other, link core with core, and link again
//! after one of them was killed.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for anything, far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(40);
/// Two cores with two cores, and the executors beside them.
const LINKS: usize = 5;

/// One node; killed when dropped.
struct Node {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// An address of this test process alone: all of 127.0.0.0/8 is loopback.
fn address(number: u8) -> Ipv4Addr {
    let pid = std::process::id();
    Ipv4Addr::new(127, 1 + (pid >> 8) as u8 % 120, pid as u8, number)
}

fn scratch(name: &str, contents: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, contents).expect("the scratch directory is writable");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
    path
}

impl Node {
    /// The node `id` at address number `number`, which looks for a member at number `join`.
    fn start(id: &str, number: u8, join: u8, flags: &[&str]) -> Self {
        let ip = address(number);
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringlane"))
            .args(["-l", &ip.to_string(), "-p", "11311", "-m", "64", "--cpus", "0,0"])
            .args(["--log", "debug", "--node-id", id])
            .args(["--cluster-listen", &format!("{ip}:7100")])
            .args(["--join", &format!("{}:7100", address(join))])
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary is built by cargo");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().expect("no panic while it is held").push(line);
            }
        });
        Self { child, log }
    }

    fn count(&self, words: &str) -> usize {
        let log = self.log.lock().expect("no panic while it is held");
        log.iter().filter(|line| line.contains(words)).count()
    }

    fn wait_for(&self, words: &str, count: usize) {
        let begun = Instant::now();
        while self.count(words) < count {
            let log = self.log.lock().expect("no panic while it is held").join("\n");
            assert!(begun.elapsed() < PATIENCE, "no {count} x {words:?} in\n{log}");
            drop(log);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for `count` links with node `id`, of its cores and its executor.
    fn wait_for_links(&self, id: &str, count: usize) {
        self.wait_for(&format!("linked with node {id}: "), count);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn nodes_link_core_with_core_and_again_after_a_kill() {
    let key = scratch("cluster-links.key", "a secret of both of them\n");
    let flags = ["--cluster-key-file", key.to_str().expect("a path in UTF-8")];
    let a = Node::start("a", 1, 2, &flags);
    let b = Node::start("b", 2, 1, &flags);
    a.wait_for_links("b", LINKS);
    b.wait_for_links("a", LINKS);
    // Its sockets may be held for a while after it has ended.
    drop(b);
    let b = Node::start("b", 2, 1, &flags);
    a.wait_for_links("b", 2 * LINKS);
    b.wait_for_links("a", LINKS);
    drop(a);
    let a = Node::start("a", 1, 2, &flags);
    b.wait_for_links("a", 2 * LINKS);
    a.wait_for_links("b", LINKS);
}

#[test]
fn a_node_with_another_key_or_name_is_refused_in_both_logs() {
    let one = scratch("cluster-links-one.key", "a secret of one node\n");
    let two = scratch("cluster-links-two.key", "a secret of another\n");
    let one = ["--cluster-key-file", one.to_str().expect("a path in UTF-8")];
    let two = ["--cluster-key-file", two.to_str().expect("a path in UTF-8")];
    let c = Node::start("c", 3, 4, &one);
    let d = Node::start("d", 4, 3, &two);
    let e = Node::start("e", 5, 3, &["--cluster-name", "another"]);
    for node in [&c, &d] {
        node.wait_for("its cluster key is missing or differs", 1);
    }
    for node in [&c, &e] {
        node.wait_for("it belongs to another cluster", 1);
    }
    for node in [&c, &d, &e] {
        assert_eq!(node.count("linked with"), 0);
    }
}
