//! The sockets on which other nodes reach this one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::config::Config;

/// Connections of other nodes waiting to be accepted.
const BACKLOG: i32 = 256;
/// Kernel buffer for datagrams: a burst of gossip must not be lost while the executor is busy.
const GOSSIP_BYTES: usize = 1 << 20;
/// A peer that acknowledges nothing for this long is abandoned: its host or the network is down.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Sockets for other nodes.
#[derive(Debug)]
pub struct ClusterSockets {
    /// TCP, listening.
    pub listener: Socket,
    /// UDP.
    pub gossip: Socket,
}

/// Opens the sockets for other nodes, if `config` has a cluster.
///
/// # Errors
/// The address that cannot be listened on.
pub fn open(config: &Config) -> Result<Option<ClusterSockets>, (String, io::Error)> {
    let Some(cluster) = &config.cluster else { return Ok(None) };
    let address = cluster.listen;
    let open = || {
        let listener = socket(address, Type::STREAM)?;
        listener.set_reuse_address(true)?;
        listener.bind(&address.into())?;
        listener.listen(BACKLOG)?;
        let gossip = socket(address, Type::DGRAM)?;
        let _ = gossip.set_recv_buffer_size(GOSSIP_BYTES);
        gossip.bind(&address.into())?;
        Ok(ClusterSockets { listener, gossip })
    };
    open().map(Some).map_err(|error| (address.to_string(), error))
}

fn socket(address: SocketAddr, transport: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), transport, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Configures a link's socket: no delay for fuller packets, and a timeout for unresponsive peers.
///
/// # Errors
/// If the kernel refuses an option.
pub fn prepare(socket: &OwnedFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(SILENCE_MAX)
        .with_interval(Duration::from_secs(1))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(SILENCE_MAX))
}
