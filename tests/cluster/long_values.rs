//! Many long values at once, between nodes that are healthy, slow or hung.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::THREE_COPIES;
use crate::live::Client;
use crate::nodes::{Cluster, Node, wait_for};

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

/// What so many connections to `node` are answered that ask at once.
fn at_once<T: Send>(
    node: &Node,
    count: usize,
    ask: impl Fn(&mut Client, usize) -> T + Sync,
) -> Vec<T> {
    let start = Barrier::new(count);
    let (start, ask) = (&start, &ask);
    let clients: Vec<Client> = (0..count).map(|_| node.client()).collect();
    std::thread::scope(|scope| {
        let asking = clients.into_iter().enumerate().map(|(number, mut client)| {
            scope.spawn(move || {
                start.wait();
                ask(&mut client, number)
            })
        });
        let asking: Vec<_> = asking.collect();
        asking.into_iter().map(|one| one.join().expect("it does not panic")).collect()
    })
}

/// Asks `node` for a short value again and again until told to end. How long it waits is shown and
/// not judged: a busy machine may let anybody wait.
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
            waits
        });
        Self { ends, thread }
    }

    fn end(self, beside: &str) {
        self.ends.store(true, Ordering::Relaxed);
        let mut waits = self.thread.join().expect("it was answered right");
        waits.sort();
        let (count, median) = (waits.len(), waits.get(waits.len() / 2));
        println!("{beside}: {count} others waited {median:?}, at most {:?}", waits.last());
    }
}

#[test]
fn a_burst_of_long_values_is_answered_and_each_comes_once() {
    let Some(cluster) = Cluster::form(3, &["-m", "256"]) else { return };
    let keys = keys_of(&cluster, 1, 25);
    let (short, long) = keys.split_last().expect("some keys");
    let mut client = cluster.nodes[1].client();
    for key in long {
        assert_eq!(client.try_store(key, &value(key)), "STORED");
    }
    let received = || cluster.nodes[0].figure("link_bytes_received") as usize;
    let before = received();
    for count in [12, 24] {
        let bystander = Bystander::start(&cluster.nodes[0], short);
        let answers = at_once(&cluster.nodes[0], count, |client, at| get(client, &long[at]));
        bystander.end(&format!("{count} long values"));
        for (at, answer) in answers.iter().enumerate() {
            assert!(*answer == value(&long[at]), "{at} of {count}");
        }
    }
    // Cores publish their figures now and then.
    wait_for("the bytes to be counted", || received() - before > 36 * LONG);
    // A read may be put off and made again, but what is lost would come again as a whole.
    assert!(received() - before < 36 * LONG + LONG / 2, "{} bytes", received() - before);
    let view = cluster.nodes[0].view();
    for figure in ["breakers_opened", "uncertain", "busy", "operations", "operation_bytes"] {
        assert_eq!(view[figure], "0", "{figure}");
    }
}

/// A client whose socket takes little that it does not read.
fn narrow(node: &Node) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
    socket.connect(&node.address().into()).expect("the node takes clients");
    Client::new(TcpStream::from(socket))
}

/// Clients of node 0 that ask for so many long values of others and read nothing; then two of them
/// read all.
fn leave_unread(cluster: &mut Cluster, keys: &[String]) {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 1000;
    let mut client = cluster.nodes[0].client();
    for key in keys {
        assert_eq!(client.try_store(key, &value(key)), "STORED");
    }
    assert_eq!(client.try_store("short", b"short"), "STORED");
    let peaks = |cluster: &mut Cluster| -> Vec<u64> {
        cluster.nodes.iter_mut().map(peak_mebibytes).collect()
    };
    let before = peaks(cluster);
    let bystander = Bystander::start(&cluster.nodes[0], "short");
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| narrow(&cluster.nodes[0])).collect();
    let key_of = |number: usize, request: usize| &keys[(number + request) % keys.len()];
    for (number, client) in clients.iter_mut().enumerate() {
        // Many short answers first, so that many requests are let go at once.
        client.send("get no1 no2 no3 no4\r\n".repeat(200).as_bytes());
        (0..200).for_each(|_| assert_eq!(client.line(), "END"));
        let asked = (0..REQUESTS).map(|request| format!("get {}\r\n", key_of(number, request)));
        client.send(asked.collect::<String>().as_bytes());
    }
    std::thread::sleep(Duration::from_secs(2));
    bystander.end("values that nobody reads");
    let after = peaks(cluster);
    println!("peaks before and after, MiB: {before:?} {after:?}");
    for (before, after) in before.iter().zip(&after) {
        // Memory for connections, of which all have their part; what links hold in both
        // directions, and what allocators keep.
        assert!(after - before < 32 + 3 * 4 + 40, "{before} MiB became {after}");
    }
    for (number, mut client) in clients.into_iter().enumerate().take(2) {
        for request in 0..60 {
            let key = key_of(number, request);
            assert_eq!(client.line(), format!("VALUE {key} 0 {LONG}"), "request {request}");
            assert!(client.take(LONG) == value(key), "request {request}");
            assert_eq!((client.line(), client.line()), (String::new(), "END".into()));
        }
    }
}

#[test]
fn long_values_of_another_node_that_nobody_reads_are_not_piled_up() {
    let flags = ["-m", "64", "--connection-memory", "32MiB", "--link-queue", "4MiB"];
    let Some(mut cluster) = Cluster::form(2, &flags) else { return };
    let keys = keys_of(&cluster, 1, 8);
    leave_unread(&mut cluster, &keys);
}

#[test]
fn replicated_long_values_that_nobody_reads_are_not_piled_up() {
    let flags = ["-m", "64", "--connection-memory", "32MiB", "--link-queue", "4MiB"];
    let Some(mut cluster) = Cluster::form(3, &[&THREE_COPIES[..], &flags].concat()) else { return };
    let keys: Vec<String> = (0..8).map(|number| format!("long{number}")).collect();
    leave_unread(&mut cluster, &keys);
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
        assert!(answers.iter().all(|answer| answer == "STORED"), "{answers:?}");
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
        answers.into_iter().for_each(|answer| *told.entry(answer).or_default() += 1);
    }
    bystander.end("a hung node");
    let grown = peak_mebibytes(&mut cluster.nodes[0]) - before;
    println!("{told:?}, {grown} MiB more");
    assert!(told.keys().all(|answer| answer.starts_with("SERVER_ERROR ")), "{told:?}");
    assert!(told.keys().any(|answer| answer.contains("not performed")), "{told:?}");
    // What 40 connections send and hold besides, and buffers that grow by doubling.
    assert!(grown < 40 + 2 * (16 + 3 * 4) + 40, "{grown} MiB");
    cluster.nodes[1].resume();
    wait_for("the node to be asked again", || {
        cluster.nodes[0].client().try_store(&keys[0], b"short") == "STORED"
    });
}

#[test]
fn long_requests_wait_for_memory_at_their_coordinator_and_are_sent_once() {
    const COUNT: usize = 24;
    let flags = ["--replicas", "2", "--write-quorum", "2", "--read-quorum", "1", "-m", "256"];
    let flags = [&flags[..], &["-t", "1"]].concat();
    let first = Node::new("n0", None, &flags);
    let narrow = [&flags[..], &["--operation-memory", "1MiB"]].concat();
    let second = Node::new("n1", Some(&first), &narrow);
    let Some(cluster) = Cluster::of(vec![first, second]) else { return };
    let (ours, before) = (&cluster.nodes[0], cluster.nodes[0].figure("link_bytes_sent"));
    // The first replica coordinates these, and holds them until the other one has them.
    let answers = at_once(ours, COUNT, |client, at| {
        let key = format!("added{at}");
        client.send(format!("add {key} 0 0 {LONG}\r\n").as_bytes());
        client.send(&value(&key));
        client.send(b"\r\n");
        client.line()
    });
    assert!(answers.iter().all(|answer| answer == "STORED"), "{answers:?}");
    // Cores publish their figures now and then. Each value goes to the other node, as what it is.
    let sent = || ours.figure("link_bytes_sent") - before;
    wait_for("the bytes to be counted", || sent() > (COUNT * LONG) as u64);
    let sent = sent();
    println!("{} forwarded, {sent} bytes sent", ours.figure("forwarded"));
    assert!(ours.figure("forwarded") > 4, "some are the other node's to coordinate");
    assert!(sent < (COUNT * LONG + (1 << 20)) as u64, "{sent} bytes for {COUNT} values");
}

#[test]
fn a_set_waits_for_slow_replicas_as_long_as_it_is_told_to() {
    let quorums = ["--replicas", "2", "--write-quorum", "2", "--read-quorum", "1"];
    let patience = ["--probe-period", "5s", "--dead-after", "60s", "--operation-timeout", "20s"];
    let Some(mut cluster) = Cluster::form(2, &[&quorums[..], &patience].concat()) else { return };
    cluster.nodes[1].freeze();
    let (pid, woken) = (cluster.nodes[1].pid(), AtomicBool::new(false));
    let woken = &woken;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(6));
            woken.store(true, Ordering::SeqCst);
            Node::signal_process(pid, "CONT");
        });
        // Enough of them to open the circuit breaker.
        let answers = at_once(&cluster.nodes[0], 20, |client, at| {
            let answer = client.try_store(&format!("key{at}"), b"value");
            (answer, woken.load(Ordering::SeqCst))
        });
        assert!(answers.iter().all(|(answer, _)| answer == "STORED"), "{answers:?}");
        assert!(answers.iter().all(|(_, after)| *after), "not before the other node had it");
    });
    cluster.nodes[1].resume();
}

#[test]
fn a_frozen_node_is_not_asked_for_a_while_and_asked_again_when_it_answers() {
    let patience = ["--probe-period", "5s", "--dead-after", "60s", "--operation-timeout", "2s"];
    let Some(mut cluster) = Cluster::form(2, &patience) else { return };
    let keys = keys_of(&cluster, 1, 20);
    cluster.nodes[1].freeze();
    let answers = at_once(&cluster.nodes[0], keys.len(), |client, at| {
        String::from_utf8(get(client, &keys[at])).expect("text")
    });
    assert!(answers.iter().all(|answer| answer.starts_with("SERVER_ERROR ")), "{answers:?}");
    assert_eq!(cluster.nodes[0].figure("breakers_opened"), 1);
    wait_for("the opening to be logged", || cluster.nodes[0].said().contains("pauses requests to"));
    // Nobody waits for it now, since it is not asked.
    let before = cluster.nodes[0].figure("forwarded");
    let mut client = cluster.nodes[0].client();
    for key in &keys {
        let answer = String::from_utf8(get(&mut client, key)).expect("text");
        assert!(answer.starts_with("SERVER_ERROR "), "{answer}");
    }
    assert_eq!(cluster.nodes[0].figure("forwarded"), before);
    assert_eq!(cluster.nodes[0].view()["member:n1:breaker"], "open");
    cluster.nodes[1].resume();
    // What it was asked before it answers now, and that is enough.
    wait_for("the breaker to close", || cluster.nodes[0].figure("breakers_closed") == 1);
    wait_for("the closing to be logged", || {
        cluster.nodes[0].said().contains("resumes requests to")
    });
    for key in &keys {
        assert_eq!(get(&mut client, key), b"short");
    }
}
