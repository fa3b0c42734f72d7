//! The answer to HELLO: who the server is, and all a client needs to find the core of a key.
//!
//! The value is a list of `tag u16 | length u16 | content`. A reader skips tags it does not know,
//! and a tag may be absent or come again, so the ring and its nodes can join later. It is read once
//! per connection, which is why this one place may be general.

use super::FrameError;
use super::opcode::PROTOCOL_VERSION;
use crate::hash::KeyHash;
use crate::request::KEY_BYTES_MAX;

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
}

/// All tags with their names, contents and meanings, for the document and its test.
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
];

/// What HELLO answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology<'a> {
    /// Version of the protocol.
    pub protocol_version: u16,
    /// Name and version of the server.
    pub server: &'a str,
    /// Name of the key hash. A client that does not know it cannot place keys.
    pub hash: &'a str,
    /// Seed of the key hash.
    pub hash_seed: u64,
    /// Cores of the node, at least 1.
    pub core_count: u16,
    /// The core this connection is on.
    pub core: u16,
    /// The port that reaches any core; 0 when the node is only reached by a unix socket.
    pub port: u16,
    /// The port that reaches core 0; core i has this plus i.
    pub shard_ports: Option<u16>,
    /// Item size limit in bytes, as memcached counts it.
    pub item_bytes_max: u32,
    /// Longest key in bytes.
    pub key_bytes_max: u16,
}

impl Default for Topology<'_> {
    /// One core of unknown origin: what a client assumes of tags that are absent.
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
        }
    }
}

impl<'a> Topology<'a> {
    /// The core that owns `key`, or `None` when the hash is not one this build knows.
    pub fn core_of(&self, key: &[u8]) -> Option<u16> {
        let known = self.hash == HASH_NAME && self.core_count > 0;
        known.then(|| KeyHash::of(key, self.hash_seed).core(self.core_count.into()) as u16)
    }

    /// The list as HELLO's value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut list = Vec::with_capacity(128);
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
        list
    }

    /// Reads HELLO's value; unknown tags are skipped, absent ones keep their default.
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
                _ => {}
            }
        }
        Ok(topology)
    }
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

    #[test]
    fn a_topology_survives_the_trip() {
        let bytes = example().to_bytes();
        assert_eq!(Topology::from_bytes(&bytes), Ok(example()));
        let plain = Topology { shard_ports: None, ..example() };
        assert_eq!(Topology::from_bytes(&plain.to_bytes()), Ok(plain));
    }

    #[test]
    fn unknown_tags_are_skipped() {
        let mut bytes = vec![0xff, 0x7f, 3, 0, b'n', b'e', b'w'];
        bytes.extend_from_slice(&example().to_bytes());
        assert_eq!(Topology::from_bytes(&bytes), Ok(example()));
    }

    #[test]
    fn a_list_cut_anywhere_within_a_tag_is_an_error() {
        let bytes = example().to_bytes();
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
            let core = KeyHash::of(key, topology.hash_seed).core(4);
            assert_eq!(topology.core_of(key), Some(core as u16));
        }
        assert_eq!(Topology { hash: "md5", ..topology }.core_of(b"a"), None);
    }
}
