//! The log as a weapon: against the disk, and against those who write it.

use std::io::{ErrorKind, PipeWriter, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::live::{self, Client};
use crate::nodes::{CLUSTER_PORT, Node, loopback, wait_for};
use crate::{alone, scratch};

/// Nothing that others do makes a node say more than this in a minute.
const SAID_BYTES_MAX: usize = 32 << 10;

fn processor_time(node: &mut Node) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid())).expect("it runs");
    let after_name = stat.rsplit_once(')').expect("a name").1;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok()).expect("ticks");
    Duration::from_millis((ticks() + ticks()) * 10)
}

#[test]
fn datagrams_that_are_refused_leave_a_few_lines_each_minute() {
    let key = scratch("strangers-logs.key", "a secret that the stranger lacks\n");
    let key = key.to_str().expect("a path in UTF-8");
    for flags in [&["--cluster-key-file", key][..], &[]] {
        let Some(node) = alone("logs", flags) else { return };
        let before = node.said().len();
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let to = (node.address().ip(), CLUSTER_PORT);
        for magic in [b"RLg1", b"RLg2"] {
            for kind in 0..6u8 {
                let datagram = [&magic[..], &[kind], &[1; 120]].concat();
                for _ in 0..5_000 {
                    socket.send_to(&datagram, to).expect("loopback takes datagrams");
                }
            }
        }
        // When it answers it has read them all.
        assert_eq!(node.client().ask("get a"), "END");
        std::thread::sleep(Duration::from_millis(300));
        let said = node.said().len() - before;
        assert!(said < SAID_BYTES_MAX, "{said} bytes for 60,000 datagrams");
        assert_eq!(node.client().ask("get a"), "END");
    }
}

/// The end of a pipe that is full and that nobody reads, and what keeps it open.
fn full_pipe() -> (PipeWriter, impl Sized) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let flags = rustix::fs::fcntl_getfl(&writer).expect("flags of a pipe");
    rustix::fs::fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("flags of a pipe");
    loop {
        match writer.write(b".") {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    rustix::fs::fcntl_setfl(&writer, flags).expect("flags of a pipe");
    (writer, reader)
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let (stderr, _unread) = full_pipe();
    let ip = loopback();
    let mut child = Command::new(live::binary())
        .args(["-l", &ip.to_string(), "-p", "11311", "-m", "64", "-t", "1", "--log", "debug"])
        .args(["--cluster-listen", &format!("{ip}:{CLUSTER_PORT}")])
        .stdin(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("the binary is built by cargo");
    let mut ended = false;
    wait_for("the node to take clients", || {
        ended = child.try_wait().expect("a child can be waited for").is_some();
        ended || TcpStream::connect((ip, 11311)).is_ok()
    });
    if ended {
        return println!("SKIPPED: the server does not start here");
    }
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    for _ in 0..1000 {
        socket.send_to(&[b"RLg2", &[0u8; 200][..]].concat(), (ip, CLUSTER_PORT)).expect("sent");
    }
    let mut client = Client::new(TcpStream::connect((ip, 11311)).expect("it takes clients"));
    assert_eq!(client.ask("get a"), "END");
    // What gossips works, too: it is asked to leave the cluster, and its last words are not waited
    // for.
    let begun = Instant::now();
    Node::signal_process(child.id(), "TERM");
    wait_for("the node to end", || child.try_wait().expect("a child can be waited for").is_some());
    println!("ended after {:?}", begun.elapsed());
}

/// Connections that the node of the next test may have, and what it demands besides.
const CONNECTIONS_MAX: u64 = 40;
const FILES_MAX: u64 = CONNECTIONS_MAX + 64 + 24 + 3 + 256;

#[test]
fn accepting_pauses_while_no_descriptor_is_left_and_goes_on_when_one_is() {
    let connections_max = CONNECTIONS_MAX.to_string();
    let flags = ["-m", "64", "-t", "1", "-c", &connections_max];
    let Some(mut node) = alone("files", &flags[4..]) else { return };
    let files = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("it runs").count();
    drop(node);
    // It demands files for links, which it does not have; others are inherited in their place.
    let inherited = FILES_MAX - files as u64 - 4;
    let script = format!(
        "ulimit -n {FILES_MAX} && for i in $(seq {inherited}); do exec {{fd}}</dev/null; done && \
         exec \"$0\" \"$@\""
    );
    let mut node = Node::new_at(loopback(), &["bash", "-c", &script], "files", None, &flags);
    assert!(node.start());
    wait_for("the node to found its cluster", || node.client().ask("get a") == "END");
    let mut patient = node.client();
    assert_eq!(patient.ask("get a"), "END");
    let (said, used) = (node.said().len(), processor_time(&mut node));
    let waiting: Vec<TcpStream> = (0..16)
        .map(|_| TcpStream::connect(node.address()).expect("the backlog takes it"))
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    let used = processor_time(&mut node) - used;
    let said = node.said().len() - said;
    assert!(said < SAID_BYTES_MAX, "{said} bytes in two seconds");
    assert!(used < Duration::from_secs(1), "{used:?} of processor time for doing nothing");
    assert!(node.said().contains("accepting connections pauses"), "{}", node.said());
    assert_eq!(patient.ask("get a"), "END", "who was there before does not suffer");
    for stream in waiting {
        assert_eq!(Client::new(stream).ask("get a"), "END", "who waited is served");
    }
}
