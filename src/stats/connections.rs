//! `stats conns`: listeners and connections, one by one.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::Emit;

/// One listener or connection.
#[derive(Clone, Debug)]
pub struct ConnectionStats {
    /// Its descriptor, or another unique number.
    pub id: u64,
    /// The client's address; for a listener, its own.
    pub address: ConnectionAddress,
    /// The address the client connected to; `None` for a listener.
    pub listen_address: Option<ConnectionAddress>,
    /// Its state.
    pub state: ConnectionState,
    /// Seconds since its last request, or since it was opened.
    pub idle_seconds: u64,
}

/// An address in memcached's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionAddress {
    /// TCP over IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A unix domain socket.
    Unix(PathBuf),
}

impl fmt::Display for ConnectionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionAddress::Tcp(SocketAddr::V4(address)) => write!(f, "tcp:{address}"),
            ConnectionAddress::Tcp(SocketAddr::V6(address)) => {
                write!(f, "tcp6:[{}]:{}", address.ip(), address.port())
            }
            ConnectionAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// State of a connection, under memcached's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Accepting connections.
    Listening,
    /// Waiting for a request.
    Read,
    /// Receiving a value.
    ReceivingValue,
    /// Being answered: the connection that requested these statistics.
    Parsing,
    /// Waiting for the client to receive its answers.
    Sending,
}

impl ConnectionState {
    fn name(self) -> &'static str {
        match self {
            ConnectionState::Listening => "conn_listening",
            ConnectionState::Read => "conn_read",
            ConnectionState::ReceivingValue => "conn_nread",
            ConnectionState::Parsing => "conn_parse_cmd",
            ConnectionState::Sending => "conn_mwrite",
        }
    }
}

/// Renders all in the order of their descriptors, so that listeners come first.
pub fn render(connections: &[ConnectionStats], emit: Emit<'_>) {
    let mut connections: Vec<&ConnectionStats> = connections.iter().collect();
    connections.sort_unstable_by_key(|connection| connection.id);
    for connection in connections {
        let id = connection.id;
        emit(format_args!("{id}:addr"), format_args!("{}", connection.address));
        if let Some(address) = &connection.listen_address {
            emit(format_args!("{id}:listen_addr"), format_args!("{address}"));
        }
        emit(format_args!("{id}:state"), format_args!("{}", connection.state.name()));
        emit(format_args!("{id}:secs_since_last_cmd"), format_args!("{}", connection.idle_seconds));
    }
}
