//! How the real server's life begins and ends: signals, the pid file, the unix socket's path.

mod live;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything: a test that meets it has found a hang.
const PATIENCE: Duration = Duration::from_secs(30);
const SIGQUIT: i32 = 3;
const SIGKILL: i32 = 9;

/// An empty directory for one test.
fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lifecycle").join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("the scratch directory is writable");
    path
}

/// A server of one core on a unix socket, with a pid file, in a directory of its own.
struct Node {
    child: Child,
    log: BufReader<ChildStderr>,
    socket: PathBuf,
    pid_file: PathBuf,
}

impl Node {
    fn spawn(directory: &Path) -> Self {
        let (socket, pid_file) = (directory.join("r.sock"), directory.join("r.pid"));
        let mut child = Command::new(live::binary())
            .args(["-m", "16", "-t", "1", "-s"])
            .arg(&socket)
            .arg("-P")
            .arg(&pid_file)
            // For the core dump of the test that asks for one.
            .current_dir(directory)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary is built by cargo");
        let log = BufReader::new(child.stderr.take().expect("it is piped"));
        Self { child, log, socket, pid_file }
    }

    /// Starts it and waits until it is ready; fails with what it says instead.
    fn start(directory: &Path) -> Self {
        let mut node = Self::spawn(directory);
        node.read_until("ready on");
        node
    }

    /// Reads the log up to the line that holds `text`.
    fn read_until(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.lines().next_back().is_some_and(|line| line.contains(text)) {
            let bytes = self.log.read_line(&mut seen).expect("its log");
            assert!(bytes > 0, "no line with `{text}` in its log:\n{seen}");
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(sent.expect("there is a kill").success(), "no signal {name} was sent");
    }

    /// Waits for its end; the rest of its log.
    fn ended(mut self) -> (ExitStatus, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).expect("its log");
        (status, rest)
    }

    /// It answers, on its socket.
    fn assert_serves(&self) {
        let mut stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(b"mn\r\n").expect("it takes requests");
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"MN\r\n");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn signals_that_ask_for_the_end_end_it_in_order() {
    for signal in ["TERM", "INT", "USR1"] {
        let directory = scratch(&format!("end-{signal}"));
        let node = Node::start(&directory);
        let written = fs::read_to_string(&node.pid_file).expect("a pid file");
        assert_eq!(written, format!("{}\n", node.child.id()));
        node.assert_serves();
        node.signal(signal);
        let (status, log) = node.ended();
        assert_eq!(status.code(), Some(0), "SIG{signal}: {log}");
        assert!(log.contains(&format!("SIG{signal}: shutting down")), "{log}");
        assert!(log.contains("stopped after"), "SIG{signal}: {log}");
        let left: Vec<_> = fs::read_dir(&directory).expect("a directory").collect();
        assert!(left.is_empty(), "SIG{signal} leaves {left:?} behind");
    }
}

#[test]
fn signals_that_ask_for_what_it_does_not_offer_do_not_end_it() {
    let mut node = Node::start(&scratch("ignored"));
    for signal in ["HUP", "USR2", "HUP"] {
        node.signal(signal);
        node.read_until(&format!("SIG{signal} ignored: settings change only with a restart"));
    }
    node.signal("PIPE");
    node.assert_serves();
    // Nor do they count as a first wish to end.
    node.signal("USR1");
    let (status, log) = node.ended();
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains("again"), "{log}");
}

#[test]
fn sigquit_ends_it_at_once_as_the_kernel_does() {
    let node = Node::start(&scratch("quit"));
    node.signal("QUIT");
    assert_eq!(node.ended().0.signal(), Some(SIGQUIT));
}

#[test]
fn a_pid_file_that_is_a_link_is_refused_and_its_target_untouched() {
    let directory = scratch("pid-link");
    let target = directory.join("precious");
    fs::write(&target, "precious").expect("a file");
    symlink(&target, directory.join("r.pid")).expect("a link");
    let (status, log) = Node::spawn(&directory).ended();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("r.pid is a symbolic link: name the file itself"), "{log}");
    assert_eq!(fs::read_to_string(&target).expect("a file"), "precious");
}

#[test]
fn a_pid_file_that_holds_something_else_is_refused_and_untouched() {
    let directory = scratch("pid-foreign");
    fs::write(directory.join("r.pid"), "port = 11211\n").expect("a file");
    let (status, log) = Node::spawn(&directory).ended();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("holds something other than a process id: remove it"), "{log}");
    let kept = fs::read_to_string(directory.join("r.pid")).expect("a file");
    assert_eq!(kept, "port = 11211\n");
}

/// A node that has been told to end removes what is its own, not what another has put there since.
#[test]
fn paths_that_belong_to_a_successor_by_now_are_left_to_it() {
    let directory = scratch("successor");
    let former = Node::start(&directory);
    fs::remove_file(&former.pid_file).expect("a pid file");
    fs::remove_file(&former.socket).expect("a socket");
    let successor = Node::start(&directory);
    former.signal("TERM");
    assert_eq!(former.ended().0.code(), Some(0));
    successor.assert_serves();
    let written = fs::read_to_string(&successor.pid_file).expect("a pid file");
    assert_eq!(written, format!("{}\n", successor.child.id()));
}

#[test]
fn what_a_living_server_has_is_refused_to_another() {
    let directory = scratch("living");
    let node = Node::start(&directory);
    let (status, log) = Node::spawn(&directory).ended();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("r.sock is already in use: stop the program that listens there"), "{log}");
    let pid = node.child.id();
    assert!(log.contains(&format!("belongs to running process {pid}: stop it")), "{log}");
    node.assert_serves();
}

/// The kernel takes the rings of a killed process apart after the process has ended, and until then
/// the socket of the dead one still accepts.
#[test]
fn a_killed_server_starts_again_on_the_same_socket_at_once() {
    let directory = scratch("again");
    let mut node = Node::start(&directory);
    for _ in 0..50 {
        node.assert_serves();
        let _held_open = UnixStream::connect(&node.socket).expect("it listens");
        node.signal("KILL");
        assert_eq!(node.ended().0.signal(), Some(SIGKILL));
        node = Node::start(&directory);
    }
    node.assert_serves();
}

/// A process whose log nobody reads ends with `code`; `meanwhile` is called again and again until then.
fn ends_unheard(flags: &[&str], code: i32, mut meanwhile: impl FnMut(&Child)) {
    let (_reader, stderr) = live::full_pipe();
    let child = Command::new(live::binary()).args(flags).stderr(stderr).spawn();
    let mut child = child.expect("the binary is built by cargo");
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return assert_eq!(status.code(), Some(code), "{flags:?}");
        }
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("it does not end with {flags:?}");
        }
        meanwhile(&child);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_process_ends_although_nobody_reads_what_it_says() {
    ends_unheard(&["--no-such-flag"], 1, |_| {});
    let socket = scratch("unheard").join("r.sock");
    let path = socket.to_str().expect("text");
    let mut told = false;
    ends_unheard(&["-m", "16", "-t", "1", "--log", "trace", "-s", path], 0, |child| {
        if !told && UnixStream::connect(&socket).is_ok() {
            told = true;
            let sent = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
            assert!(sent.expect("there is a kill").success());
        }
    });
    let taken = Node::start(&scratch("unheard-refusal"));
    let path = taken.socket.to_str().expect("text");
    ends_unheard(&["-m", "16", "-t", "1", "-s", path], 1, |_| {});
}
