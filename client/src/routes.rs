//! Maps a key to its endpoint: the only server, a node of a ring, or a core's own port.
//!
//! A client that knows the ring saves the hop between nodes, and one that knows the shard ports
//! saves the hop between cores. Each connection then talks to one endpoint only and sends it only
//! its own keys. What the nodes (see `discovery`) or the command line describe is first stored as a
//! [`Layout`], which can be compared with the previous one; the ring is built only from a new one.

use ringlane_ring::{Ring, RingNode, RingParameters};
use ringlane_types::hash::core_of;

use crate::address::{Address, NodeAddress};

/// The nodes and how they share the keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// How the ring is computed.
    pub parameters: RingParameters,
    /// The nodes, by id.
    pub nodes: Vec<LaidNode>,
}

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub struct LaidNode {
    /// Its id, which determines its points on the ring.
    pub id: String,
    /// Its share of the keys relative to other nodes.
    pub weight: u32,
    /// Its endpoints: none, one address, or one per core.
    pub endpoints: Vec<Address>,
    /// Determines the core that owns a key.
    pub hash_seed: u64,
}

/// All endpoints, and the mapping of keys to them.
#[derive(Debug)]
pub struct Routes {
    layout: Layout,
    endpoints: Vec<Address>,
    nodes: Vec<Node>,
    /// Maps keys to nodes; `None` with one node.
    ring: Option<Ring>,
    /// Serves the keys of unreachable nodes.
    fallback: usize,
}

/// One node's endpoints: none, one, or one per core.
#[derive(Clone, Copy, Debug)]
struct Node {
    first_endpoint: usize,
    cores: u32,
    hash_seed: u64,
}

impl LaidNode {
    /// A node with one address.
    pub fn at(id: &str, weight: u32, address: Address) -> Self {
        Self { id: id.into(), weight, endpoints: vec![address], hash_seed: 0 }
    }
}

impl Layout {
    /// One server at one address.
    pub fn one(address: Address) -> Self {
        let nodes = vec![LaidNode::at("", 1, address)];
        Self { parameters: RingParameters::default(), nodes }
    }

    /// Nodes listed on the command line.
    pub fn named(nodes: &[NodeAddress], parameters: RingParameters) -> Self {
        let laid = |node: &NodeAddress| LaidNode::at(&node.id, node.weight, node.address.clone());
        let mut nodes: Vec<LaidNode> = nodes.iter().map(laid).collect();
        // The ring numbers nodes by their ids in order.
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        Self { parameters, nodes }
    }

    /// Reduces the layout to at most `max` endpoints, at least one: first each node to one address,
    /// then the last nodes to none.
    pub fn within(mut self, max: usize) -> Self {
        let count = |nodes: &[LaidNode]| nodes.iter().map(|node| node.endpoints.len()).sum();
        for keep in [1, 0] {
            let mut more: usize = count(&self.nodes);
            for node in self.nodes.iter_mut().rev() {
                if more <= max.max(1) {
                    return self;
                }
                more -= node.endpoints.len().saturating_sub(keep);
                node.endpoints.truncate(keep);
            }
        }
        self
    }
}

impl Routes {
    /// The routes of a layout with at least one endpoint.
    pub fn new(layout: Layout) -> Result<Self, String> {
        let (mut endpoints, mut nodes) = (Vec::new(), Vec::new());
        for LaidNode { endpoints: own, hash_seed, .. } in &layout.nodes {
            let (first_endpoint, cores) = (endpoints.len(), own.len() as u32);
            nodes.push(Node { first_endpoint, cores, hash_seed: *hash_seed });
            endpoints.extend(own.iter().cloned());
        }
        let fallback = nodes.iter().position(|node| node.cores > 0);
        let fallback = fallback.ok_or("no node can be reached")?;
        let mut ring = None;
        if nodes.len() > 1 {
            let members = layout
                .nodes
                .iter()
                .map(|node| RingNode { id: node.id.as_str().into(), weight: node.weight });
            let built = Ring::new(0, layout.parameters, members);
            ring = Some(built.map_err(|error| format!("no ring: {error}"))?);
        }
        Ok(Self { layout, endpoints, nodes, ring, fallback })
    }

    /// The layout they were built from.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All endpoints; at least one.
    pub fn endpoints(&self) -> &[Address] {
        &self.endpoints
    }

    /// Whether there is only one endpoint.
    #[inline]
    pub fn is_single(&self) -> bool {
        self.endpoints.len() == 1
    }

    /// The number of the endpoint that serves `key`.
    #[inline]
    pub fn endpoint(&self, key: &[u8]) -> usize {
        let mut node = match &self.ring {
            Some(ring) => self.nodes[usize::from(ring.owner(ring.point_of(key)).0)],
            None => self.nodes[0],
        };
        if node.cores == 0 {
            node = self.instead(key);
        }
        match node.cores {
            1 => node.first_endpoint,
            cores => node.first_endpoint + core_of(key, node.hash_seed, cores) as usize,
        }
    }

    /// The endpoint for a key whose owner is unreachable: another of its replicas, if there is one.
    #[cold]
    fn instead(&self, key: &[u8]) -> Node {
        let ring = self.ring.iter();
        let mut replicas = ring.flat_map(|ring| ring.replicas(ring.point_of(key)).to_vec());
        let asked = replicas.find(|node| self.nodes[usize::from(node.0)].cores > 0);
        self.nodes[asked.map_or(self.fallback, |node| usize::from(node.0))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Address {
        format!("127.0.0.1:{port}").parse().unwrap()
    }

    fn three(replicas: u8) -> Layout {
        let parameters = RingParameters { replicas, ..RingParameters::default() };
        let nodes = [("a", 1), ("b", 2), ("c", 3)];
        let laid = |(id, port)| LaidNode::at(id, 1, address(port));
        Layout { parameters, nodes: nodes.into_iter().map(laid).collect() }
    }

    #[test]
    fn one_server_takes_every_key() {
        let routes = Routes::new(Layout::one(address(1))).unwrap();
        assert!(routes.is_single());
        assert_eq!(routes.endpoint(b"any"), 0);
    }

    #[test]
    fn keys_spread_over_the_nodes_of_a_ring_whatever_their_order() {
        let named =
            |id: &str, weight, port| NodeAddress { id: id.into(), weight, address: address(port) };
        let (a, b, c) = (named("a", 1, 1), named("b", 1, 2), named("c", 2, 3));
        let routes = |nodes: &[NodeAddress]| {
            Routes::new(Layout::named(nodes, RingParameters::default())).unwrap()
        };
        let one = routes(&[a.clone(), b.clone(), c.clone()]);
        let other = routes(&[c, a, b]);
        let mut seen = [0; 3];
        for number in 0..4000 {
            let key = format!("key:{number}");
            let endpoint = one.endpoint(key.as_bytes());
            let same = other.endpoint(key.as_bytes());
            assert_eq!(one.endpoints()[endpoint], other.endpoints()[same]);
            seen[endpoint] += 1;
        }
        // The third has twice the weight.
        assert!(seen[..2].iter().all(|&count| (700..1300).contains(&count)), "{seen:?}");
        assert!((1600..2400).contains(&seen[2]), "{seen:?}");
    }

    #[test]
    fn cores_of_a_node_are_endpoints_of_their_own() {
        let endpoints = (0..4).map(|core| address(100 + core)).collect();
        let node = LaidNode { id: "".into(), weight: 1, endpoints, hash_seed: 7 };
        let layout = Layout { nodes: vec![node], ..Layout::one(address(1)) };
        let routes = Routes::new(layout).unwrap();
        for key in [&b"a"[..], b"b", b"c", b"d"] {
            assert_eq!(routes.endpoint(key), core_of(key, 7, 4) as usize);
        }
    }

    #[test]
    fn keys_of_a_node_that_cannot_be_asked_go_to_another_replica_and_no_others_move() {
        let whole = Routes::new(three(2)).unwrap();
        let mut layout = three(2);
        layout.nodes[1].endpoints.clear();
        let without = Routes::new(layout).unwrap();
        let ring = whole.ring.as_ref().unwrap();
        let mut moved = 0;
        for number in 0..2000 {
            let key = format!("key:{number}");
            let (before, after) =
                (whole.endpoint(key.as_bytes()), without.endpoint(key.as_bytes()));
            let (before, after) = (&whole.endpoints()[before], &without.endpoints()[after]);
            if *before == address(2) {
                let second = ring.replicas(ring.point_of(key.as_bytes()))[1];
                assert_eq!(*after, three(2).nodes[usize::from(second.0)].endpoints[0]);
                moved += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert!(moved > 300, "{moved}");
        let mut layout = three(1);
        layout.nodes.iter_mut().for_each(|node| node.endpoints.clear());
        assert!(Routes::new(layout).is_err());
    }

    #[test]
    fn few_connections_mean_fewer_endpoints() {
        let mut layout = three(1);
        layout.nodes[0].endpoints.extend([address(11), address(12)]);
        layout.nodes[2].endpoints.push(address(31));
        let counts = |layout: Layout| {
            layout.nodes.iter().map(|node| node.endpoints.len()).collect::<Vec<_>>()
        };
        assert_eq!(counts(layout.clone().within(6)), [3, 1, 2]);
        assert_eq!(counts(layout.clone().within(5)), [3, 1, 1]);
        assert_eq!(counts(layout.clone().within(3)), [1, 1, 1]);
        assert_eq!(counts(layout.clone().within(2)), [1, 1, 0]);
        assert_eq!(counts(layout.within(0)), [1, 0, 0]);
    }
}
