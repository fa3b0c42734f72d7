//! Starting a server for a test that talks to it.

use std::io::Read;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub mod ports;

/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that ends with the value.
pub struct Server {
    /// Where it listens.
    pub address: String,
    child: Child,
}

impl Server {
    /// Starts `binary`, which is told to listen on `port`, and waits until it does.
    pub fn start(binary: &str, arguments: &[&str], port: u16) -> Result<Self, String> {
        let child = Command::new(binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut server = Self { address: format!("127.0.0.1:{port}"), child };
        let started = Instant::now();
        while TcpStream::connect(&server.address).is_err() {
            if server.child.try_wait().is_ok_and(|status| status.is_some()) {
                let mut reason = String::new();
                if let Some(mut stderr) = server.child.stderr.take() {
                    let _ = stderr.read_to_string(&mut reason);
                }
                return Err(reason.trim().to_string());
            }
            if started.elapsed() > START_TIMEOUT {
                return Err("nobody listens".to_string());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Nobody reads what it says from now on, so it must not have to wait for a reader.
        let mut said = server.child.stderr.take().expect("it is piped");
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
