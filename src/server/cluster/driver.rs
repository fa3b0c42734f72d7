//! The cluster driver on the control executor: gossip, dialling, answering, and the governor.
//!
//! Several tasks, each waiting for one thing (a datagram, a connection, the nearest deadline, the
//! bell), share one state that is borrowed only between two awaits. The governor's effects are
//! performed at once; datagrams for which the kernel has no room are dropped, as on the network.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::or;
use glommio::channels::local_channel::{self, LocalReceiver, LocalSender};
use glommio::net::{TcpListener, TcpStream};
use log::Level;
use socket2::Socket;

use super::core::frame_bytes_max;
use super::handshake_io::{self, EstablishError, Established};
use super::leaving;
use super::links::NewLink;
use super::members;
use super::node_links::NodeLink;
use super::sockets::ClusterSockets;
use super::{CoreCommand, CoreEvent};
use crate::cluster::dialler::{Dial, Dialler, LinkId};
use crate::cluster::governor::{
    Governor, GovernorEffect, GovernorEvent, GovernorSettings, LogLine,
};
use crate::cluster::governor_notice::GovernorNotice;
use crate::cluster::handshake::{Caller, HandshakeError, HandshakeRefusal, Party};
use crate::cluster::identity::{Identity, NodeKey};
use crate::cluster::link::{ClientEndpoint, NODE_CORE, Peer, PeerFacts};
use crate::config::ClusterConfig;
use crate::log_limiter::LogKind;
use crate::server::glommio_fd;
use crate::server::node::Node;
use crate::server::stats_collector::StatsCollector;
use crate::time::Instant;

/// Longest accepted datagram; gossip stays below it.
const DATAGRAM_BYTES_MAX: usize = 2048;
/// Maximum connections being dialled at once; further ones wait.
const DIALS_MAX: u32 = 64;
/// Maximum incoming handshakes at once; further connections are closed.
const ANSWERS_MAX: u32 = 256;
/// The same per host, so that one host cannot use them all.
const ANSWERS_PER_HOST_MAX: u32 = 128;
/// Pause after a socket has failed.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest interval between two checks of the deadlines.
const DEADLINE_POLL_MAX: Duration = Duration::from_secs(1);

/// The cluster driver.
pub struct ClusterDriver {
    pub(super) node: Arc<Node>,
    pub(super) stats_collector: Rc<StatsCollector>,
    party: RefCell<Arc<Party>>,
    gossip: Socket,
    state: RefCell<State>,
    /// Wakes the task that waits for the nearest deadline.
    deadline_moved_sender: LocalSender<()>,
    dialling: Cell<u32>,
    /// Incoming handshakes in progress, by host.
    answering: RefCell<HashMap<IpAddr, u32>>,
    queue_bytes_max: usize,
    /// Other nodes have copied everything they need from here.
    pub(super) handed_over: Cell<bool>,
}

struct State {
    governor: Governor,
    effects: Vec<GovernorEffect>,
    dialler: Dialler,
    node_links: HashMap<NodeKey, NodeLink>,
    /// What each member announced in its last handshake.
    handshake_facts: HashMap<NodeKey, (PeerFacts, ClientEndpoint)>,
    leaving: bool,
}

impl ClusterDriver {
    /// Starts the driver on the calling executor.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn start(
        node: Arc<Node>,
        stats_collector: Rc<StatsCollector>,
        config: &ClusterConfig,
        sockets: ClusterSockets,
        hash_seed: u64,
    ) -> io::Result<Rc<Self>> {
        let boot = node.boot;
        let identity = Identity::new(&config.node_id, boot, config.advertise, config.advertise);
        let key = identity.key;
        let core_count = node.config.core_count() as u16;
        let party = Arc::new(Party {
            id: identity.id.clone(),
            boot,
            core_count,
            hash_seed,
            frame_bytes_max: frame_bytes_max(&node.config, config),
            clients: node.config.client_endpoint(),
            terms: config.terms(),
            key: config.key.clone(),
            listed: config.listed(),
        });
        let settings = GovernorSettings {
            membership: config.membership(),
            ring: config.ring(),
            replication: config.replication,
            weight: config.weight,
            core_count: node.config.core_count(),
        };
        let governor = Governor::new(identity, settings, crate::server::random_seed());
        let (deadline_moved_sender, deadline_moves) = local_channel::new_bounded(1);
        let driver = Rc::new(Self {
            node,
            stats_collector,
            party: RefCell::new(party),
            gossip: sockets.gossip.try_clone()?,
            state: RefCell::new(State {
                governor,
                effects: Vec::new(),
                dialler: Dialler::new(key, core_count, crate::server::random_seed()),
                node_links: HashMap::new(),
                handshake_facts: HashMap::new(),
                leaving: false,
            }),
            deadline_moved_sender,
            dialling: Cell::new(0),
            answering: RefCell::new(HashMap::new()),
            queue_bytes_max: config.link_queue_bytes_max as usize,
            handed_over: Cell::new(false),
        });
        glommio::spawn_local(driver.clone().receive_gossip(sockets.gossip)).detach();
        let listener = glommio_fd::listener(sockets.listener);
        glommio::spawn_local(driver.clone().accept_links(listener)).detach();
        glommio::spawn_local(driver.clone().run_deadlines(deadline_moves)).detach();
        driver.event(GovernorEvent::Start);
        Ok(driver)
    }

    /// Handles a ring of the control executor's bell: cores may have reported, or the node is
    /// stopping.
    pub fn on_wake(self: &Rc<Self>) {
        let now = self.node.clock.now();
        for event in self.node.mailboxes.control.take() {
            match event {
                CoreEvent::Lost { link, serial } => {
                    self.state.borrow_mut().dialler.lost(link, serial, now);
                    self.deadline_moved();
                }
                CoreEvent::Settled { core, epoch } => {
                    self.event(GovernorEvent::Settled { core: core.into(), epoch });
                }
                CoreEvent::Flush(version) => self.event(GovernorEvent::Flush(version)),
            }
        }
        if self.node.is_leaving() {
            self.leave();
        }
    }

    /// Leaves the cluster, once.
    fn leave(self: &Rc<Self>) {
        if mem::replace(&mut self.state.borrow_mut().leaving, true) {
            return;
        }
        glommio::spawn_local(leaving::leave(self.clone())).detach();
    }

    /// Whether `party` is still current: this node has the same boot.
    fn is_current(&self, party: &Arc<Party>) -> bool {
        Arc::ptr_eq(party, &self.party.borrow())
    }

    fn party(&self) -> Arc<Party> {
        self.party.borrow().clone()
    }

    /// Passes an event to the governor and performs its effects.
    pub(super) fn event(self: &Rc<Self>, event: GovernorEvent<'_>) {
        let now = self.node.clock.now();
        let mut effects = {
            let mut state = self.state.borrow_mut();
            let mut effects = mem::take(&mut state.effects);
            let before = state.governor.next_deadline();
            state.governor.handle(event, now, &mut effects);
            if state.governor.next_deadline() < before || before.is_none() {
                self.deadline_moved();
            }
            effects
        };
        for effect in effects.drain(..) {
            self.perform(effect, now);
        }
        self.state.borrow_mut().effects = effects;
    }

    fn perform(self: &Rc<Self>, effect: GovernorEffect, now: Instant) {
        match effect {
            GovernorEffect::Datagram { to, bytes } => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                if let Err(error) = self.gossip.send_to_with_flags(&bytes, &to.into(), flags) {
                    self.node.log(
                        Level::Warn,
                        LogKind::Gossip,
                        to,
                        format_args!("cannot send gossip to {to}: {error}"),
                    );
                }
            }
            GovernorEffect::Send { to, bytes } => {
                if let Some(link) = self.state.borrow_mut().node_links.get_mut(&to) {
                    link.send(&bytes);
                }
            }
            GovernorEffect::ProbeListener { node, address } => self.probe_listener(node, address),
            GovernorEffect::Link { node, address, wanted: true, .. } => {
                self.state.borrow_mut().dialler.want(node, address, now);
                self.deadline_moved();
            }
            GovernorEffect::Link { node, boot, wanted: false, .. } => {
                let mut state = self.state.borrow_mut();
                state.dialler.unwant(node);
                if state.node_links.get(&node).is_some_and(|link| link.boot <= boot) {
                    state.node_links.remove(&node);
                }
                drop(state);
                self.send_to_cores(|| CoreCommand::Unlink(node, boot));
            }
            GovernorEffect::Notice(notice) => {
                if let GovernorNotice::RestartedEmpty(boot) = notice {
                    // Links of the previous boot would show the others the wrong one.
                    let party = Party { boot, ..Party::clone(&self.party()) };
                    *self.party.borrow_mut() = Arc::new(party);
                    self.state.borrow_mut().node_links.clear();
                }
                self.send_to_cores(|| CoreCommand::Notice(notice.clone()));
            }
            GovernorEffect::HandedOver => self.handed_over.set(true),
            GovernorEffect::Log(LogLine { warning, kind, source, text }) => {
                let level = if warning { Level::Warn } else { Level::Info };
                self.node.log(level, kind, source, format_args!("{text}"));
            }
            GovernorEffect::Superseded { by } => self.node.superseded(by),
        }
    }

    fn send_to_cores(&self, command: impl Fn() -> CoreCommand) {
        for core in 0..self.node.mailboxes.cores.len() {
            self.send_to_core(core, command());
        }
    }

    fn send_to_core(&self, core: usize, command: CoreCommand) {
        self.node.mailboxes.cores[core].post(command);
        self.node.doorbells[core].ring();
    }

    fn deadline_moved(&self) {
        // A full channel already holds a signal.
        let _ = self.deadline_moved_sender.try_send(());
    }

    async fn receive_gossip(self: Rc<Self>, socket: Socket) {
        let socket = glommio_fd::udp_socket(socket);
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((bytes, from)) => {
                    let bytes = &buffer[..bytes];
                    self.event(GovernorEvent::Datagram { from, bytes });
                    // Receiving does not yield while datagrams are available.
                    glommio::yield_if_needed().await;
                }
                Err(error) => {
                    self.node.log(
                        Level::Warn,
                        LogKind::Gossip,
                        0,
                        format_args!("pausing before receiving more gossip: {error}"),
                    );
                    glommio::timer::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn accept_links(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    // A connection that is already closed has no address.
                    let Ok(from) = stream.peer_addr() else { continue };
                    if self.begin_answer(from.ip()) {
                        glommio::spawn_local(self.clone().answer(stream, from.ip())).detach();
                    }
                }
                Err(error) => {
                    self.node.log(
                        Level::Warn,
                        LogKind::AcceptNode,
                        0,
                        format_args!("pausing before accepting more links: {error}"),
                    );
                    glommio::timer::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Counts an incoming connection of `host`; false at the limit.
    fn begin_answer(&self, host: IpAddr) -> bool {
        let mut answering = self.answering.borrow_mut();
        let all: u32 = answering.values().sum();
        let of_host = answering.get(&host).copied().unwrap_or(0);
        if all >= ANSWERS_MAX || of_host >= ANSWERS_PER_HOST_MAX {
            return false;
        }
        answering.insert(host, of_host + 1);
        true
    }

    /// Performs the handshake with an incoming connection from `host`.
    async fn answer(self: Rc<Self>, stream: TcpStream, host: IpAddr) {
        let party = self.party();
        // A peer with the key is trusted. Without a key, only membership can be checked.
        let admits = |caller: Caller| {
            let Caller { node, boot, pass } = caller;
            party.key.is_some() || self.state.borrow().governor.admits_link(node, boot, pass)
        };
        let outcome = handshake_io::answer(party.clone(), stream, admits).await;
        match self.answering.borrow_mut().entry(host) {
            Entry::Occupied(last) if *last.get() <= 1 => drop(last.remove()),
            entry => drop(entry.and_modify(|count| *count -= 1)),
        }
        match outcome {
            Ok(met) if self.is_current(&party) => self.met(met, 0),
            Ok(_) => {}
            Err(error) => {
                // Ports change with each attempt; the problem concerns the host.
                self.warn_once(host, &error, format_args!("no link with {host}: {error}"));
            }
        }
    }

    /// Publishes the members to the cores.
    fn tell_members(&self) {
        let mut state = self.state.borrow_mut();
        let State { governor, handshake_facts, .. } = &mut *state;
        self.node.set_members(members::view(governor, &self.party.borrow(), handshake_facts));
    }

    /// Ticks the governor and dials when their deadlines are due.
    async fn run_deadlines(self: Rc<Self>, deadline_moves: LocalReceiver<()>) {
        loop {
            self.tell_members();
            let now = self.node.clock.now();
            let deadline = {
                let state = self.state.borrow();
                let may_dial = self.dialling.get() < DIALS_MAX;
                let dialler = may_dial.then(|| state.dialler.next_deadline()).flatten();
                [state.governor.next_deadline(), dialler].into_iter().flatten().min()
            };
            let wait =
                deadline.map_or(DEADLINE_POLL_MAX, |at| at.since(now)).min(DEADLINE_POLL_MAX);
            if !wait.is_zero() {
                let timer = async {
                    glommio::timer::sleep(wait).await;
                };
                let deadline_moved = async {
                    deadline_moves.recv().await;
                };
                or(timer, deadline_moved).await;
            }
            let now = self.node.clock.now();
            let due = self.state.borrow().governor.next_deadline().is_some_and(|at| at <= now);
            if due {
                self.event(GovernorEvent::Tick);
            }
            self.start_dials(now);
        }
    }

    /// Checks whether a node still listens. Not counted as a dial: there are a few checks per lost
    /// link, and they end soon.
    fn probe_listener(self: &Rc<Self>, node: NodeKey, address: SocketAddr) {
        let driver = self.clone();
        glommio::spawn_local(async move {
            if handshake_io::is_connection_refused(address).await {
                driver.event(GovernorEvent::ConnectionRefused { node, address });
            }
        })
        .detach();
    }

    fn start_dials(self: &Rc<Self>, now: Instant) {
        while self.dialling.get() < DIALS_MAX {
            let Some(dial) = self.state.borrow_mut().dialler.next(now) else { return };
            self.dialling.set(self.dialling.get() + 1);
            let driver = self.clone();
            let task = async move {
                let party = driver.party();
                let pass = driver.state.borrow().governor.pass_to(dial.address);
                let outcome = handshake_io::dial(party.clone(), &dial, pass).await;
                driver.dialling.set(driver.dialling.get() - 1);
                driver.dialled(&dial, &party, outcome);
            };
            glommio::spawn_local(task).detach();
        }
    }

    fn dialled(
        self: &Rc<Self>,
        dial: &Dial,
        party: &Arc<Party>,
        outcome: Result<Established, EstablishError>,
    ) {
        let now = self.node.clock.now();
        match outcome {
            Ok(_) if !self.is_current(party) => {
                self.state.borrow_mut().dialler.failed(dial, now);
            }
            Ok((socket, session)) => {
                let core_count = session.facts.core_count;
                let wanted = self.state.borrow_mut().dialler.succeeded(dial, core_count, now);
                if wanted {
                    self.met((socket, session), dial.serial);
                }
            }
            Err(error) => {
                self.state.borrow_mut().dialler.failed(dial, now);
                let text = format_args!("no link with {} yet: {error}", dial.address);
                self.warn_once(dial.address.ip(), &error, text);
                if error.is_refusal() {
                    let (node, address) = (dial.link.peer.node, dial.address);
                    self.event(GovernorEvent::ConnectionRefused { node, address });
                }
            }
        }
        self.deadline_moved();
    }

    /// Passes an established connection to its core or node link.
    fn met(self: &Rc<Self>, (socket, session): Established, serial: u64) {
        let (peer, core) = (session.peer, session.core);
        log::debug!("linked with node {}: core {core} with core {}", session.id, peer.core);
        if core != NODE_CORE {
            let link = NewLink { socket, session, serial };
            self.send_to_core(usize::from(core), CoreCommand::Link(link));
            return;
        }
        let boot = session.facts.boot;
        let known = self.state.borrow().node_links.get(&peer.node).map(|link| link.boot);
        if known.is_some_and(|known| known > boot) {
            return self.lost_node_link(peer, serial);
        }
        let handshake_facts = (session.facts, session.clients);
        self.state.borrow_mut().handshake_facts.insert(peer.node, handshake_facts);
        // Tasks of the link hold the driver only weakly, else neither would ever be freed.
        let (deliver_to, lose_from) = (Rc::downgrade(self), Rc::downgrade(self));
        let link = NodeLink::start(
            socket,
            *session,
            self.queue_bytes_max,
            self.party().frame_bytes_max as usize,
            move |from, bytes| {
                if let Some(driver) = deliver_to.upgrade() {
                    driver.event(GovernorEvent::Message { from, bytes });
                }
            },
            move || {
                if let Some(driver) = lose_from.upgrade() {
                    driver.node_link_ended(peer, serial);
                }
            },
        );
        match link {
            Ok(link) => {
                self.state.borrow_mut().node_links.insert(peer.node, link);
            }
            Err(error) => {
                self.node.log(
                    Level::Warn,
                    LogKind::Link,
                    peer.node,
                    format_args!("no link with node {:016x}: {error}", peer.node.0),
                );
                self.lost_node_link(peer, serial);
            }
        }
    }

    /// Handles the loss of a node link. Called by its own tasks, which end when it is replaced.
    fn node_link_ended(self: &Rc<Self>, peer: Peer, serial: u64) {
        self.state.borrow_mut().node_links.remove(&peer.node);
        self.lost_node_link(peer, serial);
        self.event(GovernorEvent::LinkLost { node: peer.node });
    }

    fn lost_node_link(&self, peer: Peer, serial: u64) {
        let now = self.node.clock.now();
        let mut state = self.state.borrow_mut();
        state.dialler.lost(LinkId { core: NODE_CORE, peer }, serial, now);
        drop(state);
        self.deadline_moved();
    }

    /// Logs why a link was not established: refusals as warnings for the operator.
    fn warn_once(&self, with: IpAddr, error: &EstablishError, text: fmt::Arguments<'_>) {
        let level = match error {
            // Resolves itself once gossip has arrived, and otherwise needs no attention.
            EstablishError::Handshake(
                HandshakeError::RefusedBy(HandshakeRefusal::Unknown)
                | HandshakeError::Refused(HandshakeRefusal::Unknown),
            ) => Level::Debug,
            EstablishError::Handshake(_) => Level::Warn,
            _ => Level::Debug,
        };
        self.node.log(level, LogKind::Link, with, text);
    }
}
