//! The answer to HELLO: a description of the server, and all a client needs to find the node and
//! the core of a key.
//!
//! The value is a list of `tag u16 | length u16 | content`. A reader skips unknown tags, and a tag
//! may be absent or repeated, as that of a node is. It is read once per connection, so a general
//! format is affordable here.
//!
//! ```text
//! node   state u8 | weight u16 | cores u16 | boot u64 | hash seed u64 | port u16
//!        | shard port base u16 | address length u8 | address | id length u8 | id
//! ```

use core::net::IpAddr;

use super::FrameError;
use super::opcode::PROTOCOL_VERSION;
use ringlane_types::hash::core_of;
use ringlane_types::request::KEY_BYTES_MAX;

/// Name of the key hash, as HELLO announces it.
pub const HASH_NAME: &str = "xxh3-64";

/// Tags of the list.
pub mod tag {
    /// Version of the protocol, u16.
    pub const PROTOCOL_VERSION: u16 = 1;
    /// Name and version of the server, text.
    pub const SERVER: u16 = 2;
    /// Name of the key hash, text.
    pub const HASH: u16 = 3;
    /// Seed of the key hash, u64.
    pub const HASH_SEED: u16 = 4;
    /// Cores of the node, u16.
    pub const CORE_COUNT: u16 = 5;
    /// The core this connection is on, u16.
    pub const CORE: u16 = 6;
    /// The port that reaches any core, u16.
    pub const PORT: u16 = 7;
    /// The port that reaches core 0; core i has this plus i, u16. Absent without shard ports.
    pub const SHARD_PORTS: u16 = 8;
    /// Item size limit in bytes, u32.
    pub const ITEM_BYTES_MAX: u16 = 9;
    /// Longest key in bytes, u16.
    pub const KEY_BYTES_MAX: u16 = 10;
    /// How the ring is computed: points per weight u32, replicas u8, name of the ring's hash.
    pub const RING: u16 = 11;
    /// Number of roster decisions, u64.
    pub const EPOCH: u16 = 12;
    /// Id of the node that answers, text.
    pub const THIS_NODE: u16 = 13;
    /// A node with points on the ring; one tag for each.
    pub const NODE: u16 = 14;
}

/// Maximum nodes of one list.
pub const NODES_MAX: usize = 1024;

/// Longest id of a node in bytes.
pub const NODE_ID_BYTES_MAX: usize = 64;

/// Longest list in bytes: all nodes with the longest ids and addresses, plus the other tags.
pub const LIST_BYTES_MAX: usize = NODES_MAX * (4 + NODE_BYTES_MAX) + 512;

/// Longest content of a node's tag.
const NODE_BYTES_MAX: usize = 27 + 16 + 1 + NODE_ID_BYTES_MAX;

/// All tags with their names and contents, for the specification and its test.
pub const TAGS: &[(u16, &str, &str)] = &[
    (tag::PROTOCOL_VERSION, "protocol version", "u16"),
    (tag::SERVER, "server", "text"),
    (tag::HASH, "key hash", "text"),
    (tag::HASH_SEED, "hash seed", "u64"),
    (tag::CORE_COUNT, "core count", "u16"),
    (tag::CORE, "core of this connection", "u16"),
    (tag::PORT, "port", "u16"),
    (tag::SHARD_PORTS, "shard port base", "u16"),
    (tag::ITEM_BYTES_MAX, "item size limit", "u32"),
    (tag::KEY_BYTES_MAX, "longest key", "u16"),
    (tag::RING, "ring", "u32, u8, text"),
    (tag::EPOCH, "epoch", "u64"),
    (tag::THIS_NODE, "this node", "text"),
    (tag::NODE, "node", "see below"),
];

/// How a ring is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFacts<'a> {
    /// Points of a node of weight 1.
    pub points_per_weight: u32,
    /// Nodes that store each key.
    pub replicas: u8,
    /// Name of the ring's hash. A client that does not know it cannot locate keys.
    pub hash: &'a str,
}

/// Health of a node as seen by the one that answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum NodeState {
    /// It answers.
    Alive = 0,
    /// It is late with an answer.
    Suspect = 1,
    /// It is gone, or no longer the one with points on the ring.
    #[default]
    Dead = 2,
}

/// A node with points on the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopologyNode<'a> {
    /// Its id, which determines its points; empty for a standalone node.
    pub id: &'a str,
    /// Its health.
    pub state: NodeState,
    /// Its share of the points relative to others.
    pub weight: u16,
    /// The start of its process that has the points.
    pub boot: u64,
    /// Its cores; 0 until the node that answers has met it.
    pub core_count: u16,
    /// Seed of its key hash, which determines the core that owns a key.
    pub hash_seed: u64,
    /// Its client address; `None` for the address at which HELLO was asked.
    pub ip: Option<IpAddr>,
    /// The port that reaches any of its cores; 0 if unknown or absent.
    pub port: u16,
    /// The port that reaches its core 0; core i has this plus i.
    pub shard_ports: Option<u16>,
}

/// The answer to HELLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology<'a> {
    /// Version of the protocol.
    pub protocol_version: u16,
    /// Name and version of the server.
    pub server: &'a str,
    /// Name of the key hash. A client that does not know it cannot locate keys.
    pub hash: &'a str,
    /// Seed of the key hash.
    pub hash_seed: u64,
    /// Cores of the node, at least 1.
    pub core_count: u16,
    /// The core this connection is on.
    pub core: u16,
    /// The port that reaches any core; 0 if the node has only a unix socket.
    pub port: u16,
    /// The port that reaches core 0; core i has this plus i.
    pub shard_ports: Option<u16>,
    /// Item size limit in bytes, as memcached counts it.
    pub item_bytes_max: u32,
    /// Longest key in bytes.
    pub key_bytes_max: u16,
    /// How the ring is computed; `None` without a cluster.
    pub ring: Option<RingFacts<'a>>,
    /// Increases with every change of the roster, 0 without any.
    pub epoch: u64,
    /// Id of the node that answers; empty without a cluster.
    pub this_node: &'a str,
    /// The nodes with points on the ring, by id; at most [`NODES_MAX`] are sent.
    pub nodes: Vec<TopologyNode<'a>>,
}

impl Default for Topology<'_> {
    /// One core of unknown origin: a client's defaults for absent tags.
    fn default() -> Self {
        Self {
            protocol_version: PROTOCOL_VERSION,
            server: "",
            hash: HASH_NAME,
            hash_seed: 0,
            core_count: 1,
            core: 0,
            port: 0,
            shard_ports: None,
            item_bytes_max: 1 << 20,
            key_bytes_max: KEY_BYTES_MAX as u16,
            ring: None,
            epoch: 0,
            this_node: "",
            nodes: Vec::new(),
        }
    }
}

impl<'a> Topology<'a> {
    /// The core that owns `key`, or `None` if this build does not know the hash.
    pub fn core_of(&self, key: &[u8]) -> Option<u16> {
        let known = self.hash == HASH_NAME && self.core_count > 0;
        known.then(|| core_of(key, self.hash_seed, self.core_count.into()) as u16)
    }

    /// Encodes the list as HELLO's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut list = Vec::with_capacity(256 + self.nodes.len() * (4 + NODE_BYTES_MAX));
        let mut put = |tag: u16, content: &[u8]| {
            let content = &content[..content.len().min(u16::MAX.into())];
            list.extend_from_slice(&tag.to_le_bytes());
            list.extend_from_slice(&(content.len() as u16).to_le_bytes());
            list.extend_from_slice(content);
        };
        put(tag::PROTOCOL_VERSION, &self.protocol_version.to_le_bytes());
        put(tag::SERVER, self.server.as_bytes());
        put(tag::HASH, self.hash.as_bytes());
        put(tag::HASH_SEED, &self.hash_seed.to_le_bytes());
        put(tag::CORE_COUNT, &self.core_count.to_le_bytes());
        put(tag::CORE, &self.core.to_le_bytes());
        put(tag::PORT, &self.port.to_le_bytes());
        if let Some(base) = self.shard_ports {
            put(tag::SHARD_PORTS, &base.to_le_bytes());
        }
        put(tag::ITEM_BYTES_MAX, &self.item_bytes_max.to_le_bytes());
        put(tag::KEY_BYTES_MAX, &self.key_bytes_max.to_le_bytes());
        if let Some(ring) = &self.ring {
            let points = ring.points_per_weight.to_le_bytes();
            put(tag::RING, &[&points, &[ring.replicas][..], ring.hash.as_bytes()].concat());
        }
        if self.epoch > 0 {
            put(tag::EPOCH, &self.epoch.to_le_bytes());
        }
        if !self.this_node.is_empty() {
            put(tag::THIS_NODE, self.this_node.as_bytes());
        }
        let mut content = Vec::with_capacity(NODE_BYTES_MAX);
        for node in self.nodes.iter().take(NODES_MAX) {
            content.clear();
            node.write(&mut content);
            put(tag::NODE, &content);
        }
        list
    }

    /// Decodes HELLO's value; unknown tags are skipped, absent ones keep their default.
    pub fn from_bytes(mut list: &'a [u8]) -> Result<Self, FrameError> {
        let mut topology = Self::default();
        while !list.is_empty() {
            let (&[t0, t1, l0, l1], rest) =
                list.split_first_chunk().ok_or(FrameError::ValueLength)?;
            let length = u16::from_le_bytes([l0, l1]).into();
            let (content, rest) = rest.split_at_checked(length).ok_or(FrameError::ValueLength)?;
            list = rest;
            match u16::from_le_bytes([t0, t1]) {
                tag::PROTOCOL_VERSION => {
                    topology.protocol_version = u16::from_le_bytes(exactly(content)?);
                }
                tag::SERVER => topology.server = text(content)?,
                tag::HASH => topology.hash = text(content)?,
                tag::HASH_SEED => topology.hash_seed = u64::from_le_bytes(exactly(content)?),
                tag::CORE_COUNT => topology.core_count = u16::from_le_bytes(exactly(content)?),
                tag::CORE => topology.core = u16::from_le_bytes(exactly(content)?),
                tag::PORT => topology.port = u16::from_le_bytes(exactly(content)?),
                tag::SHARD_PORTS => {
                    topology.shard_ports = Some(u16::from_le_bytes(exactly(content)?));
                }
                tag::ITEM_BYTES_MAX => {
                    topology.item_bytes_max = u32::from_le_bytes(exactly(content)?);
                }
                tag::KEY_BYTES_MAX => {
                    topology.key_bytes_max = u16::from_le_bytes(exactly(content)?);
                }
                tag::RING => topology.ring = Some(RingFacts::read(content)?),
                tag::EPOCH => topology.epoch = u64::from_le_bytes(exactly(content)?),
                tag::THIS_NODE => topology.this_node = text(content)?,
                tag::NODE if topology.nodes.len() < NODES_MAX => {
                    topology.nodes.push(TopologyNode::read(content)?);
                }
                tag::NODE => return Err(FrameError::ValueLength),
                _ => {}
            }
        }
        Ok(topology)
    }
}

impl<'a> RingFacts<'a> {
    fn read(content: &'a [u8]) -> Result<Self, FrameError> {
        let (points, rest) = first(content)?;
        let ([replicas], rest) = first(rest)?;
        let points_per_weight = u32::from_le_bytes(points);
        Ok(Self { points_per_weight, replicas, hash: text(rest)? })
    }
}

impl<'a> TopologyNode<'a> {
    /// Appends the content of its tag.
    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.state as u8);
        out.extend_from_slice(&self.weight.to_le_bytes());
        out.extend_from_slice(&self.core_count.to_le_bytes());
        out.extend_from_slice(&self.boot.to_le_bytes());
        out.extend_from_slice(&self.hash_seed.to_le_bytes());
        out.extend_from_slice(&self.port.to_le_bytes());
        out.extend_from_slice(&self.shard_ports.unwrap_or(0).to_le_bytes());
        match self.ip {
            None => out.push(0),
            Some(IpAddr::V4(ip)) => {
                out.push(4);
                out.extend_from_slice(&ip.octets());
            }
            Some(IpAddr::V6(ip)) => {
                out.push(16);
                out.extend_from_slice(&ip.octets());
            }
        }
        let id = &self.id.as_bytes()[..self.id.len().min(NODE_ID_BYTES_MAX)];
        out.push(id.len() as u8);
        out.extend_from_slice(id);
    }

    /// Decodes the content of its tag. Content after the id is reserved for later versions.
    fn read(content: &'a [u8]) -> Result<Self, FrameError> {
        let ([state], rest) = first(content)?;
        let (weight, rest) = first(rest)?;
        let (core_count, rest) = first(rest)?;
        let (boot, rest) = first(rest)?;
        let (hash_seed, rest) = first(rest)?;
        let (port, rest) = first(rest)?;
        let (base, rest) = first(rest)?;
        let ([length], rest) = first(rest)?;
        let (ip, rest) = match length {
            0 => (None, rest),
            4 => first::<4>(rest).map(|(ip, rest)| (Some(IpAddr::from(ip)), rest))?,
            16 => first::<16>(rest).map(|(ip, rest)| (Some(IpAddr::from(ip)), rest))?,
            _ => return Err(FrameError::ValueLength),
        };
        let ([length], rest) = first(rest)?;
        let id = text(rest.get(..length.into()).ok_or(FrameError::ValueLength)?)?;
        let state = match state {
            0 => NodeState::Alive,
            1 => NodeState::Suspect,
            // A state of a later version: another node should be asked.
            _ => NodeState::Dead,
        };
        Ok(Self {
            id,
            state,
            weight: u16::from_le_bytes(weight),
            boot: u64::from_le_bytes(boot),
            core_count: u16::from_le_bytes(core_count),
            hash_seed: u64::from_le_bytes(hash_seed),
            ip,
            port: u16::from_le_bytes(port),
            shard_ports: Some(u16::from_le_bytes(base)).filter(|&base| base != 0),
        })
    }
}

fn first<const N: usize>(content: &[u8]) -> Result<([u8; N], &[u8]), FrameError> {
    let (first, rest) = content.split_first_chunk().ok_or(FrameError::ValueLength)?;
    Ok((*first, rest))
}

fn exactly<const N: usize>(content: &[u8]) -> Result<[u8; N], FrameError> {
    content.try_into().map_err(|_| FrameError::ValueLength)
}

fn text(content: &[u8]) -> Result<&str, FrameError> {
    std::str::from_utf8(content).map_err(|_| FrameError::ValueLength)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Topology<'static> {
        Topology {
            server: "ringlane 0.1.0",
            hash_seed: 0x0123_4567_89ab_cdef,
            core_count: 4,
            core: 2,
            port: 11211,
            shard_ports: Some(21000),
            ..Topology::default()
        }
    }

    fn clustered() -> Topology<'static> {
        let first = TopologyNode {
            id: "a",
            state: NodeState::Alive,
            weight: 2,
            boot: 7,
            core_count: 4,
            hash_seed: 0x0123_4567_89ab_cdef,
            ip: Some([127, 0, 0, 1].into()),
            port: 11211,
            shard_ports: Some(21000),
        };
        let far = Some(IpAddr::from([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]));
        let second = TopologyNode { id: "größe", ip: far, shard_ports: None, ..first };
        let unmet = TopologyNode { id: "z", boot: 9, ..TopologyNode::default() };
        Topology {
            ring: Some(RingFacts { points_per_weight: 150, replicas: 3, hash: "md5" }),
            epoch: 5,
            this_node: "a",
            nodes: vec![first, TopologyNode { state: NodeState::Suspect, ..second }, unmet],
            ..example()
        }
    }

    #[test]
    fn a_topology_survives_the_trip() {
        let plain = Topology { shard_ports: None, ..example() };
        for topology in [example(), plain, clustered()] {
            assert_eq!(Topology::from_bytes(&topology.to_bytes()), Ok(topology));
        }
    }

    #[test]
    fn a_client_that_knows_no_clusters_reads_what_it_always_read() {
        let (list, alone) = (clustered().to_bytes(), example().to_bytes());
        assert_eq!(list[..alone.len()], alone);
    }

    #[test]
    fn unknown_tags_are_skipped() {
        let mut bytes = vec![0xff, 0x7f, 3, 0, b'n', b'e', b'w'];
        bytes.extend_from_slice(&clustered().to_bytes());
        assert_eq!(Topology::from_bytes(&bytes), Ok(clustered()));
    }

    #[test]
    fn what_later_versions_say_of_a_node_is_skipped_and_an_unknown_state_is_dead() {
        let node = clustered().nodes[0];
        let mut content = Vec::new();
        node.write(&mut content);
        content.extend_from_slice(b"more");
        assert_eq!(TopologyNode::read(&content), Ok(node));
        content[0] = 9;
        assert_eq!(TopologyNode::read(&content).map(|node| node.state), Ok(NodeState::Dead));
    }

    #[test]
    fn the_longest_list_is_within_its_bound() {
        let id = "i".repeat(NODE_ID_BYTES_MAX);
        let node = TopologyNode { id: &id, ip: Some([0; 16].into()), ..TopologyNode::default() };
        let nodes = vec![node; NODES_MAX];
        let full = Topology { this_node: &id, nodes, ..clustered() };
        assert!(full.to_bytes().len() <= LIST_BYTES_MAX);
        let read = Topology::from_bytes(&full.to_bytes()).map(|topology| topology.nodes.len());
        assert_eq!(read, Ok(NODES_MAX));
        let mut more = full.to_bytes();
        more.extend_from_slice(&full.to_bytes());
        assert!(Topology::from_bytes(&more).is_err(), "more nodes than there may be");
    }

    #[test]
    fn a_list_cut_anywhere_within_a_tag_is_an_error() {
        let bytes = clustered().to_bytes();
        let mut ends = vec![0];
        while *ends.last().expect("not empty") < bytes.len() {
            let at = ends[ends.len() - 1];
            ends.push(at + 4 + bytes[at + 2] as usize);
        }
        for cut in 0..bytes.len() {
            let whole = Topology::from_bytes(&bytes[..cut]).is_ok();
            assert_eq!(whole, ends.contains(&cut), "cut at {cut}");
        }
    }

    #[test]
    fn a_client_finds_the_core_the_server_would_choose() {
        let topology = example();
        for key in [&b"a"[..], b"key", b"another"] {
            let core = core_of(key, topology.hash_seed, 4);
            assert_eq!(topology.core_of(key), Some(core as u16));
        }
        assert_eq!(Topology { hash: "md5", ..topology }.core_of(b"a"), None);
    }
}
