//! Many long values at once, between nodes that are healthy, slow or hung.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::THREE_COPIES;
use crate::live::Client;
use crate::nodes::{Cluster, Node};

/// A value just below the default limit of items.
const LONG: usize = (1 << 20) - 200;

fn value(key: &str) -> Vec<u8> {
    key.bytes().cycle().take(LONG).collect()
}

/// What `get` answers: the value, or the line in its place.
fn get(client: &mut Client, key: &str) -> Vec<u8> {
    client.send(format!("get {key}\r\n").as_bytes());
    let head = client.line();
    let Some(bytes) = head.strip_prefix("VALUE ").and_then(|rest| rest.split(' ').nth(2)) else {
        return head.into_bytes();
    };
    let mut value = client.take(bytes.parse::<usize>().expect("a length") + 2);
    value.truncate(value.len() - 2);
    assert_eq!(client.line(), "END");
    value
}

/// Keys that `node` keeps alone, found through another one.
fn keys_of(cluster: &Cluster, node: usize, count: usize) -> Vec<String> {
    let (mut client, mut keeper) = (cluster.nodes[0].client(), cluster.nodes[node].client());
    let mut items = || keeper.stats()["curr_items"].clone();
    let mut before = items();
    let mut keys = Vec::new();
    for number in 0.. {
        if keys.len() == count {
            break;
        }
        let key = format!("key{number}");
        assert_eq!(client.try_store(&key, b"short"), "STORED");
        let after = items();
        if after != before {
            keys.push(key);
        }
        before = after;
    }
    keys
}

/// What so many connections to `node` are answered that ask at once, and how long they waited.
fn at_once<T: Send>(
    node: &Node,
    count: usize,
    ask: impl Fn(&mut Client, usize) -> T + Sync,
) -> Vec<(T, Duration)> {
    let start = Barrier::new(count);
    let (start, ask) = (&start, &ask);
    let clients: Vec<Client> = (0..count).map(|_| node.client()).collect();
    std::thread::scope(|scope| {
        let asking = clients.into_iter().enumerate().map(|(number, mut client)| {
            scope.spawn(move || {
                start.wait();
                let begun = Instant::now();
                (ask(&mut client, number), begun.elapsed())
            })
        });
        let asking: Vec<_> = asking.collect();
        asking.into_iter().map(|one| one.join().expect("it does not panic")).collect()
    })
}

/// Asks `node` for a short value again and again until told to end; the slowest answers first.
struct Bystander {
    ends: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Duration>>,
}

impl Bystander {
    fn start(node: &Node, key: &str) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let (mut client, key, told) = (node.client(), key.to_owned(), ends.clone());
        let thread = std::thread::spawn(move || {
            let mut waits = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let begun = Instant::now();
                assert_eq!(get(&mut client, &key), b"short");
                waits.push(begun.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            waits.sort();
            waits.reverse();
            waits
        });
        Self { ends, thread }
    }

    fn end(self) -> Vec<Duration> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("it was answered right")
    }
}

#[test]
fn a_burst_of_long_values_is_answered_and_others_do_not_wait_for_it() {
    let Some(cluster) = Cluster::form(3, &["-m", "256"]) else { return };
    let keys = keys_of(&cluster, 1, 25);
    let (short, long) = keys.split_last().expect("some keys");
    let mut client = cluster.nodes[1].client();
    for key in long {
        assert_eq!(client.try_store(key, &value(key)), "STORED");
    }
    for count in [12, 24] {
        let bystander = Bystander::start(&cluster.nodes[0], short);
        let answers = at_once(&cluster.nodes[0], count, |client, at| get(client, &long[at]));
        let waits = bystander.end();
        for (at, (answer, waited)) in answers.iter().enumerate() {
            assert!(*answer == value(&long[at]), "{at} of {count} after {waited:?}");
            assert!(*waited < Duration::from_secs(4), "one was lost and asked for again");
        }
        println!("{count}: the others waited for {:?} at most", waits[0]);
        // On a loaded machine it may not get a CPU for a while, but not each time.
        assert!(waits[waits.len() / 2] < Duration::from_millis(100), "{waits:?}");
    }
    let view = cluster.nodes[0].view();
    assert_eq!((&view["breakers_opened"][..], &view["uncertain"][..]), ("0", "0"));
    assert_eq!((&view["operations"][..], &view["operation_bytes"][..]), ("0", "0"));
}

#[test]
fn long_values_set_at_once_are_all_stored_on_three_nodes() {
    let Some(cluster) = Cluster::form(3, &[&THREE_COPIES[..], &["-m", "256"]].concat()) else {
        return;
    };
    for count in [12, 48] {
        let keys: Vec<String> = (0..count).map(|number| format!("long{number}")).collect();
        let answers = at_once(&cluster.nodes[0], count, |client, at| {
            client.try_store(&keys[at], &value(&keys[at]))
        });
        for (answer, waited) in answers {
            assert_eq!(answer, "STORED", "after {waited:?}");
        }
        for node in &cluster.nodes {
            let mut client = node.client();
            for key in &keys {
                assert!(get(&mut client, key) == value(key), "{key} through {}", node.id);
            }
        }
    }
    assert_eq!(cluster.nodes[0].figure("breakers_opened"), 0);
}

/// Most memory that the process has used, in MiB.
fn peak_mebibytes(node: &mut Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("the kernel tells");
    let kibibytes = line.split_whitespace().nth(1).expect("a figure");
    kibibytes.parse::<u64>().expect("a number") >> 10
}

#[test]
fn a_hung_node_costs_bounded_memory_and_its_own_keys_only() {
    // Nobody takes it for dead meanwhile.
    let patience = ["--probe-period", "5s", "--dead-after", "60s", "--operation-timeout", "2s"];
    let bounds = ["--operation-memory", "16MiB", "--link-queue", "4MiB", "-m", "256"];
    let Some(mut cluster) = Cluster::form(3, &[&patience[..], &bounds].concat()) else { return };
    let keys = keys_of(&cluster, 1, 40);
    let others = keys_of(&cluster, 2, 1);
    let before = peak_mebibytes(&mut cluster.nodes[0]);
    cluster.nodes[1].freeze();
    let bystander = Bystander::start(&cluster.nodes[0], &others[0]);
    let mut told = BTreeMap::<String, u32>::new();
    for _ in 0..3 {
        let answers = at_once(&cluster.nodes[0], keys.len(), |client, at| {
            client.try_store(&keys[at], &value(&keys[at]))
        });
        for (answer, waited) in answers {
            assert!(waited < Duration::from_secs(15), "{answer} after {waited:?}");
            *told.entry(answer).or_default() += 1;
        }
    }
    let waits = bystander.end();
    let grown = peak_mebibytes(&mut cluster.nodes[0]) - before;
    println!("{told:?}, the others waited for {:?}, {grown} MiB more", waits[0]);
    assert!(told.keys().all(|answer| answer.starts_with("SERVER_ERROR ")), "{told:?}");
    assert!(told.keys().any(|answer| answer.contains("not performed")), "{told:?}");
    // What 40 connections send and hold besides, and buffers that grow by doubling.
    assert!(grown < 40 + 2 * (16 + 3 * 4) + 40, "{grown} MiB");
    cluster.nodes[1].resume();
    crate::nodes::wait_for("the node to be asked again", || {
        cluster.nodes[0].client().try_store(&keys[0], b"short") == "STORED"
    });
}

#[test]
fn a_set_waits_for_slow_replicas_as_long_as_it_is_told_to() {
    let quorums = ["--replicas", "2", "--write-quorum", "2", "--read-quorum", "1"];
    let patience = ["--probe-period", "5s", "--dead-after", "60s", "--operation-timeout", "20s"];
    let Some(mut cluster) = Cluster::form(2, &[&quorums[..], &patience].concat()) else { return };
    cluster.nodes[1].freeze();
    let pid = cluster.nodes[1].pid();
    let waking = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(6));
        Node::signal_process(pid, "CONT");
    });
    // Enough of them to open the circuit breaker.
    let answers = at_once(&cluster.nodes[0], 20, |client, at| {
        client.try_store(&format!("key{at}"), b"value")
    });
    waking.join().expect("it was woken");
    cluster.nodes[1].resume();
    for (answer, waited) in answers {
        assert_eq!(answer, "STORED", "after {waited:?}");
        assert!(waited > Duration::from_secs(4), "the other node was asked: {waited:?}");
    }
}
