//! Sockets on which clients arrive.
//!
//! Every core has its own listening socket for the main port (SO_REUSEPORT), so that accepting
//! scales with the cores; where a connection then lives is decided by load, not by the kernel's
//! hash. Options that accepted sockets inherit are set here once, which saves system calls per
//! connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::{Config, UnixSocket};

/// What is told to a connection beyond the limit before it is closed.
const TOO_MANY: &[u8] = b"ERROR Too many open connections\r\n";

/// Which core serves what a listener accepts.
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
    /// Its number on its core.
    pub number: u32,
    /// Who serves its connections.
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
/// With the address that could not be listened on.
pub fn open(config: &Config, core: usize) -> Result<Vec<Listener>, (String, io::Error)> {
    let mut sockets = Vec::new();
    for &address in &config.listen {
        let address = SocketAddr::new(address, config.port);
        sockets.push((tcp(address, config.backlog), address.to_string(), Reach::Node));
        if let Some(port) = config.shard_port(core) {
            let address = SocketAddr::new(address.ip(), port);
            sockets.push((tcp(address, config.backlog), address.to_string(), Reach::Core));
        }
    }
    if core == 0
        && let Some(unix_socket) = &config.unix_socket
    {
        let name = unix_socket.path.display().to_string();
        sockets.push((unix(unix_socket, config.backlog), name, Reach::Node));
    }
    sockets
        .into_iter()
        .zip(0..)
        .map(|((socket, name, reach), number)| match socket {
            Ok(socket) => Ok(Listener { socket, number, reach }),
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

fn unix(unix_socket: &UnixSocket, backlog: u32) -> io::Result<Socket> {
    remove_stale(&unix_socket.path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&unix_socket.path)?)?;
    use std::os::unix::fs::PermissionsExt;
    let permissions = std::fs::Permissions::from_mode(unix_socket.mode);
    std::fs::set_permissions(&unix_socket.path, permissions)?;
    socket.listen(backlog as i32)?;
    Ok(socket)
}

/// Removes the socket of a server that is gone. One that still answers keeps its path.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(_) => Ok(()),
    }
}

/// Removes the path of the unix socket, if there is one, when the node ends.
pub fn remove_path(config: &Config) {
    if let Some(unix_socket) = &config.unix_socket {
        let _ = std::fs::remove_file(&unix_socket.path);
    }
}

/// Tells a connection beyond the limit so; it closes when the socket is dropped.
pub fn refuse(socket: &OwnedFd) {
    let _ = socket2::SockRef::from(socket).send_with_flags(TOO_MANY, libc::MSG_DONTWAIT);
}
