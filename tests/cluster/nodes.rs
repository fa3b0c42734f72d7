//! A cluster of real processes, each node at an address of its own.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::live::{self, Client};

/// Longest wait for anything, far beyond what a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Where every node takes clients, at its own address.
const CLIENT_PORT: u16 = 11311;
/// Where every node takes other nodes.
pub const CLUSTER_PORT: u16 = 7100;

/// One node, running or not; killed when dropped.
pub struct Node {
    /// Its id.
    pub id: String,
    ip: Ipv4Addr,
    prefix: Vec<String>,
    flags: Vec<String>,
    child: Option<Child>,
    stopped: bool,
    log: Arc<Mutex<Vec<String>>>,
}

/// Nodes that are to be members of one cluster.
pub struct Cluster {
    /// All that were ever started, in that order.
    pub nodes: Vec<Node>,
    flags: Vec<String>,
}

/// An address that nobody else has: all of 127.0.0.0/8 is loopback.
pub fn loopback() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    // Other tests of nodes use the lower half.
    Ipv4Addr::new(127, 128 + (pid >> 8) as u8 % 120, pid as u8, number)
}

/// Looks again and again until `holds`; fails when it does not come true.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(25));
    }
}

impl Node {
    /// A node that is not started yet, at an address of loopback.
    pub fn new(id: &str, join: Option<&Node>, flags: &[&str]) -> Self {
        Self::new_at(loopback(), &[], id, join, flags)
    }

    /// A node that is not started yet, at `ip`, to be started by the command `prefix`.
    pub fn new_at(
        ip: Ipv4Addr,
        prefix: &[&str],
        id: &str,
        join: Option<&Node>,
        flags: &[&str],
    ) -> Self {
        let mut flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        if let Some(member) = join {
            flags.extend(["--join".into(), format!("{}:{CLUSTER_PORT}", member.ip)]);
        }
        let prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
        Self { id: id.into(), ip, prefix, flags, child: None, stopped: false, log: Arc::default() }
    }

    /// Starts the process and waits until it takes clients. False if the host forbids io_uring,
    /// which is said aloud.
    pub fn start(&mut self) -> bool {
        let mut words = self.prefix.clone();
        words.push(live::binary());
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["-l", &self.ip.to_string(), "-p", &CLIENT_PORT.to_string()])
            .args(["--log", "info", "--node-id", &self.id])
            .args(["--cluster-listen", &format!("{}:{CLUSTER_PORT}", self.ip)])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary is built by cargo");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let lines = self.log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().expect("no panic while it is held").push(line);
            }
        });
        self.child = Some(child);
        self.stopped = false;
        let begun = Instant::now();
        while TcpStream::connect_timeout(&self.address(), Duration::from_secs(1)).is_err() {
            if let Some(status) = self.running().try_wait().expect("a child can be waited for") {
                std::thread::sleep(Duration::from_millis(100));
                let said = self.said();
                assert!(said.contains("io_uring"), "{} ended with {status}:\n{said}", self.id);
                println!("SKIPPED: the server does not start here: {said}");
                return false;
            }
            assert!(begun.elapsed() < PATIENCE, "{} does not listen:\n{}", self.id, self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    fn running(&mut self) -> &mut Child {
        self.child.as_mut().expect("it is running")
    }

    /// Whether it runs and answers.
    pub fn is_up(&self) -> bool {
        self.child.is_some() && !self.stopped
    }

    /// Where it takes clients.
    pub fn address(&self) -> SocketAddr {
        (self.ip, CLIENT_PORT).into()
    }

    /// A new connection of a client.
    pub fn client(&self) -> Client {
        Client::new(TcpStream::connect(self.address()).expect("the node takes clients"))
    }

    /// What it says of the cluster.
    pub fn view(&self) -> HashMap<String, String> {
        self.client().stats_of("cluster")
    }

    /// One figure of what it says of the cluster.
    pub fn figure(&self, name: &str) -> u64 {
        let view = self.view();
        let text = view.get(name).unwrap_or_else(|| panic!("no {name} in {view:?}"));
        text.parse().unwrap_or_else(|_| panic!("{name} is {text}"))
    }

    /// All that it has logged since it was first started.
    pub fn said(&self) -> String {
        self.log.lock().expect("no panic while it is held").join("\n")
    }

    /// The code with which it has ended by itself, once it has.
    pub fn exit_code(&mut self) -> Option<i32> {
        let status = self.running().try_wait().expect("a child can be waited for")?;
        self.child = None;
        status.code()
    }

    /// Where it takes other nodes.
    pub fn cluster_address(&self) -> SocketAddr {
        (self.ip, CLUSTER_PORT).into()
    }

    /// Its process id.
    pub fn pid(&mut self) -> u32 {
        self.running().id()
    }

    fn signal(&mut self, name: &str) {
        Self::signal_process(self.pid(), name);
    }

    /// Sends a signal to the process of a node.
    pub fn signal_process(pid: u32, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
        assert!(sent.expect("there is a kill").success(), "no signal {name} was sent");
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        self.signal("KILL");
        let status = self.running().wait().expect("a child can be waited for");
        assert_eq!(status.signal(), Some(9), "{} had ended before:\n{}", self.id, self.said());
        self.child = None;
    }

    /// Stops it from running until [`Self::resume`].
    pub fn freeze(&mut self) {
        self.signal("STOP");
        self.stopped = true;
        // On a busy machine a thread may run on for a while.
        wait_for("all threads to stop", || {
            let state =
                |stat: &String| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'));
            self.tasks().iter().all(state)
        });
    }

    /// Lets it run again.
    pub fn resume(&mut self) {
        self.signal("CONT");
        self.stopped = false;
    }

    /// Asks it to leave; how and after how long it ended.
    pub fn leave(&mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        self.signal("TERM");
        loop {
            let status = self.running().try_wait().expect("a child can be waited for");
            if let Some(status) = status {
                self.child = None;
                return (status, begun.elapsed());
            }
            if begun.elapsed() > PATIENCE / 4 {
                panic!("{} does not end: {:#?}", self.id, self.tasks());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the kernel says of each thread, to tell a hanging one from a busy one.
    fn tasks(&self) -> Vec<String> {
        let pid = self.child.as_ref().map(Child::id).unwrap_or_default();
        let directory = format!("/proc/{pid}/task");
        let tasks = std::fs::read_dir(directory).into_iter().flatten().flatten();
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- {} at {}:\n{}", self.id, self.ip, self.said());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cluster {
    /// Starts `count` nodes and waits until they are one cluster. `None` where the host forbids
    /// io_uring, which is said aloud.
    pub fn form(count: usize, flags: &[&str]) -> Option<Self> {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut cluster = Self { nodes: Vec::new(), flags };
        for _ in 0..count {
            cluster.grow()?;
        }
        cluster.wait_ready();
        Some(cluster)
    }

    /// A cluster of nodes made by the caller, which are started.
    pub fn of(nodes: Vec<Node>) -> Option<Self> {
        let mut cluster = Self { nodes, flags: Vec::new() };
        if !cluster.nodes.iter_mut().all(Node::start) {
            return None;
        }
        cluster.wait_ready();
        Some(cluster)
    }

    /// Starts one more node, without waiting until it has its part.
    pub fn grow(&mut self) -> Option<()> {
        let mut flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        if !flags.contains(&"-m") {
            flags.extend(["-m", "64"]);
        }
        if !flags.contains(&"--cpus") {
            flags.extend(["-t", "1"]);
        }
        let id = format!("n{}", self.nodes.len());
        let mut node = Node::new(&id, self.nodes.first(), &flags);
        let started = node.start();
        self.nodes.push(node);
        started.then_some(())
    }

    /// The nodes that run and answer.
    pub fn up(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_up())
    }

    /// Where the nodes that run take clients.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.up().map(Node::address).collect()
    }

    /// Waits until all that run agree on who is a member and miss nothing of what is theirs.
    pub fn wait_ready(&self) {
        let mut views = Vec::new();
        let begun = Instant::now();
        loop {
            views.clear();
            views.extend(self.up().map(Node::view));
            if self.is_ready(&views) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "waited in vain for the cluster: {views:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_ready(&self, views: &[HashMap<String, String>]) -> bool {
        // A node that has just started says nothing of a cluster yet.
        let Some(epoch) = views[0].get("epoch") else { return false };
        let member = |view: &HashMap<String, String>, node: &Node, what: &str| {
            view.get(&format!("member:{}:{what}", node.id)).cloned().unwrap_or_default()
        };
        let of_one = |view: &HashMap<String, String>, node: &Node| {
            member(view, node, "state") == "alive"
                && member(view, node, "weight") != "0"
                && member(view, node, "settled") == *epoch
        };
        views.iter().all(|view| {
            view.get("epoch") == Some(epoch)
                && epoch != "0"
                && self.up().all(|node| of_one(view, node))
        })
    }

    /// Waits until all that run say that the node is `state`.
    pub fn wait_state(&self, node: usize, state: &str) {
        let name = format!("member:{}:state", self.nodes[node].id);
        wait_for(&format!("{name} {state}"), || {
            self.up().all(|up| up.view().get(&name).is_some_and(|said| said == state))
        });
    }
}
