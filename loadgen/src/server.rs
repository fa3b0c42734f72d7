//! Servers to measure: running ones, and ones started here on separate CPUs.
//!
//! A server started here is paused with SIGSTOP while another one is measured, so that its
//! housekeeping and polling do not interfere, and is stopped with this process.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::error::Error;
use crate::listener;
use ringlane_client::address::Address;

/// A server as named on the command line: `ADDRESS`, `NAME=ADDRESS` or `NAME=COMMAND`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSpec {
    /// What it is called in tables.
    pub name: String,
    /// Its address, or its command with `{port}` or `{socket}` in it.
    pub text: String,
}

impl ServerSpec {
    /// Reads a server's name and address or command.
    pub fn parse(text: &str) -> Self {
        let is_name = |name: &str| {
            !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "._- ".contains(c))
                && !name.contains(" -")
        };
        match text.split_once('=') {
            Some((name, rest)) if is_name(name) => {
                ServerSpec { name: name.into(), text: rest.into() }
            }
            _ => {
                let first = text.split(' ').next().unwrap_or(text);
                let name = if Self::is_command(text) {
                    first.rsplit('/').next().unwrap_or(first)
                } else {
                    text
                };
                ServerSpec { name: name.into(), text: text.into() }
            }
        }
    }

    /// Whether it listens on a unix socket.
    pub fn is_unix(&self) -> bool {
        match Self::is_command(&self.text) {
            true => self.text.contains("{socket}"),
            false => self.text.starts_with('/') || self.text.starts_with("unix:"),
        }
    }

    fn is_command(text: &str) -> bool {
        text.contains("{port}") || text.contains("{socket}")
    }
}

/// A server that can be measured.
#[derive(Debug)]
pub struct Server {
    /// What it is called in tables.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// Its process, as far as known.
    pub pid: Option<u32>,
    started: Option<Started>,
}

#[derive(Debug)]
struct Started {
    child: Child,
    log: PathBuf,
    socket: Option<PathBuf>,
}

impl Server {
    /// Starts the server, or attaches to the running one. `cpus` is a list as for `taskset`.
    pub fn ready(spec: &ServerSpec, cpus: &str) -> Result<Self, Error> {
        let name = spec.name.clone();
        if !ServerSpec::is_command(&spec.text) {
            let address: Address = spec.text.parse().map_err(|words| {
                let name = &spec.text;
                Error::Setup(format!(
                    "{name}: {words}, or a command that contains {{port}} or {{socket}}"
                ))
            })?;
            let pid = listener::pid_of(address.socket());
            return Ok(Self { name, address, pid, started: None });
        }
        let failed = |words: String| Error::Setup(format!("{}: {words}", spec.name));
        let unique = format!("ringload-{}-{}", std::process::id(), free_port().unwrap_or(0));
        let temporary = std::env::temp_dir();
        let (log, path) = (temporary.join(format!("{unique}.log")), temporary.join(unique));
        let port = free_port().map_err(|error| failed(format!("no free port: {error}")))?;
        let over_unix = spec.text.contains("{socket}");
        let command = spec.text.replace("{port}", &port.to_string());
        let command = command.replace("{socket}", &path.to_string_lossy());
        let output = File::create(&log).map_err(|error| failed(error.to_string()))?;
        let errors = output.try_clone().map_err(|error| failed(error.to_string()))?;
        let child = Command::new("sh")
            .args(["-c", &format!("exec taskset -c {cpus} {command}")])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let pid = Some(child.id());
        let address =
            if over_unix { path.to_string_lossy().into() } else { format!("127.0.0.1:{port}") };
        let address: Address = address.parse().map_err(Error::Setup)?;
        let started = Started { child, log, socket: over_unix.then_some(path) };
        let mut server = Self { name, address, pid, started: Some(started) };
        server.await_listening().map_err(failed)?;
        Ok(server)
    }

    /// Pauses a server started here, so that it uses no CPU.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Resumes it.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn await_listening(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if accepts(&self.address) {
                return Ok(());
            }
            let started = self.started.as_mut().expect("only servers started here are awaited");
            let ended = started.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(&started.log).unwrap_or_default();
                let words = log.lines().last().unwrap_or("without a word").to_owned();
                return Err(match ended {
                    Some(status) => format!("exited at once ({status}): {words}"),
                    None => format!("is not listening at {} after 20 s: {words}", self.address),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: &str) {
        if let Some(started) = &self.started {
            // The shell's own kill: no other tool is sure to be there.
            let kill = format!("kill -{signal} {}", started.child.id());
            let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("CONT");
        self.signal("TERM");
        let Some(started) = &mut self.started else { return };
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(started.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = started.child.kill();
                let _ = started.child.wait();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = std::fs::remove_file(&started.log);
        if let Some(socket) = &started.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn accepts(address: &Address) -> bool {
    let domain = Domain::from(i32::from(address.socket().family()));
    Socket::new(domain, Type::STREAM, None)
        .is_ok_and(|socket| socket.connect(address.socket()).is_ok())
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read() {
        let spec = |name: &str, text: &str| ServerSpec { name: name.into(), text: text.into() };
        assert_eq!(ServerSpec::parse("127.0.0.1:1"), spec("127.0.0.1:1", "127.0.0.1:1"));
        assert_eq!(ServerSpec::parse("ours=127.0.0.1:1"), spec("ours", "127.0.0.1:1"));
        assert_eq!(ServerSpec::parse("m=memcached -p {port}"), spec("m", "memcached -p {port}"));
        assert_eq!(
            ServerSpec::parse("/x/mc -o a=b -p {port}"),
            spec("mc", "/x/mc -o a=b -p {port}")
        );
        assert!(!ServerSpec::parse("/x/mc -p {port}").is_unix());
        assert!(ServerSpec::parse("/x/mc -s {socket}").is_unix());
        assert!(ServerSpec::parse("mine=/run/mc.sock").is_unix());
    }

    #[test]
    fn a_server_that_ends_at_once_is_reported_with_its_last_words() {
        let spec = ServerSpec::parse("broken=sh -c 'echo no such option; exit 3' {port}");
        let failure = Server::ready(&spec, "0").unwrap_err().to_string();
        assert!(failure.contains("broken") && failure.contains("no such option"), "{failure}");
    }
}
