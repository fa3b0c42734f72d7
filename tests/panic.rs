//! A core that fails ends the whole process, with a message and exit code 101: a node that went on
//! would answer for the other cores' keys and hang for its own.
//!
//! The failure comes from outside, so the server needs no means to fail on purpose: strace makes the
//! kernel refuse one core's `io_uring_enter`. Where strace is missing or may not attach, the test
//! says SKIPPED.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

mod live;

const PATIENCE: Duration = Duration::from_secs(30);

/// Killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The ids of the process's threads whose names begin so.
fn threads(process: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the process is alive");
    let id = |task: fs::DirEntry| {
        let comm = fs::read_to_string(task.path().join("comm")).ok()?;
        comm.starts_with(name).then(|| task.file_name().to_string_lossy().into_owned())
    };
    tasks.flatten().filter_map(id).collect()
}

/// A server of two cores, with its log somewhere.
fn start(port: &str, log: Stdio) -> Killed {
    let server = Command::new(live::binary())
        .args(["-l", "127.0.0.1", "-p", port, "-t", "2", "-m", "64", "--log", "info"])
        .stderr(log)
        .spawn()
        .expect("the binary is built by cargo");
    Killed(server)
}

/// Makes one core fail. `None`, which is said aloud, where that cannot be done.
fn fail_a_core(server: &Killed) -> Option<Killed> {
    let core = threads(server.0.id(), "core-1");
    assert!(!core.is_empty(), "the second core's thread has its name");
    let strace = Command::new("strace")
        .args(core.iter().flat_map(|id| ["-p", id.as_str()]))
        .args(["-e", "trace=io_uring_enter", "-e"])
        .arg("inject=io_uring_enter:error=EBADF")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut strace = match strace {
        Ok(strace) => Killed(strace),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("SKIPPED: no strace");
            return None;
        }
        Err(error) => panic!("strace: {error}"),
    };
    let mut traced = BufReader::new(strace.0.stderr.take().expect("it is piped"));
    let mut first = String::new();
    traced.read_line(&mut first).expect("text");
    if !first.contains("attached") {
        println!("SKIPPED: strace may not attach: {first}");
        return None;
    }
    // strace must not stop for want of a reader.
    std::thread::spawn(move || traced.lines().for_each(drop));
    Some(strace)
}

/// How the server ends, once a core of it has failed.
fn end(server: &mut Killed) -> ExitStatus {
    // The next time the core wakes, which its heartbeat sees to, it is refused.
    let begun = Instant::now();
    loop {
        if let Some(status) = server.0.try_wait().expect("a child can be waited for") {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "a core was refused and the process goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_core_that_fails_ends_the_process_with_a_message_and_code_101() {
    let port = live::free_port().to_string();
    let mut server = start(&port, Stdio::piped());
    let mut log = BufReader::new(server.0.stderr.take().expect("it is piped"));
    let mut said = String::new();
    while !said.contains("ready on") {
        if log.read_line(&mut said).expect("text") == 0 {
            return println!("SKIPPED: the server does not start here: {said}");
        }
    }
    let Some(_strace) = fail_a_core(&server) else { return };
    let status = end(&mut server);
    while log.read_line(&mut said).expect("text") > 0 {}
    assert_eq!(status.code(), Some(101), "{status}: {said}");
    assert!(said.contains("thread 'core-1") && said.contains("io_uring"), "who and why: {said}");
    assert!(said.contains("a core failed; the process exits"), "what follows: {said}");
    // The kernel takes a process's rings apart after it has ended, and with them its listeners.
    let address = ("127.0.0.1", port.parse().expect("a port"));
    let begun = Instant::now();
    while std::net::TcpStream::connect(address).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "somebody still listens");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_core_that_fails_ends_the_process_although_nobody_reads_why() {
    let port = live::free_port().to_string();
    let (_reader, stderr) = live::full_pipe();
    let mut server = start(&port, stderr);
    let begun = Instant::now();
    while std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
        if server.0.try_wait().expect("a child can be waited for").is_some() {
            return println!("SKIPPED: the server does not start here");
        }
        assert!(begun.elapsed() < PATIENCE, "it does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let Some(_strace) = fail_a_core(&server) else { return };
    assert_eq!(end(&mut server).code(), Some(101));
}
