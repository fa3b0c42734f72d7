//! Which endpoint a key is asked at: the one server there is, a node of a ring, a core's own port.
//!
//! A client that knows the ring saves the hop between nodes, and one that knows the cores' ports
//! (from the binary HELLO) saves the hop between cores. Each connection then talks to one endpoint
//! only and asks it for its own keys alone.

use std::time::Duration;

use ringlane::cluster::ring::{Ring, RingNode, RingParameters};
use ringlane::hash::KeyHash;
use ringlane::protocol::binary::client::{Frame, Response};
use ringlane::protocol::binary::{Opcode, Status, Topology};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{Read, Write};

use crate::address::Address;
use crate::args::NodeAddress;

/// All endpoints, and the rule that places keys.
#[derive(Debug)]
pub struct Routes {
    endpoints: Vec<Address>,
    nodes: Vec<Node>,
    /// Places keys on nodes; `None` with one node.
    ring: Option<Ring>,
}

/// One node's endpoints: one, or one for each of its cores.
#[derive(Clone, Copy, Debug)]
struct Node {
    first_endpoint: usize,
    cores: u32,
    hash_seed: u64,
}

impl Routes {
    /// One server at one address.
    pub fn one(address: Address) -> Self {
        let node = Node { first_endpoint: 0, cores: 1, hash_seed: 0 };
        Self { endpoints: vec![address], nodes: vec![node], ring: None }
    }

    /// Nodes of a ring that places keys as `parameters` say. With `shard_ports` each is asked for
    /// the ports of its cores, and those are used if it has them.
    pub fn new(
        nodes: &[NodeAddress],
        parameters: RingParameters,
        shard_ports: bool,
    ) -> Result<Self, String> {
        let mut routes = Self { endpoints: Vec::new(), nodes: Vec::new(), ring: None };
        // The ring numbers nodes by their ids in order.
        let mut nodes: Vec<&NodeAddress> = nodes.iter().collect();
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        for NodeAddress { address, .. } in &nodes {
            let mut node = Node { first_endpoint: routes.endpoints.len(), cores: 1, hash_seed: 0 };
            let ports = if shard_ports { core_ports(address)? } else { None };
            match ports {
                Some((ports, hash_seed)) => {
                    (node.cores, node.hash_seed) = (ports.len() as u32, hash_seed);
                    routes.endpoints.extend(ports);
                }
                None => routes.endpoints.push(address.clone()),
            }
            routes.nodes.push(node);
        }
        if nodes.len() > 1 {
            let members = nodes
                .iter()
                .map(|node| RingNode { id: node.id.as_str().into(), weight: node.weight });
            let ring = Ring::new(0, parameters, members);
            routes.ring = Some(ring.map_err(|error| format!("no ring: {error}"))?);
        }
        Ok(routes)
    }

    /// All endpoints; at least one.
    pub fn endpoints(&self) -> &[Address] {
        &self.endpoints
    }

    /// Whether there is nothing to choose.
    #[inline]
    pub fn is_single(&self) -> bool {
        self.endpoints.len() == 1
    }

    /// The number of the endpoint that serves `key`.
    #[inline]
    pub fn endpoint(&self, key: &[u8]) -> usize {
        let node = match &self.ring {
            Some(ring) => self.nodes[usize::from(ring.owner(ring.place(key)).0)],
            None => self.nodes[0],
        };
        match node.cores {
            1 => node.first_endpoint,
            cores => node.first_endpoint + KeyHash::of(key, node.hash_seed).core(cores) as usize,
        }
    }
}

/// The addresses of a node's cores and the seed of its key hash, `None` if it has no shard ports.
fn core_ports(address: &Address) -> Result<Option<(Vec<Address>, u64)>, String> {
    let answer = hello(address)?;
    let topology = Topology::from_bytes(&answer)
        .map_err(|error| format!("{address} describes itself badly: {error:?}"))?;
    // A hash this build does not know places nothing.
    let known = topology.core_of(b"").is_some();
    let (Some(base), true, Some(host)) =
        (topology.shard_ports, known, address.socket().as_socket())
    else {
        return Ok(None);
    };
    let ports = (0..topology.core_count).map(|core| {
        let mut host = host;
        host.set_port(base + core);
        Address::from(SockAddr::from(host))
    });
    Ok(Some((ports.collect(), topology.hash_seed)))
}

/// What a node answers to the binary HELLO.
fn hello(address: &Address) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{address}: {error}");
    let domain = Domain::from(i32::from(address.socket().family()));
    let mut socket = Socket::new(domain, Type::STREAM, None).map_err(failed)?;
    let limit = Duration::from_secs(2);
    match address.socket().is_unix() {
        true => socket.connect(address.socket()).map_err(failed)?,
        false => socket.connect_timeout(address.socket(), limit).map_err(failed)?,
    }
    socket.set_read_timeout(Some(limit)).map_err(failed)?;
    let mut request = Vec::new();
    Frame::new(Opcode::Hello, 1).encode(&mut request);
    socket.write_all(&request).map_err(failed)?;
    let unspoken = |input: &[u8]| {
        let words = crate::workload::values::shown(input);
        match input {
            [] => format!("{address} does not speak the binary protocol: no answer to HELLO"),
            _ => format!(
                "{address} does not speak the binary protocol: answered HELLO with \"{words}\""
            ),
        }
    };
    let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match Response::decode(&input) {
            Ok(Some((response, _))) if response.status == Status::Ok => {
                return Ok(response.value.to_vec());
            }
            Ok(None) if input.first().is_none_or(|&byte| byte == Opcode::Hello as u8) => {}
            _ => return Err(unspoken(&input)),
        }
        match socket.read(&mut buffer) {
            Ok(count) if count > 0 => input.extend_from_slice(&buffer[..count]),
            _ => return Err(unspoken(&input)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Address {
        format!("127.0.0.1:{port}").parse().unwrap()
    }

    #[test]
    fn one_server_takes_every_key() {
        let routes = Routes::one(address(1));
        assert!(routes.is_single());
        assert_eq!(routes.endpoint(b"any"), 0);
    }

    #[test]
    fn keys_spread_over_the_nodes_of_a_ring_whatever_their_order() {
        let named =
            |id: &str, weight, port| NodeAddress { id: id.into(), weight, address: address(port) };
        let (a, b, c) = (named("a", 1, 1), named("b", 1, 2), named("c", 2, 3));
        let parameters = RingParameters::default();
        let one = Routes::new(&[a.clone(), b.clone(), c.clone()], parameters, false).unwrap();
        let other = Routes::new(&[c, a, b], parameters, false).unwrap();
        let mut seen = [0; 3];
        for number in 0..4000 {
            let key = format!("key:{number}");
            let endpoint = one.endpoint(key.as_bytes());
            let same = other.endpoint(key.as_bytes());
            assert_eq!(one.endpoints()[endpoint].to_string(), other.endpoints()[same].to_string());
            seen[endpoint] += 1;
        }
        // The third has twice the weight.
        assert!(seen[..2].iter().all(|&count| (700..1300).contains(&count)), "{seen:?}");
        assert!((1600..2400).contains(&seen[2]), "{seen:?}");
    }

    #[test]
    fn cores_of_a_node_are_endpoints_of_their_own() {
        let node = Node { first_endpoint: 0, cores: 4, hash_seed: 7 };
        let endpoints = (0..4).map(|core| address(100 + core)).collect();
        let routes = Routes { endpoints, nodes: vec![node], ring: None };
        for key in [&b"a"[..], b"b", b"c", b"d"] {
            assert_eq!(routes.endpoint(key), KeyHash::of(key, 7).core(4) as usize);
        }
    }

    #[test]
    fn a_server_of_another_protocol_is_named_in_a_sentence() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 64]);
            stream.write_all(b"ERROR\r\n").unwrap();
        });
        let error = hello(&address(port)).unwrap_err();
        assert!(error.contains("does not speak the binary protocol"), "{error}");
        assert!(error.contains("ERROR"), "{error}");
        server.join().unwrap();
    }
}
