//! A small network inside the kernel: a bridge in one namespace, hosts in others, and rules that
//! drop what arrives at a host.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Namespaces of these tests are called this, the process id and a number.
const NAME: &str = "ringlane-test";
/// The address of the bridge, where the clients are.
const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// The network; gone when dropped.
pub struct Network {
    name: String,
    hosts: usize,
}

/// Runs a command line; what it complained of.
fn run(line: &str) -> Result<(), String> {
    run_with_input(line, "")
}

fn run_with_input(line: &str, input: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let mut child = Command::new(words.next().expect("a command"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{line}: {error}"))?;
    let fed = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().map_err(|error| format!("{line}: {error}"))?;
    match (fed, output.status.success()) {
        (Ok(()), true) => Ok(()),
        _ => Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Network {
    /// A bridge and so many hosts. `None` where that cannot be had, which is said aloud.
    pub fn of(hosts: usize) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: network namespaces need root");
            return None;
        }
        remove_leftovers();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Self { name: format!("{NAME}-{}-{number}", std::process::id()), hosts };
        match network.build() {
            Ok(()) => Some(network),
            Err(reason) => {
                println!("SKIPPED: this host permits no such network: {reason}");
                None
            }
        }
    }

    fn build(&self) -> Result<(), String> {
        let bridge = &self.name;
        run("nft --version")?;
        run(&format!("ip netns add {bridge}"))?;
        run(&format!("ip -n {bridge} link set lo up"))?;
        run(&format!("ip -n {bridge} link add bridge type bridge"))?;
        run(&format!("ip -n {bridge} addr add {BRIDGE}/24 dev bridge"))?;
        run(&format!("ip -n {bridge} link set bridge up"))?;
        for host in 0..self.hosts {
            let (name, address) = (self.host(host), Self::address(host));
            run(&format!("ip netns add {name}"))?;
            run(&format!("ip -n {name} link set lo up"))?;
            run(&format!("ip -n {bridge} link add to{host} type veth peer name net netns {name}"))?;
            run(&format!("ip -n {bridge} link set to{host} master bridge up"))?;
            run(&format!("ip -n {name} addr add {address}/24 dev net"))?;
            run(&format!("ip -n {name} link set net up"))?;
            self.rules(
                host,
                "add table ip faults\nadd chain ip faults arriving { type filter hook input priority 0; }",
            )?;
        }
        Ok(())
    }

    fn host(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    fn rules(&self, host: usize, rules: &str) -> Result<(), String> {
        let line = format!("{} nft -f -", self.inside(host).join(" "));
        run_with_input(&line, &format!("{rules}\n"))
    }

    /// Where a host is.
    pub fn address(host: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 1 + host as u8)
    }

    /// The command that runs another one on a host.
    pub fn inside(&self, host: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.host(host)].map(str::to_owned).to_vec()
    }

    /// Moves the thread, and all that it starts from now on, to where the bridge is.
    pub fn enter(&self) {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("it was just made");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may do so");
    }

    /// From now on nothing that `from` sends arrives at `to`.
    pub fn drop_packets(&self, from: usize, to: usize) {
        let rule = format!("add rule ip faults arriving ip saddr {} drop", Self::address(from));
        self.rules(to, &rule).expect("the table is there");
    }

    /// From now on so many of a hundred packets between hosts are lost at random.
    pub fn lose_percent(&self, percent: u32) {
        for host in 0..self.hosts {
            let chance = format!("numgen random mod 100 < {percent} drop");
            let rule = format!("add rule ip faults arriving iif net ip saddr != {BRIDGE} {chance}");
            self.rules(host, &rule).expect("the table is there");
        }
    }

    /// Everything arrives again.
    pub fn heal(&self) {
        for host in 0..self.hosts {
            self.rules(host, "flush chain ip faults arriving").expect("the table is there");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let hosts = (0..self.hosts).map(|host| self.host(host));
        for name in hosts.chain([self.name.clone()]) {
            // One that could not be made is not there.
            let _ = run(&format!("ip netns delete {name}"));
        }
    }
}

/// Removes what a killed run has left behind.
fn remove_leftovers() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(&format!("{NAME}-")).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
            let _ = run(&format!("ip netns delete {name}"));
        }
    }
}
