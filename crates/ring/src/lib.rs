//! The consistent hash ring: which nodes store a key.
//!
//! Every node owns points on a ring of 32 bits, 150 per unit of weight. A key has a position on the
//! same ring, and its owner is the node of the first point at or after it; the next distinct nodes
//! clockwise hold its further replicas. A joining node's points split the ranges of all others, so
//! about 1/N of the keys move to it and none between the others.
//!
//! The placement can be computed in any language (`docs/ring-vectors.txt` has test vectors):
//!
//! ```text
//! point i of a node   first 32 bits, big-endian, of MD5("{node id}:{i}"), i = 0 .. 150 * weight
//! point of a key      first 32 bits, big-endian, of MD5(key)
//! equal points        the node whose id is smaller in byte order comes first
//! xxh3 instead        upper 32 bits of XXH3-64 with seed 0, of the same bytes
//! ```
//!
//! A [`Ring`] is an immutable value with an epoch: a request keeps the ring it started with.
//!
//! ```text
//! point -> jump_table[its upper bits] -> rows: | point | node node | node pad | point | ...
//! ```
//!
//! Each row holds a point and the preference list that starts there, so a lookup reads one word of
//! the jump table and one or two adjacent rows. Refused: a binary search (eleven
//! dependent reads for 10 nodes) and lists computed per request (a walk of unbounded length).

#![deny(missing_docs, unreachable_pub)]

use std::fmt;
use std::ops::Deref;

use arrayvec::ArrayVec;
use md5::{Digest, Md5};
use xxhash_rust::xxh3::xxh3_64;

mod lanes;
#[cfg(test)]
mod tests;

/// Points of a node with weight 1.
pub const POINTS_PER_WEIGHT: u32 = 150;

/// Maximum number of replicas that a ring precomputes, and so the largest replication factor.
pub const REPLICAS_MAX: usize = 8;

/// Maximum nodes of one ring.
pub const NODES_MAX: usize = 1024;

/// Largest weight of a node.
pub const WEIGHT_MAX: u32 = 100;

/// Maximum points of one ring, all nodes together.
pub const POINTS_MAX: usize = 1 << 22;

/// Longest node id in bytes.
pub const NODE_ID_BYTES_MAX: usize = 64;

/// Minimum number of keys for which hashing side by side is faster than one by one.
const LANES_KEYS_MIN: usize = 3;

/// A position on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point(pub u32);

/// The hash function for ids and keys. All nodes of a cluster must use the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RingHash {
    /// MD5, as used by ketama and most clients.
    #[default]
    Md5,
    /// XXH3, several times faster for short keys.
    Xxh3,
}

impl RingHash {
    /// Their names on the command line.
    pub const NAMES: [(&str, RingHash); 2] = [("md5", RingHash::Md5), ("xxh3", RingHash::Xxh3)];

    /// The position of `bytes` on the ring.
    #[inline]
    pub fn point_of(self, bytes: &[u8]) -> Point {
        match self {
            RingHash::Md5 => {
                let digest = Md5::digest(bytes);
                Point(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
            }
            RingHash::Xxh3 => Point((xxh3_64(bytes) >> 32) as u32),
        }
    }

    /// The position of each of `keys`, in order. Eight at once take a third of the time of one by
    /// one.
    ///
    /// # Panics
    /// If there are more than N keys.
    pub fn points_of<const N: usize>(self, keys: &[&[u8]]) -> ArrayVec<Point, N> {
        let mut points = ArrayVec::new();
        for keys in keys.chunks(lanes::LANES) {
            if self == RingHash::Md5 && keys.len() >= LANES_KEYS_MIN {
                points.extend(lanes::points_of(keys).into_iter().take(keys.len()));
            } else {
                points.extend(keys.iter().map(|key| self.point_of(key)));
            }
        }
        points
    }

    /// Point `number` of the node called `id`.
    pub fn node_point(self, id: &str, number: u32) -> Point {
        self.point_of(format!("{id}:{number}").as_bytes())
    }
}

/// A node's position in its ring's list of nodes. Meaningless for another ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub u16);

/// A node as the ring sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingNode {
    /// The node's id, 1 to [`NODE_ID_BYTES_MAX`] bytes; its points depend on it alone.
    pub id: Box<str>,
    /// Its share relative to others, 1 to [`WEIGHT_MAX`].
    pub weight: u32,
}

/// The parameters that all nodes must share to compute the same ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingParameters {
    /// The hash function for ids and keys.
    pub hash: RingHash,
    /// Points of a node of weight 1, at least 1.
    pub points_per_weight: u32,
    /// Nodes that store each key, 1 to [`REPLICAS_MAX`]; fewer if the ring has fewer.
    pub replicas: u8,
}

impl Default for RingParameters {
    fn default() -> Self {
        Self { hash: RingHash::Md5, points_per_weight: POINTS_PER_WEIGHT, replicas: 1 }
    }
}

/// Why nodes and parameters do not form a valid ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingError {
    /// No node at all.
    Empty,
    /// More than [`NODES_MAX`] nodes or [`POINTS_MAX`] points.
    TooLarge,
    /// Two nodes of this id.
    Duplicate(Box<str>),
    /// An empty id or one above [`NODE_ID_BYTES_MAX`].
    Id(Box<str>),
    /// A weight of this node outside 1 to [`WEIGHT_MAX`].
    Weight(Box<str>),
    /// A replication factor outside 1 to [`REPLICAS_MAX`], or no points per unit of weight.
    Parameters,
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::Empty => write!(f, "a ring needs a node"),
            RingError::TooLarge => {
                write!(f, "a ring has at most {NODES_MAX} nodes and {POINTS_MAX} points")
            }
            RingError::Duplicate(id) => write!(f, "two nodes are called {id:?}"),
            RingError::Id(id) => {
                write!(f, "node id {id:?} is not of 1 to {NODE_ID_BYTES_MAX} bytes")
            }
            RingError::Weight(id) => write!(f, "the weight of {id:?} is not 1 to {WEIGHT_MAX}"),
            RingError::Parameters => {
                write!(f, "a ring keeps 1 to {REPLICAS_MAX} replicas and has points")
            }
        }
    }
}

impl std::error::Error for RingError {}

/// Nodes that store one key, in ring order, the owner first. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas {
    len: u8,
    nodes: [NodeIndex; REPLICAS_MAX],
}

impl Deref for Replicas {
    type Target = [NodeIndex];

    #[inline]
    fn deref(&self) -> &[NodeIndex] {
        &self.nodes[..self.len as usize]
    }
}

/// The ring with all its points: an immutable value, numbered by its epoch.
pub struct Ring {
    epoch: u64,
    parameters: RingParameters,
    /// Sorted by id, so that equal sets of nodes yield equal rings.
    nodes: Box<[RingNode]>,
    /// For each value of a point's upper bits, the first row at or after the smallest such point.
    jump_table: Box<[u32]>,
    /// Right shift that leaves a point's upper bits.
    shift: u32,
    /// Rows of `stride` words: the point, then its preference list, two nodes per word. The last
    /// row repeats the first one under the largest point, so that a lookup needs no wrap-around.
    rows: Box<[u32]>,
    stride: usize,
    /// Length of every preference list.
    list_len: u8,
}

impl Ring {
    /// The ring of `nodes`, in any order, under `parameters`.
    pub fn new(
        epoch: u64,
        parameters: RingParameters,
        nodes: impl IntoIterator<Item = RingNode>,
    ) -> Result<Self, RingError> {
        let mut nodes: Vec<RingNode> = nodes.into_iter().collect();
        nodes.sort_unstable();
        check(&parameters, &nodes)?;

        let mut points: Vec<(u32, NodeIndex)> = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            for number in 0..node.weight * parameters.points_per_weight {
                let point = parameters.hash.node_point(&node.id, number);
                points.push((point.0, NodeIndex(index as u16)));
            }
        }
        // Nodes are sorted by id, so the index breaks ties as documented.
        points.sort_unstable();

        let list_len = nodes.len().min(parameters.replicas as usize);
        let stride = 1 + list_len.div_ceil(2);
        let mut rows = Vec::with_capacity((points.len() + 1) * stride);
        for start in 0..points.len() {
            rows.push(points[start].0);
            let list = preference_list(&points, start, list_len);
            for pair in list.chunks(2) {
                let second = pair.get(1).map_or(0, |node| node.0 as u32);
                rows.push(pair[0].0 as u32 | second << 16);
            }
        }
        rows.push(u32::MAX);
        rows.extend_from_within(1..stride);

        let bits = points.len().next_power_of_two().ilog2().clamp(1, 16);
        let shift = 32 - bits;
        let jump_table = (0..1u64 << bits)
            .map(|upper| points.partition_point(|p| (p.0 as u64) < upper << shift) as u32)
            .collect();

        Ok(Self {
            epoch,
            parameters,
            nodes: nodes.into_boxed_slice(),
            jump_table,
            shift,
            rows: rows.into_boxed_slice(),
            stride,
            list_len: list_len as u8,
        })
    }

    /// The number of this ring; a later one of the same cluster has a greater number.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The parameters it was computed from.
    pub fn parameters(&self) -> RingParameters {
        self.parameters
    }

    /// The nodes, sorted by id; a [`NodeIndex`] is a position here.
    pub fn nodes(&self) -> &[RingNode] {
        &self.nodes
    }

    /// The position of the node called `id`.
    pub fn index_of(&self, id: &str) -> Option<NodeIndex> {
        let found = self.nodes.binary_search_by(|node| (*node.id).cmp(id)).ok()?;
        Some(NodeIndex(found as u16))
    }

    /// The position of `key`.
    #[inline]
    pub fn point_of(&self, key: &[u8]) -> Point {
        self.parameters.hash.point_of(key)
    }

    /// The first node of the preference list.
    #[inline]
    pub fn owner(&self, point: Point) -> NodeIndex {
        NodeIndex(self.rows[self.row(point) * self.stride + 1] as u16)
    }

    /// The preference list: as many distinct nodes as the replication factor says, or all.
    #[inline]
    pub fn replicas(&self, point: Point) -> Replicas {
        let start = self.row(point) * self.stride + 1;
        let mut nodes = [NodeIndex::default(); REPLICAS_MAX];
        for (pair, &word) in nodes.chunks_mut(2).zip(&self.rows[start..start + self.stride - 1]) {
            pair[0] = NodeIndex(word as u16);
            pair[1] = NodeIndex((word >> 16) as u16);
        }
        Replicas { len: self.list_len, nodes }
    }

    /// All nodes in ring order from `point` on: the preference list, then its stand-ins.
    pub fn walk(&self, point: Point) -> Walk<'_> {
        Walk { ring: self, row: self.row(point), left: self.nodes.len(), seen: [0; NODES_MAX / 64] }
    }

    /// Each node's share of the ring as owner, in units of 2^-32. The shares add up to 2^32.
    pub fn shares(&self) -> Vec<u64> {
        let mut shares = vec![0; self.nodes.len()];
        let points = self.point_count();
        let mut from = self.rows[(points - 1) * self.stride] as i64 - (1 << 32);
        for row in self.rows[..points * self.stride].chunks_exact(self.stride) {
            shares[row[1] as u16 as usize] += (row[0] as i64 - from) as u64;
            from = row[0] as i64;
        }
        shares
    }

    /// Number of points on the ring.
    pub fn point_count(&self) -> usize {
        self.rows.len() / self.stride - 1
    }

    /// Point `row` in ring order, with its node; for views and comparisons, not for lookups.
    pub fn point(&self, row: usize) -> (Point, NodeIndex) {
        assert!(row < self.point_count(), "point {row} of {}", self.point_count());
        let words = &self.rows[row * self.stride..];
        (Point(words[0]), NodeIndex(words[1] as u16))
    }

    /// The row of the first point at or after `point`; the sentinel row when there is none.
    #[inline]
    fn row(&self, point: Point) -> usize {
        let mut row = self.jump_table[(point.0 >> self.shift) as usize] as usize;
        // Ends at the sentinel at the latest: no point exceeds it.
        while self.rows[row * self.stride] < point.0 {
            row += 1;
        }
        row
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("epoch", &self.epoch)
            .field("parameters", &self.parameters)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

/// Iterator over distinct nodes clockwise, see [`Ring::walk`].
#[derive(Clone)]
pub struct Walk<'r> {
    ring: &'r Ring,
    row: usize,
    left: usize,
    seen: [u64; NODES_MAX / 64],
}

impl Iterator for Walk<'_> {
    type Item = NodeIndex;

    fn next(&mut self) -> Option<NodeIndex> {
        while self.left > 0 {
            // The sentinel is the first row again.
            let node = NodeIndex(self.ring.rows[self.row * self.ring.stride + 1] as u16);
            self.row = if self.row >= self.ring.point_count() { 1 } else { self.row + 1 };
            let (word, bit) = (node.0 as usize / 64, 1u64 << (node.0 % 64));
            if self.seen[word] & bit == 0 {
                self.seen[word] |= bit;
                self.left -= 1;
                return Some(node);
            }
        }
        None
    }
}

fn check(parameters: &RingParameters, sorted: &[RingNode]) -> Result<(), RingError> {
    if parameters.points_per_weight == 0
        || !(1..=REPLICAS_MAX).contains(&(parameters.replicas as usize))
    {
        return Err(RingError::Parameters);
    }
    if sorted.is_empty() {
        return Err(RingError::Empty);
    }
    for node in sorted {
        if node.id.is_empty() || node.id.len() > NODE_ID_BYTES_MAX {
            return Err(RingError::Id(node.id.clone()));
        }
        if !(1..=WEIGHT_MAX).contains(&node.weight) {
            return Err(RingError::Weight(node.id.clone()));
        }
    }
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(RingError::Duplicate(pair[0].id.clone()));
    }
    let weights: u64 = sorted.iter().map(|node| node.weight as u64).sum();
    let points = weights.saturating_mul(parameters.points_per_weight as u64);
    if sorted.len() > NODES_MAX || points > POINTS_MAX as u64 {
        return Err(RingError::TooLarge);
    }
    Ok(())
}

/// The first `len` distinct nodes from point `start` on.
fn preference_list(points: &[(u32, NodeIndex)], start: usize, len: usize) -> Vec<NodeIndex> {
    let mut list = Vec::with_capacity(len);
    let clockwise = points[start..].iter().chain(&points[..start]);
    for &(_, node) in clockwise {
        if list.len() == len {
            break;
        }
        if !list.contains(&node) {
            list.push(node);
        }
    }
    list
}
