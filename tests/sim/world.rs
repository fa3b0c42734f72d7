//! The world: nodes, network and clients on one clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use ringlane::cluster::coordinator::{ClientRef, CoordinatorSettings};
use ringlane::cluster::governor::{GovernorEvent, GovernorSettings};
use ringlane::cluster::identity::{Boot, NodeKey};
use ringlane::cluster::link::{LinkEvent, NODE_CORE, Peer};
use ringlane::cluster::membership::{MembershipSettings, Terms};
use ringlane::cluster::message::{Message, Messages};
use ringlane::codec;
use ringlane::hash::{HashSecret, KeyHash};
use ringlane::request::{Allowance, Consistency, Request};
use ringlane::ring::{RingHash, RingParameters};
use ringlane::time::Instant;

use crate::agenda::{Due, Happening};
use crate::network::Network;
use crate::node::{Answer, Node, Parts, Wants};
use crate::options::{Figures, Options};
use crate::workload::Workload;

mod faults;
mod state;

const START: Instant = Instant::from_millis(1_700_000_000_000);
/// Faults and clients end after this.
const SAFETY: Duration = Duration::from_secs(60);
/// By then everything must be equal everywhere.
const LIVENESS: Duration = Duration::from_secs(90);
/// A client gives up waiting after this.
const PATIENCE: Duration = Duration::from_secs(15);

pub struct World {
    now: Instant,
    options: Options,
    random: Xoshiro256PlusPlus,
    network: Network,
    nodes: Vec<Node>,
    /// For each node, the nodes it has links with, and in which life of theirs.
    links: Vec<HashSet<(NodeKey, Boot)>>,
    wake_at: Vec<Option<Instant>>,
    queue: BinaryHeap<Reverse<Due>>,
    number: u64,
    workload: Workload,
    requests: u32,
    /// Request number of each client's question.
    asked: Vec<(u32, usize)>,
    fault_at: Instant,
    figures: Figures,
    broken: Option<String>,
}

impl World {
    pub fn run(seed: u64, options: Options) -> Result<Figures, String> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut stream = || Xoshiro256PlusPlus::seed_from_u64(random.random());
        let mut network = Network::new(stream());
        let workload = Workload::new(stream(), START);
        let mut random = stream();
        if options.faults {
            network.lost_per_mille = [0, 0, 5, 50][random.random_range(0..4)];
            network.duplicated_per_mille = [0, 10, 50][random.random_range(0..3)];
            network.delay_max = random.random_range(1..30);
        }
        let mut world = Self {
            now: START,
            fault_at: START.after(Duration::from_secs(13)),
            asked: vec![(0, 0); workload.clients.len()],
            options,
            random,
            network,
            nodes: Vec::new(),
            links: Vec::new(),
            wake_at: Vec::new(),
            queue: BinaryHeap::new(),
            number: 0,
            workload,
            requests: 0,
            figures: Figures::default(),
            broken: None,
        };
        world.trace(|| format!("{:?}", world.options));
        world.play()?;
        Ok(world.figures)
    }

    fn play(&mut self) -> Result<(), String> {
        for _ in 0..self.options.nodes {
            self.start_node(self.nodes.len());
        }
        let end = START.after(SAFETY);
        while self.now < end {
            self.step(end)?;
        }
        self.workload.active = false;
        self.network.calm();
        self.fault_at = Instant::from_millis(u64::MAX);
        for node in 0..self.nodes.len() {
            self.nodes[node].stopped_until = self.now;
            if !self.nodes[node].running && !self.nodes[node].leaving {
                self.start_node(node);
            }
        }
        let limit = self.now.after(LIVENESS);
        let mut why = String::new();
        while self.now < limit {
            let until = self.now.after(Duration::from_secs(2));
            while self.now < until {
                self.step(until)?;
            }
            match self.differences() {
                None => {
                    self.gather();
                    return Ok(());
                }
                Some(difference) => why = difference,
            }
        }
        Err(format!("{} s after the last fault: {why}", LIVENESS.as_secs()))
    }

    fn step(&mut self, end: Instant) -> Result<(), String> {
        let next = self.queue.peek().map(|Reverse(due)| due.at);
        let client = self.workload.next_at();
        let at = [next, client, Some(self.fault_at), Some(end)].into_iter().flatten().min();
        self.now = at.expect("there is an end").max(self.now);
        if self.now >= end && next.is_none_or(|at| at > self.now) {
            return self.verdict();
        }
        self.figures.events += 1;
        if next.is_some_and(|at| at <= self.now) {
            let Reverse(due) = self.queue.pop().expect("just looked at");
            self.happen(due);
        } else if client.is_some_and(|at| at <= self.now) {
            self.ask();
        } else if self.fault_at <= self.now {
            self.fault();
        }
        self.give_up_waiting()?;
        self.verdict()
    }

    fn verdict(&mut self) -> Result<(), String> {
        match self.broken.take() {
            Some(why) => Err(format!("at {} ms: {why}", self.now.since(START).as_millis())),
            None => Ok(()),
        }
    }

    fn start_node(&mut self, at: usize) {
        let number = at as u8 + 1;
        let address = |number: u8| SocketAddr::new([10, 0, 0, number].into(), 7946);
        let replication = self.options.replication;
        let ring = RingParameters {
            hash: RingHash::Xxh3,
            points_per_weight: 8,
            replicas: replication.replicas(),
        };
        let mut membership = MembershipSettings::new(Terms::new("sim", ring, replication));
        membership.join = (1..=self.options.nodes as u8).map(address).collect();
        membership.forget_after = Duration::from_secs(3600);
        let skew = self.options.skew_max;
        let skew = if skew == 0 { 0 } else { self.random.random_range(-skew..=skew) };
        // A restart has a later boot even on a clock that is behind: see `Boot`.
        let boot =
            Boot(self.now.as_millis().max(self.nodes.get(at).map_or(0, |node| node.boot.0 + 1)));
        let seed = self.random.random();
        let secret = Rc::new(HashSecret::of_seed(seed));
        let node = Node::new(Parts {
            id: format!("n{at}"),
            boot,
            address: address(number),
            skew,
            core_count: self.options.cores,
            governor: GovernorSettings {
                membership,
                ring,
                replication,
                weight: 1,
                core_count: self.options.cores as usize,
            },
            coordinator: CoordinatorSettings {
                compare_every: Duration::from_secs(2),
                ring_hash: ring.hash,
                long_bytes: self.options.long_bytes,
                ..CoordinatorSettings::new(replication, secret)
            },
            seed,
            sabotage: self.options.sabotage,
            shards: self.options.shards,
        });
        if at == self.nodes.len() {
            self.nodes.push(node);
            self.links.push(HashSet::new());
            self.wake_at.push(None);
        } else {
            self.nodes[at] = node;
            self.links[at].clear();
            self.wake_at[at] = None;
        }
        self.trace(|| format!("n{at} starts as {boot:?}"));
        self.on(at, |node, now, linked, wants| {
            node.on_governor(GovernorEvent::Start, now, linked, wants);
        });
    }

    /// Calls a node and does what it wants.
    fn on(
        &mut self,
        at: usize,
        call: impl FnOnce(&mut Node, Instant, &dyn Fn(Peer) -> bool, &mut Wants),
    ) {
        let mut wants = Wants::default();
        let links = &self.links[at];
        let linked = |peer: Peer| links.iter().any(|(node, _)| *node == peer.node);
        call(&mut self.nodes[at], self.now, &linked, &mut wants);
        for line in std::mem::take(&mut wants.log) {
            self.trace(|| format!("n{at}: {line}"));
        }
        for (node, boot, wanted) in wants.links {
            self.want_link(at, node, boot, wanted);
        }
        for (node, address) in wants.calls {
            self.call(at, node, address);
        }
        for (to, bytes) in wants.datagrams {
            let from = self.nodes[at].address;
            if let Some(to) = self.nodes.iter().position(|node| node.address == to) {
                for delay in self.network.send(at, to) {
                    let what = Happening::Datagram { from, bytes: bytes.clone() };
                    self.schedule(to, delay, what);
                }
            }
        }
        for (core, to, body) in wants.frames {
            self.post(at, core, to, &body);
        }
        for (asker, answer) in wants.answers {
            self.answered(asker, &answer);
        }
        if std::mem::take(&mut self.nodes[at].handed_over) {
            self.trace(|| format!("n{at} has handed over"));
            self.figures.leaves += 1;
            let mut goodbye = Wants::default();
            let now = self.now;
            self.nodes[at].on_governor(GovernorEvent::Shutdown, now, &|_| false, &mut goodbye);
            for (to, bytes) in goodbye.datagrams {
                let from = self.nodes[at].address;
                if let Some(to) = self.nodes.iter().position(|node| node.address == to) {
                    for delay in self.network.send(at, to) {
                        self.schedule(
                            to,
                            delay,
                            Happening::Datagram { from, bytes: bytes.clone() },
                        );
                    }
                }
            }
            self.nodes[at].leaving = true;
            self.end(at);
        }
        self.wake(at);
    }

    fn post(&mut self, at: usize, core: u16, to: Peer, body: &[u8]) {
        let Some(target) = self.nodes.iter().position(|node| node.key() == to.node) else { return };
        let boot = self.nodes[target].boot;
        if self.options.trace && core != NODE_CORE {
            for message in Messages::new(body).flatten() {
                let shown = format!("{:?}", Message::read(message));
                self.trace(|| format!("n{at}.{core} -> n{target}.{}: {shown}", to.core));
            }
        }
        let congested = self.options.congested_per_mille;
        if core != NODE_CORE
            && congested > 0
            && self.workload.active
            && self.random.random_range(0..1000) < congested
            && self.nodes[at].full.insert((core, to))
        {
            let delay = Duration::from_millis(self.random.random_range(1..500));
            self.schedule(at, delay, Happening::PeerBuffer { core, peer: to });
        }
        let bytes = self.nodes[at].seal(core, to, boot, body);
        let (from, from_boot) = (Peer { node: self.nodes[at].key(), core }, self.nodes[at].boot);
        for delay in self.network.send(at, target) {
            let bytes = bytes.clone();
            self.schedule(
                target,
                delay,
                Happening::Frame { from, from_boot, core: to.core, bytes },
            );
        }
    }

    fn want_link(&mut self, at: usize, node: NodeKey, boot: Boot, wanted: bool) {
        if wanted {
            let delay = Duration::from_millis(self.random.random_range(5..100));
            self.schedule(at, delay, Happening::LinkUp { node, boot });
        } else if self.links[at].remove(&(node, boot)) {
            self.schedule(at, Duration::ZERO, Happening::LinkDown { node, boot, lost: false });
        }
    }

    /// Tells a node whether another one refuses connections: its process is gone, or somebody
    /// between says so.
    fn call(&mut self, at: usize, node: NodeKey, address: SocketAddr) {
        let Some(to) = self.nodes.iter().position(|other| other.address == address) else { return };
        let reaches = self.network.reaches(at, to) && self.network.reaches(to, at);
        if if reaches { !self.nodes[to].running } else { self.network.refusing } {
            self.figures.refused += 1;
            let delay = Duration::from_millis(self.random.random_range(1..20));
            self.schedule(at, delay, Happening::Refused { node, address });
        }
    }

    fn schedule(&mut self, node: usize, after: Duration, what: Happening) {
        self.number += 1;
        let boot = self.nodes[node].boot;
        let due = Due { at: self.now.after(after), number: self.number, node, boot, what };
        self.queue.push(Reverse(due));
    }

    fn wake(&mut self, at: usize) {
        if !self.nodes[at].running {
            return;
        }
        let Some(deadline) = self.nodes[at].next_deadline() else { return };
        // What is overdue is done in the next millisecond, so that time goes on.
        let deadline = deadline.max(self.now.after(Duration::from_millis(1)));
        if self.wake_at[at].is_none_or(|known| deadline < known || known <= self.now) {
            self.wake_at[at] = Some(deadline);
            self.schedule(at, deadline.since(self.now), Happening::Wake);
        }
    }

    fn happen(&mut self, due: Due) {
        let Due { node: at, boot, what, at: due_at, .. } = due;
        if matches!(what, Happening::Restart) {
            if !self.nodes[at].running && !self.nodes[at].leaving {
                self.start_node(at);
            }
            return;
        }
        if !self.nodes[at].running || self.nodes[at].boot != boot {
            return;
        }
        if matches!(what, Happening::Wake) && self.wake_at[at] != Some(due_at) {
            // An earlier one has come since, and has seen to the next.
            return;
        }
        if self.nodes[at].stopped_until > self.now {
            let wait = self.nodes[at].stopped_until.since(self.now);
            if matches!(what, Happening::Wake) {
                self.wake_at[at] = Some(self.nodes[at].stopped_until);
            }
            return self.schedule(at, wait, what);
        }
        match what {
            Happening::Datagram { from, bytes } => self.on(at, |node, now, linked, wants| {
                node.on_governor(
                    GovernorEvent::Datagram { from, bytes: &bytes },
                    now,
                    linked,
                    wants,
                );
            }),
            Happening::Frame { from, from_boot, core, bytes } => {
                let Some(body) = self.nodes[at].open(from, from_boot, core, &bytes) else { return };
                if core == NODE_CORE {
                    return self.on(at, |node, now, linked, wants| {
                        let told = GovernorEvent::Message { from: from.node, bytes: &body };
                        node.on_governor(told, now, linked, wants);
                    });
                }
                if !self.links[at].contains(&(from.node, from_boot)) {
                    return;
                }
                self.on(at, |node, now, linked, wants| {
                    node.on_core(core, now, linked, wants, |coordinator, turn| {
                        coordinator.heard(from, false, turn.now);
                        for message in Messages::new(&body).flatten() {
                            coordinator.message(from, message, turn);
                        }
                    });
                });
            }
            Happening::LinkUp { node, boot } => {
                let other = self.nodes.iter().position(|other| other.key() == node);
                let Some(other) = other
                    .filter(|other| self.nodes[*other].running && self.nodes[*other].boot == boot)
                else {
                    return;
                };
                if !self.network.reaches(at, other) || !self.network.reaches(other, at) {
                    return self.schedule(
                        at,
                        Duration::from_millis(300),
                        Happening::LinkUp { node, boot },
                    );
                }
                let facts = self.nodes[other].facts();
                if self.links[at].insert((node, boot)) {
                    self.on(at, |this, now, linked, wants| {
                        for core in 0..facts.core_count {
                            let peer = Peer { node, core };
                            this.link(LinkEvent::Up { peer, facts }, now, linked, wants);
                        }
                    });
                }
            }
            Happening::PeerBuffer { core, peer } => {
                self.nodes[at].full.remove(&(core, peer));
                self.on(at, |this, now, linked, wants| {
                    this.on_core(core, now, linked, wants, |c, turn| {
                        c.on_buffer_available(peer, turn)
                    });
                });
            }
            Happening::Refused { node, address } => self.on(at, |this, now, linked, wants| {
                this.on_governor(
                    GovernorEvent::ConnectionRefused { node, address },
                    now,
                    linked,
                    wants,
                );
            }),
            Happening::LinkDown { node, boot, lost } => {
                let cores = self.options.cores;
                self.on(at, |this, now, linked, wants| {
                    for core in 0..cores {
                        let peer = Peer { node, core };
                        this.link(LinkEvent::Down { peer, boot }, now, linked, wants);
                    }
                    if lost {
                        this.on_governor(GovernorEvent::LinkLost { node }, now, linked, wants);
                    }
                });
                // A link that was made again meanwhile came after this one was seen to be gone.
                if self.links[at].remove(&(node, boot)) {
                    self.schedule(at, Duration::ZERO, Happening::LinkUp { node, boot });
                }
            }
            Happening::Wake => {
                self.wake_at[at] = None;
                self.on(at, |node, now, linked, wants| {
                    node.on_governor(GovernorEvent::Tick, now, linked, wants);
                    for core in 0..node.cores.len() as u16 {
                        node.on_core(core, now, linked, wants, |c, turn| c.tick(turn));
                    }
                });
            }
            Happening::Restart => unreachable!("handled above"),
        }
    }

    fn ask(&mut self) {
        let now = self.now;
        let due = |at: &usize| {
            let client = &self.workload.clients[*at];
            client.waiting.is_none() && client.next_at <= now
        };
        let Some(client) = (0..self.workload.clients.len()).find(due) else { return };
        let able: Vec<usize> = (0..self.nodes.len())
            .filter(|at| self.nodes[*at].running && self.nodes[*at].stopped_until <= now)
            .collect();
        if able.is_empty() {
            self.workload.clients[client].next_at = now.after(Duration::from_millis(100));
            return;
        }
        let at = able[self.random.random_range(0..able.len())];
        let owned = self.workload.ask(client, now);
        self.requests += 1;
        self.asked[client] = (self.requests, at);
        let asker = ClientRef {
            core: 0,
            connection: client as u32,
            generation: self.requests,
            sequence: 0,
        };
        self.trace(|| format!("client {client} asks n{at}: {:?} {}", owned.kind, owned.key));
        let limited = self.options.limited_reads && self.requests.is_multiple_of(2);
        let allowance = if limited { Allowance(0) } else { Allowance::FULL };
        let secret = self.nodes[at].hash_secret.clone();
        self.hand(at, asker, &owned.request(&secret).with_allowance(allowance));
    }

    /// Passes a client's request to a node.
    fn hand(&mut self, at: usize, asker: ClientRef, request: &Request<'_>) {
        self.on(at, |node, now, linked, wants| {
            let core = node.facts().core_of(request.key);
            node.on_core(core, now, linked, wants, |coordinator, turn| {
                let place = coordinator.point_of(request.key);
                coordinator.request(asker, Consistency::Configured, place, request, turn);
            });
        });
    }

    /// Makes a read again that was put off, with room for the value as it was.
    fn make_again(&mut self, asker: ClientRef, value_bytes: u32, request: &[u8]) {
        let at = self.asked[asker.connection as usize].1;
        let request = match codec::decode_request(request) {
            Ok(request) => request,
            Err(error) => {
                let why = format!("a read came back as {error:?}");
                self.broken.get_or_insert(why);
                return;
            }
        };
        if request.hash != KeyHash::of(request.key, &self.nodes[at].hash_secret) {
            self.broken.get_or_insert("a read came back with another hash".into());
        }
        self.figures.put_off += 1;
        if self.nodes[at].running {
            self.hand(at, asker, &request.with_allowance(Allowance(value_bytes)));
        }
    }

    fn answered(&mut self, asker: ClientRef, answer: &Answer) {
        let client = asker.connection as usize;
        if self.asked[client].0 != asker.generation {
            return;
        }
        self.trace(|| format!("client {client} is told {answer:?}"));
        if let Answer::Over(value_bytes, request) = answer {
            return self.make_again(asker, *value_bytes, request);
        }
        self.asked[client].0 = 0;
        if let Err(why) = self.workload.told(client, answer, self.now) {
            self.broken.get_or_insert(why);
        }
    }

    fn give_up_waiting(&mut self) -> Result<(), String> {
        for client in 0..self.workload.clients.len() {
            let Some((_, began)) = &self.workload.clients[client].waiting else { continue };
            let alive = self.nodes[self.asked[client].1].running;
            if !alive || self.now.since(*began) > PATIENCE {
                self.asked[client].0 = 0;
                self.workload.told(client, &Answer::Unclear, self.now)?;
            }
        }
        Ok(())
    }

    fn trace(&self, line: impl FnOnce() -> String) {
        if self.options.trace {
            println!("{:>6} {}", self.now.since(START).as_millis(), line());
        }
    }
}
