//! Listening sockets for clients.
//!
//! Every core has its own listening socket for the main port (SO_REUSEPORT), so that accepting
//! scales with the cores; load, not the kernel's hash, decides which core serves a connection.
//! Options that accepted sockets inherit are set here once, which saves system calls per
//! connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::owned_path::OwnedPath;
use super::unix_socket;
use crate::config::Config;

/// Sent to a connection beyond the limit before it is closed.
const TOO_MANY: &[u8] = b"ERROR Too many open connections\r\n";

/// Which core serves the connections of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The least loaded core of the node.
    Node,
    /// The core that listens.
    Core,
}

/// A listening socket of one core.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// The path of a unix socket, removed with it.
    _path: Option<OwnedPath>,
    /// Its number on its core.
    pub number: u32,
    /// Which core serves its connections.
    pub reach: Reach,
}

impl Listener {
    /// The descriptor.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The address it listens on.
    pub fn address(&self) -> io::Result<SockAddr> {
        self.socket.local_addr()
    }
}

/// Opens the listeners of core `core`.
///
/// # Errors
/// The address that cannot be listened on.
pub fn open(config: &Config, core: usize) -> Result<Vec<Listener>, (String, io::Error)> {
    let mut sockets = Vec::new();
    for &address in &config.listen {
        let address = SocketAddr::new(address, config.port);
        let socket = tcp(address, config.backlog).map(|socket| (socket, None));
        sockets.push((socket, address.to_string(), Reach::Node));
        if let Some(port) = config.shard_port(core) {
            let address = SocketAddr::new(address.ip(), port);
            let socket = tcp(address, config.backlog).map(|socket| (socket, None));
            sockets.push((socket, address.to_string(), Reach::Core));
        }
    }
    if core == 0
        && let Some(unix_socket) = &config.unix_socket
    {
        let name = unix_socket.path.display().to_string();
        let socket = unix_socket::listen(unix_socket, config.backlog);
        sockets.push((socket.map(|(socket, path)| (socket, Some(path))), name, Reach::Node));
    }
    sockets
        .into_iter()
        .zip(0..)
        .map(|((socket, name, reach), number)| match socket {
            Ok((socket, path)) => Ok(Listener { socket, _path: path, number, reach }),
            Err(error) => Err((name, error)),
        })
        .collect()
}

fn tcp(address: SocketAddr, backlog: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog as i32)?;
    Ok(socket)
}

/// Sends the refusal to a connection beyond the limit; dropping the socket closes it.
pub fn refuse(socket: &OwnedFd) {
    let _ = socket2::SockRef::from(socket).send_with_flags(TOO_MANY, libc::MSG_DONTWAIT);
}
