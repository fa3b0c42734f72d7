//! Where a server listens: `host:port`, or the path of a unix socket.

use std::fmt;
use std::net::ToSocketAddrs;
use std::str::FromStr;

use socket2::SockAddr;

const FORMS: &str = "use HOST:PORT, or the absolute path of a unix socket";

/// An address as given and as resolved.
#[derive(Clone, Debug)]
pub struct Address {
    name: String,
    socket: SockAddr,
}

impl Address {
    /// What a socket connects to.
    pub fn socket(&self) -> &SockAddr {
        &self.socket
    }
}

impl PartialEq for Address {
    /// Whether both reach the same socket, however they are spelled.
    fn eq(&self, other: &Self) -> bool {
        self.socket == other.socket
    }
}

impl From<SockAddr> for Address {
    /// An address without a given name.
    fn from(socket: SockAddr) -> Self {
        let name = match (socket.as_socket(), socket.as_pathname()) {
            (Some(address), _) => address.to_string(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "an unnamed socket".into(),
        };
        Self { name, socket }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix:").or(text.starts_with('/').then_some(text));
        let socket = match path {
            Some(path) => SockAddr::unix(path)
                .map_err(|error| format!("{path} is not a socket path: {error}"))?,
            None => {
                let mut found =
                    text.to_socket_addrs().map_err(|error| format!("{error}; {FORMS}"))?;
                found.next().ok_or_else(|| format!("the name has no address; {FORMS}"))?.into()
            }
        };
        Ok(Self { name: text.into(), socket })
    }
}

/// A node of a ring, spelled `ID=ADDRESS` or `ID*WEIGHT=ADDRESS`.
#[derive(Clone, Debug)]
pub struct NodeAddress {
    /// Its id, which determines its points on the ring.
    pub id: String,
    /// Its share of the keys relative to other nodes.
    pub weight: u32,
    /// Where it listens.
    pub address: Address,
}

impl FromStr for NodeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, address) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not ID=ADDRESS"))?;
        let (id, weight) = match id.split_once('*') {
            None => (id, 1),
            Some((id, weight)) => {
                (id, weight.parse().map_err(|_| format!("{weight:?} is not a weight"))?)
            }
        };
        Ok(Self { id: id.into(), weight, address: address.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_understood() {
        assert!("127.0.0.1:11211".parse::<Address>().unwrap().socket().is_ipv4());
        assert!("[::1]:11211".parse::<Address>().unwrap().socket().is_ipv6());
        assert!("/tmp/socket".parse::<Address>().unwrap().socket().is_unix());
        assert!("unix:socket".parse::<Address>().unwrap().socket().is_unix());
        assert!("127.0.0.1".parse::<Address>().is_err());
    }

    #[test]
    fn nodes_are_read_with_their_weight() {
        let node: NodeAddress = "a=127.0.0.1:1".parse().unwrap();
        assert_eq!((node.id.as_str(), node.weight), ("a", 1));
        let node: NodeAddress = "b*3=127.0.0.1:2".parse().unwrap();
        assert_eq!((node.id.as_str(), node.weight), ("b", 3));
        for text in ["127.0.0.1:1", "a*x=127.0.0.1:1", "a=nowhere"] {
            assert!(text.parse::<NodeAddress>().is_err(), "{text}");
        }
    }
}
