//! A core's links to the cores of other nodes, on its net ring beside the clients.
//!
//! A turn's messages for a peer are collected in one buffer and leave as one frame with one send;
//! while that is in flight the next frame is collected. Long messages leave in pieces beside it:
//! [`flow`](crate::cluster::flow) decides what leaves when. Frames that arrive whole in a receive
//! buffer are opened in place, others are reassembled first. After warm-up short messages cause no
//! allocation: two buffers are swapped.
//!
//! The bytes queued for a peer are bounded: beyond, there is no room for requests, and the caller
//! holds them until [`LinkTable::next_roomy`] names the peer. A failed link is reported and
//! dropped; the dialler re-establishes it.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::cluster::flow::{Arrivals, Class, FRAME_BYTES_MAX, FrameBody, Gathering, Sending};
use crate::cluster::frame::{HEAD_BYTES, Opened, Opener, TAG_BYTES};
use crate::cluster::handshake::LinkSession;
use crate::cluster::identity::{Boot, NodeKey};
use crate::cluster::link::{LinkEvent, Peer, PeerBuffer};
use crate::server::net_ring::{NetEvent, NetRing, SendBuffer, SendOutcome, Token, loans};
use crate::stats::LinkCounters;

#[cfg(test)]
mod tests;

/// Slots of the net ring from this one on are links, those below are clients.
const LINKS_FROM: u32 = crate::config::CONNECTION_SLOTS;
const _: () =
    assert!(LINKS_FROM < crate::server::net_ring::SLOTS_MAX, "the net ring names links, too");
/// Capacity that an idle link's buffers may retain.
const BYTES_KEPT: usize = 64 << 10;

/// Bounds of a core's links.
#[derive(Clone, Copy, Debug)]
pub struct LinkSettings {
    /// Bytes queued or in flight to one peer, beyond which there is no room: for short requests,
    /// long ones and long answers each.
    pub queue_bytes_max: usize,
    /// Longest accepted message; the start of a longer one closes the link.
    pub message_bytes_max: usize,
    /// Bytes of long messages that wait on all links together, besides one for each; and as many
    /// that arrive, besides what may come unasked.
    pub bytes_max: usize,
}

/// A connection after a successful handshake.
#[derive(Debug)]
pub struct NewLink {
    /// The connection.
    pub socket: OwnedFd,
    /// The result of the handshake.
    pub session: Box<LinkSession>,
    /// The dial it came from; 0 if the other side dialled.
    pub serial: u64,
}

/// A lost link, for the dialler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostLink {
    /// The peer it reached.
    pub peer: Peer,
    /// The dial it came from; 0 if the other side dialled.
    pub serial: u64,
}

/// The links of one core.
#[derive(Debug)]
pub struct LinkTable {
    settings: LinkSettings,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_peer: HashMap<Peer, u32, ahash::RandomState>,
    /// The peer requested last, since the next message is often for the same one. Also in
    /// `by_peer`.
    last: Option<(Peer, u32)>,
    /// Links with work at the end of the turn.
    due: Vec<u32>,
    /// Bytes of long messages that wait on all of them.
    long_bytes: usize,
    arrivals: Arrivals<u32>,
    events: VecDeque<LinkEvent>,
    /// Links that have denied a caller room.
    refused: Vec<u32>,
    /// Peers that have room again.
    roomy: VecDeque<Peer>,
    lost: Vec<LostLink>,
    /// Peers that sent forged, replayed or oversized frames, to be reported.
    bad: Vec<Peer>,
    counters: LinkCounters,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    link: Option<Box<Link>>,
}

#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    peer: Peer,
    boot: Boot,
    serial: u64,
    opener: Opener,
    sending: Sending,
    gathering: Gathering,
    /// Bytes of it in [`LinkTable::long_bytes`].
    long_bytes: usize,
    /// An incomplete frame.
    gathered: Vec<u8>,
    /// A caller was denied room.
    refused: bool,
    receiving: bool,
    in_flight: bool,
    broken: bool,
    /// Listed in `due`.
    due: bool,
}

/// The peer violated the framing.
struct BadFrame;

impl crate::engine::cluster::PeerOutbox for LinkTable {
    #[inline]
    fn buffer_for(&mut self, to: Peer) -> Option<&mut Vec<u8>> {
        LinkTable::buffer_for(self, to)
    }

    #[inline]
    fn request_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        LinkTable::request_buffer(self, to, Class::Request, bytes)
    }

    #[inline]
    fn forward_buffer(&mut self, to: Peer, bytes: usize) -> PeerBuffer<'_> {
        LinkTable::request_buffer(self, to, Class::Forward, bytes)
    }

    #[inline]
    fn takes_long_answer(&mut self, to: Peer) -> bool {
        LinkTable::takes_long_answer(self, to)
    }
}

impl LinkTable {
    /// Creates an empty set of links.
    pub fn new(settings: LinkSettings) -> Self {
        Self {
            settings,
            slots: Vec::new(),
            free: Vec::new(),
            by_peer: HashMap::with_hasher(ahash::RandomState::new()),
            last: None,
            due: Vec::new(),
            long_bytes: 0,
            arrivals: Arrivals::new(settings.bytes_max),
            events: VecDeque::new(),
            refused: Vec::new(),
            roomy: VecDeque::new(),
            lost: Vec::new(),
            bad: Vec::new(),
            counters: LinkCounters::default(),
        }
    }

    /// Whether `event` belongs to a link rather than a client.
    #[inline]
    pub fn own(event: &NetEvent) -> bool {
        match event {
            NetEvent::Received { token, .. }
            | NetEvent::ReceiveEnded { token, .. }
            | NetEvent::Sent { token, .. } => token.index >= LINKS_FROM,
            _ => false,
        }
    }

    /// Adds a link. It replaces the one to the same peer, unless that reaches a later boot.
    pub fn add(&mut self, new: NewLink) {
        let NewLink { socket, session, serial } = new;
        let (peer, facts) = (session.peer, session.facts);
        if let Some(&index) = self.by_peer.get(&peer) {
            if self.link(index).boot > facts.boot {
                self.lost.push(LostLink { peer, serial });
                return;
            }
            self.end(index);
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.link = Some(Box::new(Link {
            socket,
            peer,
            boot: facts.boot,
            serial,
            opener: session.opener,
            sending: Sending::new(
                session.sealer,
                self.settings.queue_bytes_max,
                session.frame_bytes_max as usize,
            ),
            gathering: Gathering::new(self.settings.message_bytes_max),
            long_bytes: 0,
            gathered: Vec::new(),
            refused: false,
            receiving: false,
            in_flight: false,
            broken: false,
            due: false,
        }));
        self.by_peer.insert(peer, index);
        self.events.push_back(LinkEvent::Up { peer, facts });
        self.counters.made += 1;
        self.counters.up += 1;
        self.list(index);
    }

    /// Closes all links to `node` with boot `boot` or an earlier one.
    pub fn end_node(&mut self, node: NodeKey, boot: Boot) {
        let of_node = self.by_peer.iter().filter(|(peer, _)| peer.node == node);
        let indices: Vec<u32> = of_node.map(|(_, &index)| index).collect();
        for index in indices {
            if self.link(index).boot <= boot {
                self.end(index);
            }
        }
    }

    /// Closes every link; the dialler re-establishes those still needed.
    pub fn end_all(&mut self) {
        let indices: Vec<u32> = self.by_peer.values().copied().collect();
        indices.into_iter().for_each(|index| self.end(index));
    }

    /// The next link event, oldest first. Call it before handling frames of the next turn.
    pub fn next_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    /// Whether there are link events.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Takes the lost links, for the dialler.
    pub fn take_lost(&mut self) -> impl Iterator<Item = LostLink> {
        self.lost.drain(..)
    }

    /// Takes the peers whose links were closed because of a forged, replayed or oversized frame.
    pub fn take_bad(&mut self) -> impl Iterator<Item = Peer> {
        self.bad.drain(..)
    }

    /// The counters so far.
    pub fn counters(&self) -> LinkCounters {
        self.counters
    }

    /// The buffer that collects messages for `peer`; they leave at the end of the turn. `None`
    /// without a link.
    #[inline]
    pub fn buffer_for(&mut self, peer: Peer) -> Option<&mut Vec<u8>> {
        let index = self.find(peer)?;
        let link = self.slots[index as usize].link.as_deref_mut().expect("listed links exist");
        if !link.due {
            link.due = true;
            self.due.push(index);
        }
        Some(link.sending.room())
    }

    /// Like [`LinkTable::buffer_for`], for a request of about `bytes`, which must wait if too much
    /// is queued before it.
    #[inline]
    pub fn request_buffer(&mut self, peer: Peer, class: Class, bytes: usize) -> PeerBuffer<'_> {
        let Some(index) = self.find(peer) else { return PeerBuffer::Unlinked };
        let left = self.bytes_left();
        let link = self.slots[index as usize].link.as_deref_mut().expect("listed links exist");
        if link.sending.is_full(class, bytes, left) {
            if !mem::replace(&mut link.refused, true) {
                self.refused.push(index);
            }
            self.counters.waited += 1;
            return PeerBuffer::Full;
        }
        if !link.due {
            link.due = true;
            self.due.push(index);
        }
        PeerBuffer::Open(link.sending.room())
    }

    /// Whether a long answer to `peer` can be built now. If not, [`LinkTable::next_roomy`] will
    /// name the peer.
    pub fn takes_long_answer(&mut self, peer: Peer) -> bool {
        // Without a link the answer is lost and need not wait.
        let Some(index) = self.find(peer) else { return true };
        let left = self.bytes_left();
        let link = self.slots[index as usize].link.as_deref_mut().expect("listed links exist");
        let takes = !link.sending.is_full(Class::Answer, usize::MAX, left);
        if !takes && !mem::replace(&mut link.refused, true) {
            self.refused.push(index);
        }
        takes
    }

    /// Other nodes may hand on requests of so many bytes now, for this core to coordinate.
    pub fn set_forward_room(&mut self, bytes: usize) {
        let refused = self.arrivals.refuses_forwards();
        self.arrivals.set_forward_room(bytes);
        if refused && bytes > 0 {
            let linked: Vec<u32> = self.by_peer.values().copied().collect();
            linked.into_iter().for_each(|index| self.give_credit(index, Class::Forward));
        }
    }

    /// Bytes of long messages that may be added to those that wait.
    fn bytes_left(&self) -> usize {
        self.settings.bytes_max.saturating_sub(self.long_bytes)
    }

    /// A peer that has room again after a caller was denied it.
    pub fn next_roomy(&mut self) -> Option<Peer> {
        self.roomy.pop_front()
    }

    /// Whether there is such a peer.
    pub fn has_roomy(&self) -> bool {
        !self.roomy.is_empty()
    }

    /// Bytes queued for peers or partly received from them.
    pub fn held_bytes(&self) -> usize {
        let links = self.slots.iter().filter_map(|slot| slot.link.as_deref());
        let held = |link: &Link| {
            link.sending.waiting_bytes() + link.gathering.held_bytes() + link.gathered.len()
        };
        links.map(held).sum()
    }

    #[inline]
    fn find(&mut self, peer: Peer) -> Option<u32> {
        let index = match self.last {
            Some((last, index)) if last == peer => index,
            _ => *self.by_peer.get(&peer)?,
        };
        self.last = Some((peer, index));
        Some(index)
    }

    /// Handles a link's net ring event. Passes each complete frame's messages to `deliver`, which
    /// may collect messages for any peer meanwhile.
    pub fn handle(
        &mut self,
        event: NetEvent,
        net: &mut NetRing,
        mut deliver: impl FnMut(&mut LinkTable, Peer, &[u8]),
    ) {
        match event {
            NetEvent::Received { token, buffer, ended } => {
                if let Some(index) = self.index(token) {
                    let bytes = net.bytes(&buffer);
                    self.counters.bytes_received += bytes.len() as u64;
                    if ended {
                        self.link(index).receiving = false;
                        self.list(index);
                    }
                    if self.receive(index, bytes, &mut deliver).is_err() {
                        self.counters.bad_frames += 1;
                        let peer = self.link(index).peer;
                        self.bad.push(peer);
                        self.end(index);
                    }
                }
                net.recycle(buffer);
            }
            NetEvent::ReceiveEnded { token, outcome } => {
                let Some(index) = self.index(token) else { return };
                self.link(index).receiving = false;
                self.list(index);
                // Without free buffers it is rearmed at the end of the turn.
                if !matches!(outcome, Err(libc::ENOBUFS)) {
                    self.end(index);
                }
            }
            NetEvent::Sent { token, output, outcome } => self.sent(token, output, outcome, net),
            _ => {}
        }
    }

    /// Ends the turn: sends collected messages, arms receives, closes lost links.
    pub fn flush(&mut self, net: &mut NetRing) {
        while let Some((index, class)) = self.arrivals.next_admitted() {
            self.link(index).gathering.admit(class, true);
            self.give_credit(index, class);
        }
        while let Some(index) = self.due.pop() {
            let slot = &mut self.slots[index as usize];
            let token = Token { index: LINKS_FROM + index, generation: slot.generation };
            let link = slot.link.as_deref_mut().expect("listed links exist");
            link.due = false;
            if link.broken {
                if !link.receiving && !link.in_flight {
                    slot.link = None;
                    self.free.push(index);
                }
                continue;
            }
            if !link.receiving {
                link.receiving = true;
                net.receive(link.socket.as_raw_fd(), token);
            }
            self.counters.too_long += link.sending.separate();
            if !link.in_flight && link.sending.has_work() {
                let buffer = link.sending.take();
                if !buffer.is_empty() {
                    link.in_flight = true;
                    let output = SendBuffer { buffer, ..SendBuffer::default() };
                    net.send(link.socket.as_raw_fd(), token, output, 0);
                }
            }
            let long_bytes = link.sending.long_bytes();
            self.long_bytes =
                self.long_bytes - mem::replace(&mut link.long_bytes, long_bytes) + long_bytes;
        }
        self.tell_roomy();
    }

    /// Names those peers for whom there was no room and is again.
    fn tell_roomy(&mut self) {
        if self.refused.is_empty() {
            return;
        }
        let (left, slots, roomy) = (self.bytes_left(), &mut self.slots, &mut self.roomy);
        self.refused.retain(|index| {
            let Some(link) = slots[*index as usize].link.as_deref_mut() else { return false };
            if link.refused && link.sending.is_roomy(left) {
                link.refused = false;
                roomy.push_back(link.peer);
            }
            link.refused
        });
    }

    /// Tells the peer what it may send of `class`, if it is time to.
    fn give_credit(&mut self, index: u32, class: Class) {
        let refused = class == Class::Forward && self.arrivals.refuses_forwards();
        let link = self.link(index);
        if let Some(up_to) = link.gathering.due_credit(class, refused) {
            link.sending.tell_credit(class, up_to);
            self.list(index);
        }
    }

    /// Closes every link; true once the kernel has released all.
    pub fn close(&mut self, net: &mut NetRing) -> bool {
        self.end_all();
        self.flush(net);
        self.slots.iter().all(|slot| slot.link.is_none())
    }

    /// Opens the frames in `bytes`, the first of which may have begun earlier.
    fn receive(
        &mut self,
        index: u32,
        bytes: &[u8],
        deliver: &mut impl FnMut(&mut LinkTable, Peer, &[u8]),
    ) -> Result<(), BadFrame> {
        let link = self.link(index);
        if link.broken {
            return Ok(());
        }
        let mut rest = bytes;
        let mut gathered = mem::take(&mut link.gathered);
        while !gathered.is_empty() {
            match self.link(index).opener.open(&gathered).map_err(|_| BadFrame)? {
                Opened::Incomplete { bytes } => {
                    check_length(bytes)?;
                    let missing = bytes - gathered.len();
                    let (part, after) = rest.split_at(missing.min(rest.len()));
                    gathered.extend_from_slice(part);
                    rest = after;
                    if part.len() < missing {
                        self.link(index).gathered = gathered;
                        return Ok(());
                    }
                }
                Opened::Frame { body, .. } => {
                    self.opened(index, body, deliver)?;
                    gathered.clear();
                }
            }
        }
        gathered.shrink_to(BYTES_KEPT);
        while !rest.is_empty() {
            match self.link(index).opener.open(rest).map_err(|_| BadFrame)? {
                Opened::Incomplete { bytes } => {
                    check_length(bytes)?;
                    gathered.extend_from_slice(rest);
                    break;
                }
                Opened::Frame { consumed, body } => {
                    rest = &rest[consumed..];
                    self.opened(index, body, deliver)?;
                }
            }
        }
        self.link(index).gathered = gathered;
        Ok(())
    }

    /// Handles the body of a frame.
    fn opened(
        &mut self,
        index: u32,
        body: &[u8],
        deliver: &mut impl FnMut(&mut LinkTable, Peer, &[u8]),
    ) -> Result<(), BadFrame> {
        self.counters.frames_received += 1;
        let link = self.link(index);
        let peer = link.peer;
        match FrameBody::read(body).map_err(|_| BadFrame)? {
            FrameBody::Messages(messages) => deliver(self, peer, messages),
            FrameBody::Credit { class, up_to } => {
                link.sending.allow(class, up_to);
                self.list(index);
                deliver(self, peer, b"");
            }
            FrameBody::Piece { class, total, bytes } => {
                let whole = link.gathering.piece(class, total, bytes).map_err(|_| BadFrame)?;
                if let Some(total) = link.gathering.wants_in(class) {
                    let admitted = self.arrivals.begins(index, class, total);
                    self.link(index).gathering.admit(class, admitted);
                }
                deliver(self, peer, whole.as_deref().unwrap_or_default());
                if let Some(buffer) = whole {
                    match self.link(index).gathering.give_back(class, buffer) {
                        0 => self.arrivals.forget_one(index, class),
                        admitted => self.arrivals.ends(class, admitted),
                    }
                }
                self.give_credit(index, class);
            }
        }
        Ok(())
    }

    fn sent(&mut self, token: Token, output: SendBuffer, outcome: SendOutcome, net: &mut NetRing) {
        let index = self.index(token).expect("a link outlives its sends");
        let link = self.slots[index as usize].link.as_deref_mut().expect("looked up above");
        let fd = link.socket.as_raw_fd();
        match outcome {
            SendOutcome::Rest(from) if !link.broken => return net.send(fd, token, output, from),
            SendOutcome::Rest(_) | SendOutcome::Whole => {}
            SendOutcome::Failed(_) => self.end(index),
        }
        self.counters.frames_sent += 1;
        self.counters.bytes_sent += output.len() as u64;
        let link = self.link(index);
        link.in_flight = false;
        let buffer = output.buffer;
        loans::assert_free(buffer.as_ptr(), buffer.capacity(), "a link's buffer is used again");
        link.sending.sent(buffer);
        self.list(index);
    }

    /// Drops a link and lets the kernel release what it holds.
    fn end(&mut self, index: u32) {
        let link = self.slots[index as usize].link.as_deref_mut().expect("ended links exist");
        if mem::replace(&mut link.broken, true) {
            return;
        }
        let _ = socket2::SockRef::from(&link.socket).shutdown(Shutdown::Both);
        link.sending.clear();
        link.gathering.clear(|class, total| self.arrivals.ends(class, total));
        self.arrivals.forget(index);
        self.long_bytes -= mem::take(&mut link.long_bytes);
        link.gathered = Vec::new();
        let (peer, boot, serial) = (link.peer, link.boot, link.serial);
        self.by_peer.remove(&peer);
        self.last = None;
        self.events.push_back(LinkEvent::Down { peer, boot });
        self.lost.push(LostLink { peer, serial });
        self.counters.up -= 1;
        self.list(index);
    }

    fn list(&mut self, index: u32) {
        let link = self.slots[index as usize].link.as_deref_mut().expect("listed links exist");
        if !mem::replace(&mut link.due, true) {
            self.due.push(index);
        }
    }

    fn index(&self, token: Token) -> Option<u32> {
        let index = token.index.checked_sub(LINKS_FROM)?;
        let slot = self.slots.get(index as usize)?;
        (slot.generation == token.generation && slot.link.is_some()).then_some(index)
    }

    fn link(&mut self, index: u32) -> &mut Link {
        self.slots[index as usize].link.as_deref_mut().expect("indices of links that exist")
    }
}

/// `bytes` is the whole frame's length: head, body and an optional tag.
fn check_length(bytes: usize) -> Result<(), BadFrame> {
    if bytes > FRAME_BYTES_MAX + HEAD_BYTES + TAG_BYTES { Err(BadFrame) } else { Ok(()) }
}
