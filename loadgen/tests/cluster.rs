//! The tool against a cluster of real nodes: one address is enough to ask each key at its owner.
//! Skipped, said aloud, where the server's binary does not lie beside the tool's.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(40);
const PORT: u16 = 11311;

struct Node {
    child: Child,
    ip: Ipv4Addr,
}

impl Node {
    fn address(&self) -> SocketAddr {
        (self.ip, PORT).into()
    }

    /// The figures of `stats cluster`; none when the node does not answer.
    fn stats(&self) -> Vec<(String, String)> {
        let Ok(mut stream) = TcpStream::connect(self.address()) else { return Vec::new() };
        stream.write_all(b"stats cluster\r\nquit\r\n").expect("the node takes bytes");
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines
            .filter_map(|line| {
                let mut words = line.split(' ').skip(1).map(str::to_owned);
                Some((words.next()?, words.next()?))
            })
            .collect()
    }

    fn figure(&self, name: &str) -> u64 {
        let stats = self.stats();
        let found = stats.iter().find(|(stat, _)| stat == name);
        found.expect("the figure is there").1.parse().expect("a number")
    }

    /// The epoch in which it sees `count` members alive, each in possession of what is its own.
    fn sees(&self, count: usize) -> Option<String> {
        let stats = self.stats();
        let epoch = &stats.iter().find(|(name, _)| name == "epoch")?.1;
        let with = |end: &str, wanted: &str| {
            stats.iter().filter(|(name, said)| name.ends_with(end) && said == wanted).count()
        };
        let unseated = with(":weight", "0");
        let ready = with(":state", "alive") == count && with(":settled", epoch) == count;
        (ready && unseated == 0 && epoch != "0").then(|| epoch.clone())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three nodes of two cores each at addresses of loopback that only the test `number` uses.
fn three(number: u8, flags: &[&str]) -> Option<Vec<Node>> {
    let binary = Path::new(env!("CARGO_BIN_EXE_ringload")).with_file_name("ringlane");
    if !binary.exists() {
        println!("SKIPPED: no {}", binary.display());
        return None;
    }
    let pid = std::process::id();
    let ip = |last| Ipv4Addr::new(127, 100 + (pid >> 8) as u8 % 100, pid as u8, number * 10 + last);
    let start = |last: u8| {
        let child = Command::new(&binary)
            .args(["-l", &ip(last).to_string(), "-p", &PORT.to_string(), "-m", "128"])
            .args(["--cpus", "0,0", "--shard-ports", "21000", "--node-id", &format!("n{last}")])
            .args(["--cluster-listen", &format!("{}:7100", ip(last))])
            .args(["--join", &format!("{}:7100", ip(1))])
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Node { child: child.expect("it exists"), ip: ip(last) }
    };
    let mut nodes: Vec<Node> = (1..=3).map(start).collect();
    let begun = Instant::now();
    // The two that join may be seated in one decision or in two.
    let ready = |nodes: &[Node]| {
        let first = nodes[0].sees(3);
        first.is_some() && nodes.iter().all(|node| node.sees(3) == first)
    };
    while !ready(&nodes) {
        if nodes.iter_mut().any(|node| node.child.try_wait().is_ok_and(|ended| ended.is_some())) {
            println!("SKIPPED: the server does not start here");
            return None;
        }
        assert!(begun.elapsed() < PATIENCE, "no cluster");
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(nodes)
}

fn ringload(address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["60", env!("CARGO_BIN_EXE_ringload")])
        .args(arguments)
        .args(["--address", &address.to_string(), "--protocol", "binary", "--quiet"])
        .args(["--keys", "3000", "--connections", "12"]);
    command
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn one_address_is_enough_and_no_request_is_forwarded() {
    let Some(nodes) = three(1, &[]) else { return };
    let flags = ["run", "--closed", "--seconds", "2", "--warmup", "0"];
    for more in [&["--pipeline", "8"][..], &["--no-shard-ports"], &["--mix", "multiget=1,set=1"]] {
        let before: Vec<u64> = nodes.iter().map(|node| node.figure("forwarded")).collect();
        let output = ringload(nodes[1].address(), &[&flags[..], more].concat()).output();
        let output = output.expect("timeout is part of coreutils");
        assert!(output.status.success(), "{}", words(&output));
        let ports = if more == ["--no-shard-ports"] { 3 } else { 6 };
        let said = format!("each key goes to its owner: 3 of 3 nodes, {ports} ports");
        assert!(words(&output).contains(&said), "{}", words(&output));
        let after: Vec<u64> = nodes.iter().map(|node| node.figure("forwarded")).collect();
        assert_eq!(before, after, "{more:?}: {}", words(&output));
    }
}

#[test]
fn a_node_that_dies_is_not_asked_any_more_once_the_others_know() {
    let Some(mut nodes) =
        three(2, &["--replicas", "3", "--write-quorum", "2", "--read-quorum", "2"])
    else {
        return;
    };
    let path = std::env::temp_dir().join(format!("ringload-dies-{}.json", std::process::id()));
    let json = path.to_str().expect("plain");
    // Replicas may answer a read beside a write in either way.
    let flags = ["run", "--rate", "2000", "--seconds", "12", "--warmup", "0", "--json", json];
    let flags = [&flags[..], &["--verify", "content", "--timeout", "1s"]].concat();
    let mut run = ringload(nodes[0].address(), &flags);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
    std::thread::sleep(Duration::from_secs(4));
    nodes[2].child.kill().expect("it runs");
    let output = run.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", words(&output));
    let text = std::fs::read_to_string(&path).expect("it was written");
    std::fs::remove_file(&path).expect("it is there");
    let document: Value = serde_json::from_str(&text).expect("valid JSON");
    let timeline = document["runs"][0]["timeline"].as_array().expect("a list").clone();
    assert!(timeline.len() >= 11, "{timeline:?}");
    let faults = |second: &Value| second["faults"].as_u64().expect("a count");
    assert!(timeline.iter().any(|second| faults(second) > 0), "nobody noticed: {timeline:?}");
    let last = &timeline[timeline.len() - 2..];
    assert!(last.iter().all(|second| faults(second) == 0), "{timeline:?}");
}
