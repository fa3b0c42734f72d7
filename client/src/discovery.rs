//! Discovers from the nodes which of them serves which key, and follows changes.
//!
//! One address is enough: the node there lists all nodes with their cores in its answer to HELLO.
//! While load runs, a thread repeats HELLO: every second in a cluster, and soon after a lost
//! connection. The result becomes new [`Routes`], which the load threads adopt between two turns.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use ringlane_protocol::compact::{NodeState, RingFacts, Topology, TopologyNode};
use ringlane_ring::{RingHash, RingParameters};
use socket2::SockAddr;

use crate::address::Address;
use crate::hello::hello;
use crate::routes::{LaidNode, Layout, Routes};

/// Time limit for an answer to HELLO, at first and later.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_LATER: Duration = Duration::from_millis(500);
/// Interval between queries of a cluster.
const PERIOD: Duration = Duration::from_secs(1);
/// Delay after a lost connection, since others are usually lost at the same time.
const AFTER_LOSS: Duration = Duration::from_millis(100);

/// The routes of a run and their source.
#[derive(Debug)]
pub struct Directory {
    current: Mutex<Arc<Routes>>,
    /// Number of changes of the routes.
    version: AtomicU64,
    source: Option<Source>,
    signal: Mutex<Signal>,
    changed: Condvar,
}

/// Which node to query, and the limits to apply.
#[derive(Clone, Debug)]
struct Source {
    asked: Address,
    shard_ports: bool,
    endpoints_max: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Signal {
    lost: bool,
    over: bool,
}

/// A node's description, as needed for routes.
struct NodeFacts {
    epoch: u64,
    layout: Layout,
}

impl Directory {
    /// Routes that do not change.
    pub fn fixed(routes: Routes) -> Self {
        Self {
            current: Mutex::new(Arc::new(routes)),
            version: AtomicU64::new(0),
            source: None,
            signal: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The routes described by the node at `asked`, over at most `endpoints_max` endpoints; to
    /// shard ports where available, if `shard_ports`.
    pub fn discover(
        asked: &Address,
        shard_ports: bool,
        endpoints_max: usize,
    ) -> Result<Self, String> {
        let source = Source { asked: asked.clone(), shard_ports, endpoints_max };
        let told = source.ask(asked, PATIENCE)?;
        let routes = Routes::new(told.layout)?;
        let version = AtomicU64::new(0);
        Ok(Self { source: Some(source), version, ..Self::fixed(routes) })
    }

    /// The current routes.
    pub fn current(&self) -> Arc<Routes> {
        self.current.lock().expect("no thread panics with it").clone()
    }

    /// A number that changes with the routes.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// A description of the routes, if there is more than one endpoint.
    pub fn sentence(&self) -> Option<String> {
        let routes = self.current();
        let (nodes, endpoints) = (&routes.layout().nodes, routes.endpoints().len());
        let asked = nodes.iter().filter(|node| !node.endpoints.is_empty()).count();
        match (nodes.len(), endpoints) {
            (1, 1) => None,
            (1, cores) => Some(format!("each key goes to its core, on {cores} ports")),
            (all, _) => Some(format!(
                "each key goes to its owner: {asked} of {all} nodes, {endpoints} ports"
            )),
        }
    }

    /// Reports a lost connection: the node may be gone.
    pub fn note_lost(&self) {
        if self.source.is_some() {
            self.signal().lost = true;
            self.changed.notify_all();
        }
    }

    /// Ends [`Directory::watch`].
    pub fn end_watch(&self) {
        self.signal().over = true;
        self.changed.notify_all();
    }

    /// Keeps the routes up to date until [`Directory::end_watch`].
    pub fn watch(&self) {
        let Some(source) = &self.source else { return };
        let (mut epoch, mut answered) = (0, true);
        loop {
            let alone = self.current().layout().nodes.len() == 1;
            // A standalone node does not change while its connections last.
            let period = if alone && answered { Duration::MAX } else { PERIOD };
            let mut signal = self.signal();
            if !signal.lost && !signal.over {
                signal = match period {
                    Duration::MAX => self.changed.wait(signal).expect("no thread panics with it"),
                    _ => self.changed.wait_timeout(signal, period).expect("as above").0,
                };
            }
            if std::mem::take(&mut signal.lost) && !signal.over {
                let waited = self.changed.wait_timeout(signal, AFTER_LOSS);
                signal = waited.expect("no thread panics with it").0;
            }
            if std::mem::take(&mut signal.over) {
                return;
            }
            drop(signal);
            let told = self.ask_any(source, epoch);
            answered = told.is_some();
            if let Some(told) = told {
                epoch = told.epoch;
                self.take(told.layout);
            }
        }
    }

    /// The description by any node, not older than `epoch` if possible.
    fn ask_any(&self, source: &Source, epoch: u64) -> Option<NodeFacts> {
        let routes = self.current();
        let others = routes.layout().nodes.iter().filter_map(|node| node.endpoints.first());
        let mut older = None;
        for address in std::iter::once(&source.asked).chain(others) {
            match source.ask(address, PATIENCE_LATER) {
                Ok(told) if told.epoch >= epoch => return Some(told),
                Ok(told) => older = older.or(Some(told)),
                Err(_) => {}
            }
        }
        older
    }

    fn take(&self, layout: Layout) {
        let mut current = self.current.lock().expect("no thread panics with it");
        if *current.layout() == layout {
            return;
        }
        // A layout without a valid ring counts as no answer.
        if let Ok(routes) = Routes::new(layout) {
            *current = Arc::new(routes);
            self.version.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn signal(&self) -> MutexGuard<'_, Signal> {
        self.signal.lock().expect("no thread panics with it")
    }
}

impl Source {
    fn ask(&self, address: &Address, patience: Duration) -> Result<NodeFacts, String> {
        let answer = hello(address, patience)?;
        let topology = read(address, &answer)?;
        self.lay_out(address, &topology).map_err(|words| format!("{address}: {words}"))
    }

    /// The layout described by a node at `asked`.
    fn lay_out(&self, asked: &Address, topology: &Topology<'_>) -> Result<NodeFacts, String> {
        let nodes = match &topology.nodes[..] {
            // A node that has not joined yet, or one that describes only itself.
            [] => vec![self.lay_node(asked, topology, &itself(topology))],
            nodes => nodes.iter().map(|node| self.lay_node(asked, topology, node)).collect(),
        };
        let mut layout = Layout { parameters: RingParameters::default(), nodes };
        if let (Some(ring), true) = (topology.ring, layout.nodes.len() > 1) {
            layout.parameters = parameters(ring)?;
        }
        layout.nodes.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(NodeFacts { epoch: topology.epoch, layout: layout.within(self.endpoints_max) })
    }

    fn lay_node(
        &self,
        asked: &Address,
        topology: &Topology<'_>,
        node: &TopologyNode<'_>,
    ) -> LaidNode {
        let is_asked = node.id == topology.this_node;
        let asked_at = asked.socket().as_socket();
        let ip = if is_asked { asked_at.map(|at| at.ip()) } else { node.ip };
        let ip = ip.or(asked_at.map(|at| at.ip()));
        let at = |port: u16| Address::from(SockAddr::from(SocketAddr::new(ip?, port))).into();
        // A hash unknown to this build cannot place keys.
        let knows_cores = topology.core_of(b"").is_some() && node.core_count > 0;
        let base = node.shard_ports.filter(|_| self.shard_ports && knows_cores);
        let cores = base.map(|base| (0..node.core_count).map_while(move |i| base.checked_add(i)));
        let ports: Option<Vec<Address>> = cores.and_then(|ports| ports.map(at).collect());
        let endpoints = match ports {
            _ if node.state == NodeState::Dead && !is_asked => Vec::new(),
            Some(ports) => ports,
            None if is_asked => vec![asked.clone()],
            None if node.port == 0 => Vec::new(),
            None => at(node.port).into_iter().collect(),
        };
        let (id, weight) = (node.id.to_owned(), u32::from(node.weight));
        // Irrelevant facts must not make two layouts differ.
        let hash_seed = if endpoints.len() > 1 { node.hash_seed } else { 0 };
        LaidNode { id, weight, endpoints, hash_seed }
    }
}

/// Uses the shard ports, if any, of a node described by another one.
pub fn find_cores(node: &mut LaidNode) -> Result<(), String> {
    let Some(asked) = node.endpoints.first().cloned() else { return Ok(()) };
    let source = Source { asked, shard_ports: true, endpoints_max: usize::MAX };
    let answer = hello(&source.asked, PATIENCE)?;
    let topology = read(&source.asked, &answer)?;
    let told = source.lay_node(&source.asked, &topology, &itself(&topology));
    (node.endpoints, node.hash_seed) = (told.endpoints, told.hash_seed);
    Ok(())
}

fn read<'b>(address: &Address, answer: &'b [u8]) -> Result<Topology<'b>, String> {
    Topology::from_bytes(answer)
        .map_err(|error| format!("{address} sent an invalid description: {error:?}"))
}

/// A node that lists none, as the only one.
fn itself<'a>(topology: &Topology<'a>) -> TopologyNode<'a> {
    TopologyNode {
        id: topology.this_node,
        state: NodeState::Alive,
        weight: 1,
        core_count: topology.core_count,
        hash_seed: topology.hash_seed,
        port: topology.port,
        shard_ports: topology.shard_ports,
        ..TopologyNode::default()
    }
}

fn parameters(ring: RingFacts<'_>) -> Result<RingParameters, String> {
    let known = RingHash::NAMES.iter().find(|(name, _)| *name == ring.hash);
    let (_, hash) = known
        .ok_or_else(|| format!("its ring uses the hash {:?}, unknown to this build", ring.hash))?;
    let (points_per_weight, replicas) = (ring.points_per_weight, ring.replicas);
    Ok(RingParameters { hash: *hash, points_per_weight, replicas })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(asked: &str, shard_ports: bool) -> Source {
        Source { asked: asked.parse().unwrap(), shard_ports, endpoints_max: 100 }
    }

    fn node(id: &str, last: u8) -> TopologyNode<'_> {
        TopologyNode {
            id,
            state: NodeState::Alive,
            weight: 1,
            boot: 1,
            core_count: 2,
            hash_seed: 5,
            ip: Some([10, 0, 0, last].into()),
            port: 11211,
            shard_ports: Some(21000),
        }
    }

    fn cluster<'a>(nodes: Vec<TopologyNode<'a>>, this_node: &'a str) -> Topology<'a> {
        let ring = Some(RingFacts { points_per_weight: 9, replicas: 2, hash: "xxh3" });
        Topology { ring, epoch: 3, this_node, nodes, ..Topology::default() }
    }

    fn endpoints(source: &Source, topology: &Topology<'_>) -> Vec<Vec<String>> {
        let told = source.lay_out(&source.asked, topology).unwrap();
        let names = |node: &LaidNode| node.endpoints.iter().map(ToString::to_string).collect();
        told.layout.nodes.iter().map(names).collect()
    }

    #[test]
    fn every_node_is_asked_where_it_says_and_the_one_asked_where_it_was_asked() {
        let topology = cluster(vec![node("a", 1), node("b", 2)], "b");
        let plain = source("127.0.0.1:5", false);
        assert_eq!(endpoints(&plain, &topology), [["10.0.0.1:11211"], ["127.0.0.1:5"]]);
        let told = plain.lay_out(&plain.asked, &topology).unwrap();
        assert_eq!((told.epoch, told.layout.parameters.points_per_weight), (3, 9));
        let cores = source("127.0.0.1:5", true);
        assert_eq!(
            endpoints(&cores, &topology),
            [["10.0.0.1:21000", "10.0.0.1:21001"], ["127.0.0.1:21000", "127.0.0.1:21001"],]
        );
    }

    #[test]
    fn nodes_that_are_dead_or_unmet_are_not_asked() {
        let dead = TopologyNode { state: NodeState::Dead, ..node("a", 1) };
        let unmet = TopologyNode { id: "c", weight: 1, ..TopologyNode::default() };
        let unmet = TopologyNode { state: NodeState::Alive, ..unmet };
        let topology = cluster(vec![dead, node("b", 2), unmet], "b");
        let found = endpoints(&source("127.0.0.1:5", false), &topology);
        assert_eq!(found, [vec![], vec!["127.0.0.1:5".to_owned()], vec![]]);
    }

    #[test]
    fn a_node_of_its_own_is_asked_at_its_address_or_its_cores() {
        let alone = Topology { core_count: 2, shard_ports: Some(300), ..Topology::default() };
        for topology in [
            Topology { nodes: vec![TopologyNode { ip: None, ..node("", 1) }], ..alone.clone() },
            alone,
        ] {
            let base = topology.nodes.first().map_or(300, |_| 21000);
            assert_eq!(endpoints(&source("/tmp/s", false), &topology), [["/tmp/s"]]);
            // There is no telling the address of a core from a path.
            assert_eq!(endpoints(&source("/tmp/s", true), &topology), [["/tmp/s"]]);
            let cores = endpoints(&source("127.0.0.1:5", true), &topology);
            assert_eq!(cores, [[format!("127.0.0.1:{base}"), format!("127.0.0.1:{}", base + 1)]]);
        }
    }

    #[test]
    fn an_unknown_ring_is_refused_and_cores_of_an_unknown_hash_are_not_chosen() {
        let mut topology = cluster(vec![node("a", 1), node("b", 2)], "b");
        topology.hash = "md5";
        assert_eq!(endpoints(&source("127.0.0.1:5", true), &topology)[0], ["10.0.0.1:11211"]);
        topology.ring = topology.ring.map(|ring| RingFacts { hash: "crc32", ..ring });
        let source = source("127.0.0.1:5", true);
        let error = source.lay_out(&source.asked, &topology).err().unwrap();
        assert!(error.contains("crc32"), "{error}");
    }
}
