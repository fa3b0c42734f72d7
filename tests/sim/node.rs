//! One node of the simulated world: its governor, its cores, and what they want done.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ringlane::cluster::coordinator::{ClientRef, Coordinator, CoordinatorSettings, Effects, Turn};
use ringlane::cluster::frame::{Opener, Sealer};
use ringlane::cluster::governor::{self, Governor, GovernorSettings};
use ringlane::cluster::governor_notice::GovernorNotice;
use ringlane::cluster::identity::{Boot, Identity, NodeKey};
use ringlane::cluster::link::{LinkEvent, NODE_CORE, Peer, PeerBuffer, PeerFacts};
use ringlane::cluster::message::{Message, Messages};
use ringlane::cluster::store::ReplicaStore;
use ringlane::cluster::view::View;
use ringlane::hash::HashSecret;
use ringlane::request::Response;
use ringlane::time::Instant;

use crate::options::Sabotage;
use crate::store::SimStore;

/// The answer a client got, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Hit(Vec<u8>, u64),
    Miss,
    Stored,
    NotStored,
    Exists,
    NotFound,
    Deleted,
    Number(u64),
    /// Too few replicas, or nobody can tell.
    Unclear,
    /// Not performed: the value has so many bytes, more than the allowance. The request comes back.
    Over(u32, Vec<u8>),
    Other,
}

impl Answer {
    fn of(response: &Response<'_>) -> Self {
        match response {
            Response::Hit(hit) => Answer::Hit(hit.value.to_vec(), hit.cas),
            Response::Miss => Answer::Miss,
            Response::Stored { .. } => Answer::Stored,
            Response::NotStored => Answer::NotStored,
            Response::Exists => Answer::Exists,
            Response::NotFound => Answer::NotFound,
            Response::Deleted => Answer::Deleted,
            Response::Number(number) => Answer::Number(number.value),
            Response::QuorumNotReached { .. } | Response::Uncertain | Response::Busy => {
                Answer::Unclear
            }
            Response::OverAllowance { value_bytes, request } => {
                Answer::Over(*value_bytes, request.to_vec())
            }
            _ => Answer::Other,
        }
    }
}

/// One core.
pub struct Core {
    pub coordinator: Coordinator,
    pub store: SimStore,
}

/// What a call into a node wants done.
#[derive(Default)]
pub struct Wants {
    /// From this core, to that one.
    pub frames: Vec<(u16, Peer, Vec<u8>)>,
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    pub answers: Vec<(ClientRef, Answer)>,
    /// Links that are wanted, or not any more.
    pub links: Vec<(NodeKey, Boot, bool)>,
    /// Nodes of which it is to be found out whether they listen.
    pub calls: Vec<(NodeKey, SocketAddr)>,
    pub log: Vec<String>,
}

/// One process.
pub struct Node {
    pub id: String,
    pub boot: Boot,
    pub address: SocketAddr,
    /// Milliseconds by which its clock is ahead, or behind.
    pub skew: i64,
    pub governor: Governor,
    pub cores: Vec<Core>,
    pub hash_seed: u64,
    pub hash_secret: Rc<HashSecret>,
    /// Up to when it does nothing at all.
    pub stopped_until: Instant,
    pub running: bool,
    pub leaving: bool,
    /// It has been told to leave, and may still be about it.
    pub told_to_leave: bool,
    pub handed_over: bool,
    /// Latest view, for checks.
    pub view: Option<Arc<View>>,
    /// Links that have no room for requests and long answers at present: from which core to whom.
    pub full: HashSet<(u16, Peer)>,
    /// Frames of one direction of a session: by own core, peer and its life.
    sealers: HashMap<(u16, Peer, Boot), Sealer>,
    openers: HashMap<(Peer, Boot, u16), Opener>,
    pub sabotage: Option<Sabotage>,
}

/// What a node is made of.
pub struct Parts {
    pub id: String,
    pub boot: Boot,
    pub address: SocketAddr,
    pub skew: i64,
    pub core_count: u16,
    pub governor: GovernorSettings,
    pub coordinator: CoordinatorSettings,
    pub seed: u64,
    pub sabotage: Option<Sabotage>,
    /// Whether its stores are real shards.
    pub shards: bool,
}

/// The world outside of one core, during one call.
pub struct TurnEffects<'h> {
    core: u16,
    linked: &'h dyn Fn(Peer) -> bool,
    full: &'h HashSet<(u16, Peer)>,
    frames: Vec<(Peer, Vec<u8>)>,
    answers: &'h mut Vec<(ClientRef, Answer)>,
    settled: Option<u64>,
    sabotage: Option<Sabotage>,
}

impl Effects for TurnEffects<'_> {
    fn buffer_for(&mut self, to: Peer) -> Option<&mut Vec<u8>> {
        if !(self.linked)(to) {
            return None;
        }
        let at = self.frames.iter().position(|(peer, _)| *peer == to).unwrap_or_else(|| {
            self.frames.push((to, Vec::new()));
            self.frames.len() - 1
        });
        Some(&mut self.frames[at].1)
    }

    fn request_buffer(&mut self, to: Peer, _bytes: usize) -> PeerBuffer<'_> {
        if (self.linked)(to) && self.full.contains(&(self.core, to)) {
            return PeerBuffer::Full;
        }
        self.buffer_for(to).map_or(PeerBuffer::Unlinked, PeerBuffer::Open)
    }

    fn takes_long_answer(&mut self, to: Peer) -> bool {
        !(self.linked)(to) || !self.full.contains(&(self.core, to))
    }

    fn answer(&mut self, asker: ClientRef, response: &Response<'_>) {
        self.answers.push((asker, Answer::of(response)));
    }

    fn ranges_complete(&mut self, epoch: u64) {
        self.settled = Some(epoch);
    }
}

impl TurnEffects<'_> {
    /// The frames, without what the sabotage holds back.
    fn sealed(self) -> Vec<(u16, Peer, Vec<u8>)> {
        let spoil = self.sabotage == Some(Sabotage::SkipRepair);
        let keep = |body: Vec<u8>| {
            if !spoil {
                return body;
            }
            let mut kept = Vec::new();
            for message in Messages::new(&body).flatten() {
                if !matches!(Message::read(message), Ok(Message::Merge { .. })) {
                    kept.extend_from_slice(&(message.len() as u32).to_le_bytes());
                    kept.extend_from_slice(message);
                }
            }
            kept
        };
        self.frames
            .into_iter()
            .map(|(peer, body)| (self.core, peer, keep(body)))
            .filter(|(_, _, body)| !body.is_empty())
            .collect()
    }
}

impl Node {
    pub fn new(parts: Parts) -> Self {
        let Parts { id, boot, address, skew, core_count, governor, coordinator, seed, .. } = parts;
        let Parts { sabotage, shards, .. } = parts;
        let identity = Identity::new(&id, boot, address, address);
        let key = identity.key;
        let secret = coordinator.hash_secret.clone();
        let cores = (0..core_count)
            .map(|core| {
                let settings = CoordinatorSettings { core, ..coordinator.clone() };
                let shard = shards.then(|| (secret.clone(), core, core_count));
                let store = SimStore::new(shard, sabotage);
                Core { coordinator: Coordinator::new(key, boot, settings), store }
            })
            .collect();
        Self {
            governor: Governor::new(identity, governor, seed),
            id,
            boot,
            address,
            skew,
            cores,
            hash_seed: seed,
            hash_secret: secret,
            stopped_until: Instant::default(),
            running: true,
            leaving: false,
            told_to_leave: false,
            handed_over: false,
            view: None,
            full: HashSet::new(),
            sealers: HashMap::new(),
            openers: HashMap::new(),
            sabotage,
        }
    }

    pub fn key(&self) -> NodeKey {
        NodeKey::of(&self.id)
    }

    pub fn facts(&self) -> PeerFacts {
        PeerFacts {
            boot: self.boot,
            core_count: self.cores.len() as u16,
            hash_seed: self.hash_seed,
        }
    }

    /// The node's own time.
    pub fn time(&self, now: Instant) -> Instant {
        Instant::from_millis(now.as_millis().saturating_add_signed(self.skew))
    }

    /// When it wants to be woken, in the world's time.
    pub fn next_deadline(&self) -> Option<Instant> {
        let cores = self.cores.iter().filter_map(|core| core.coordinator.next_deadline());
        let own = cores.chain(self.governor.next_deadline()).min()?;
        Some(Instant::from_millis(own.as_millis().saturating_add_signed(-self.skew)))
    }

    /// Calls a core.
    pub fn on_core(
        &mut self,
        core: u16,
        now: Instant,
        linked: &dyn Fn(Peer) -> bool,
        wants: &mut Wants,
        call: impl FnOnce(&mut Coordinator, &mut Turn<'_, SimStore, TurnEffects<'_>>),
    ) {
        let time = self.time(now);
        let mut effects = TurnEffects {
            core,
            linked,
            full: &self.full,
            frames: Vec::new(),
            answers: &mut wants.answers,
            settled: None,
            sabotage: self.sabotage,
        };
        let Core { coordinator, store } = &mut self.cores[core as usize];
        let mut turn = Turn { now: time, store, effects: &mut effects };
        call(coordinator, &mut turn);
        let settled = effects.settled;
        wants.frames.extend(effects.sealed());
        if let Some(epoch) = settled {
            let event = governor::GovernorEvent::Settled { core: core as usize, epoch };
            self.on_governor(event, now, linked, wants);
        }
    }

    /// Tells the governor something and does what follows inside the node.
    pub fn on_governor(
        &mut self,
        event: governor::GovernorEvent<'_>,
        now: Instant,
        linked: &dyn Fn(Peer) -> bool,
        wants: &mut Wants,
    ) {
        let mut effects = Vec::new();
        self.governor.handle(event, self.time(now), &mut effects);
        for effect in effects {
            match effect {
                governor::GovernorEffect::Datagram { to, bytes } => {
                    wants.datagrams.push((to, bytes))
                }
                governor::GovernorEffect::Send { to, bytes } => {
                    wants.frames.push((NODE_CORE, Peer { node: to, core: NODE_CORE }, bytes));
                }
                governor::GovernorEffect::Link { node, boot, wanted, .. } => {
                    wants.links.push((node, boot, wanted));
                }
                governor::GovernorEffect::ProbeListener { node, address } => {
                    wants.calls.push((node, address))
                }
                governor::GovernorEffect::Notice(notice) => {
                    match &notice {
                        GovernorNotice::ViewChanged(view) => self.view = Some(view.clone()),
                        GovernorNotice::RestartedEmpty(boot) => {
                            (self.boot, self.view) = (*boot, None);
                            self.full.clear();
                            self.cores.iter_mut().for_each(|core| core.store.clear());
                        }
                        _ => {}
                    }
                    for core in 0..self.cores.len() as u16 {
                        let notice = notice.clone();
                        self.on_core(core, now, linked, wants, |c, turn| c.notice(notice, turn));
                    }
                }
                governor::GovernorEffect::Superseded { .. } => self.running = false,
                governor::GovernorEffect::HandedOver => self.handed_over = true,
                governor::GovernorEffect::Log(line) => wants.log.push(line.text),
            }
        }
    }

    /// Tells all cores of a link.
    pub fn link(
        &mut self,
        event: LinkEvent,
        now: Instant,
        linked: &dyn Fn(Peer) -> bool,
        wants: &mut Wants,
    ) {
        for core in 0..self.cores.len() as u16 {
            self.on_core(core, now, linked, wants, |c, turn| c.link(event, turn));
        }
    }

    pub fn seal(&mut self, core: u16, to: Peer, boot: Boot, body: &[u8]) -> Vec<u8> {
        let sealer = self.sealers.entry((core, to, boot)).or_insert_with(|| Sealer::new(None));
        let mut frame = Vec::new();
        let start = sealer.begin(&mut frame);
        frame.extend_from_slice(body);
        sealer.end(start, &mut frame);
        frame
    }

    pub fn open(&mut self, from: Peer, boot: Boot, core: u16, frame: &[u8]) -> Option<Vec<u8>> {
        use ringlane::cluster::frame::Opened;
        let opener = self.openers.entry((from, boot, core)).or_insert_with(|| Opener::new(None));
        match opener.open(frame) {
            Ok(Opened::Frame { body, .. }) => Some(body.to_vec()),
            _ => None,
        }
    }
}
