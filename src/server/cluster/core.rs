//! A core's part of the cluster I/O: its mailbox and its links, driven by the worker.
//!
//! In each turn the worker takes the news first, passes link events to [`CoreCluster::handle`] as
//! they arrive, and ends with [`CoreCluster::flush`]. The core's coordinator receives the news and
//! the frames, and collects messages in [`LinkTable::buffer_for`].

use std::collections::VecDeque;
use std::sync::Arc;

use log::Level;

use super::links::{LinkSettings, LinkTable};
use super::{CoreCommand, CoreEvent};
use crate::cluster::dialler::LinkId;
use crate::cluster::frame::BODY_BYTES_MAX;
use crate::cluster::governor_notice::GovernorNotice;
use crate::cluster::link::{LinkEvent, Peer};
use crate::cluster::peers::BreakerChange;
use crate::cluster::version::Version;
use crate::config::{ClusterConfig, Config};
use crate::log_limiter::LogKind;
use crate::server::net_ring::{NetEvent, NetRing};
use crate::server::node::Node;

/// Room in a frame for an item's framing and for small messages beside it.
const AROUND_BYTES: u64 = 64 << 10;

/// An event that a core learns between two turns.
#[derive(Clone, Debug)]
pub enum CoreUpdate {
    /// A link was established or lost.
    Link(LinkEvent),
    /// A notice of the governor to all cores.
    Notice(GovernorNotice),
}

/// The cluster I/O of a core.
pub struct CoreCluster {
    core: u16,
    node: Arc<Node>,
    /// The links.
    pub links: LinkTable,
    commands: VecDeque<CoreCommand>,
}

impl CoreCluster {
    /// The cluster I/O of core `core`; `None` on a standalone node.
    pub fn new(core: u16, node: &Arc<Node>) -> Option<Self> {
        let cluster = node.config.cluster.as_ref()?;
        let links = LinkTable::new(LinkSettings {
            queue_bytes_max: cluster.link_queue_bytes_max as usize,
            message_bytes_max: frame_bytes_max(&node.config, cluster) as usize,
            bytes_max: (cluster.link_bytes_max / node.config.core_count() as u64) as usize,
        });
        Some(Self { core, node: node.clone(), links, commands: VecDeque::new() })
    }

    /// Whether the mailbox holds a message.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.node.mailboxes.cores[usize::from(self.core)].has_any()
    }

    /// The next news; call it until there is none, before the turn's frames.
    pub fn next_update(&mut self) -> Option<CoreUpdate> {
        if self.has_mail() {
            self.commands.extend(self.node.mailboxes.cores[usize::from(self.core)].take());
        }
        loop {
            if let Some(event) = self.links.next_event() {
                return Some(CoreUpdate::Link(event));
            }
            match self.commands.pop_front()? {
                CoreCommand::Link(link) => self.links.add(link),
                CoreCommand::Unlink(node, boot) => self.links.end_node(node, boot),
                CoreCommand::Notice(notice) => {
                    if let GovernorNotice::RestartedEmpty(_) = notice {
                        self.links.end_all();
                    }
                    return Some(CoreUpdate::Notice(notice));
                }
            }
        }
    }

    /// Handles an event of the net ring that belongs to a link, see [`LinkTable::own`].
    pub fn handle(
        &mut self,
        event: NetEvent,
        net: &mut NetRing,
        deliver: impl FnMut(&mut LinkTable, Peer, &[u8]),
    ) {
        self.links.handle(event, net, deliver);
    }

    /// Ends the turn: one send per link with output. True if there is news already: the core must
    /// not sleep.
    pub fn flush(&mut self, net: &mut NetRing) -> bool {
        self.links.flush(net);
        let (core, node) = (self.core, &self.node);
        for Peer { node: of, core } in self.links.take_bad() {
            let text = "received a forged, replayed or oversized frame";
            node.log(
                Level::Warn,
                LogKind::BadFrame,
                of,
                format_args!("closing the link to core {core} of node {:016x}: {text}", of.0),
            );
        }
        let mut any = false;
        for lost in self.links.take_lost() {
            let link = LinkId { core, peer: lost.peer };
            node.mailboxes.control.post(CoreEvent::Lost { link, serial: lost.serial });
            any = true;
        }
        if any {
            node.control_bell.ring();
        }
        self.links.has_events() || self.links.has_roomy()
    }

    /// Logs that a circuit breaker has opened or closed.
    pub fn log_breaker_change(&self, change: BreakerChange) {
        let (core, of) = (self.core, change.node);
        let (level, what) = match change.opened {
            true => (Level::Warn, "pauses requests to unresponsive"),
            false => (Level::Info, "resumes requests to"),
        };
        let line = format_args!("core {core} {what} node {:016x}", of.0);
        self.node.log(level, LogKind::Breaker, of, line);
    }

    /// Reports that all data assigned to this core up to the roster of this epoch has arrived.
    pub fn settled(&self, epoch: u64) {
        self.report(CoreEvent::Settled { core: self.core, epoch });
    }

    /// Flushes everything up to this version, on all nodes.
    pub fn flush_everywhere(&self, version: Version) {
        self.report(CoreEvent::Flush(version));
    }

    fn report(&self, event: CoreEvent) {
        self.node.mailboxes.control.post(event);
        self.node.control_bell.ring();
    }
}

/// Longest message that this node accepts: the largest item with its framing, and more.
pub fn frame_bytes_max(config: &Config, cluster: &ClusterConfig) -> u32 {
    let bytes = cluster.link_queue_bytes_max + u64::from(config.item_bytes_max) + AROUND_BYTES;
    bytes.min(BODY_BYTES_MAX as u64) as u32
}
