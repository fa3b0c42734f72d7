//! The node among others: sockets, clocks and randomness for what `cluster` decides.
//!
//! ```text
//! control executor                                   each core
//!   gossip      UDP datagrams  <-> governor            links  frames <-> coordinator
//!   dialler     connects       --- handshake ---.
//!   listener    accepts        --- handshake ---+--> mailbox: ready links, views, liveness
//!   node links  frames         <-> governor     <--- reports: lost links, what is settled
//! ```
//!
//! Connections are made and shaken hands over on the control executor, where waiting harms nobody,
//! and live on the net ring of the core they are for.

use crate::cluster::dialler::LinkId;
use crate::cluster::governor_notice::GovernorNotice;
use crate::cluster::identity::{Boot, NodeKey};
use crate::cluster::version::Version;

pub mod control;
pub mod core;
mod leaving;
pub mod links;
pub mod mailbox;
pub mod meet;
mod members;
mod node_links;
pub mod sockets;

use links::NewLink;
use mailbox::Mailbox;

/// What the control executor tells a core.
#[derive(Debug)]
pub enum Letter {
    /// A link with a core of another node.
    Link(NewLink),
    /// Links with this life of a node, or earlier ones, shall end.
    Unlink(NodeKey, Boot),
    /// What all cores must know. All links end with the node's life.
    Notice(GovernorNotice),
}

/// What a core tells the control executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A link of this core is gone.
    Lost {
        /// Between whom.
        link: LinkId,
        /// The dial it came from.
        serial: u64,
    },
    /// All that became the core's own up to the roster of this epoch has arrived.
    Settled {
        /// The core.
        core: u16,
        /// The epoch.
        epoch: u64,
    },
    /// A client wants everything of a version up to this one gone, on all nodes.
    Flush(Version),
}

/// Where cores and control executor leave word for each other.
#[derive(Debug)]
pub struct Mail {
    /// For each core. Its doorbell is to be rung afterwards.
    pub cores: Box<[Mailbox<Letter>]>,
    /// For the control executor. Its bell is to be rung afterwards.
    pub control: Mailbox<Report>,
}

impl Mail {
    /// Empty boxes for so many cores.
    pub fn new(core_count: usize) -> Self {
        Self {
            cores: (0..core_count).map(|_| Mailbox::default()).collect(),
            control: Mailbox::default(),
        }
    }
}
