//! I/O of the cluster: sockets, clocks and randomness for the decisions of `ringlane-cluster`.
//!
//! ```text
//! control executor                                   each core
//!   gossip      UDP datagrams  <-> governor            links  frames <-> coordinator
//!   dialler     connects       --- handshake ---.
//!   listener    accepts        --- handshake ---+--> mailbox: ready links, views, liveness
//!   node links  frames         <-> governor     <--- reports: lost links, what is settled
//! ```
//!
//! The control executor establishes connections and performs handshakes, since waiting there delays
//! no client; afterwards a connection lives on the net ring of its core.

use crate::cluster::dialler::LinkId;
use crate::cluster::governor_notice::GovernorNotice;
use crate::cluster::identity::{Boot, NodeKey};
use crate::cluster::version::Version;

pub mod core;
pub mod driver;
pub mod handshake_io;
mod leaving;
pub mod links;
pub mod mailbox;
mod members;
mod node_links;
pub mod sockets;

use links::NewLink;
use mailbox::Mailbox;

/// A message from the control executor to a core.
#[derive(Debug)]
pub enum CoreCommand {
    /// A link with a core of another node.
    Link(NewLink),
    /// Close links with this boot of a node or earlier ones.
    Unlink(NodeKey, Boot),
    /// A notice for all cores. All links close when the node begins a new boot.
    Notice(GovernorNotice),
}

/// A message from a core to the control executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreEvent {
    /// A link of this core is gone.
    Lost {
        /// Its two ends.
        link: LinkId,
        /// The dial it came from.
        serial: u64,
    },
    /// All data assigned to the core up to the roster of this epoch has arrived.
    Settled {
        /// The core.
        core: u16,
        /// The epoch.
        epoch: u64,
    },
    /// A client flushes everything up to this version, on all nodes.
    Flush(Version),
}

/// Mailboxes between the cores and the control executor.
#[derive(Debug)]
pub struct Mailboxes {
    /// One per core. Ring its doorbell afterwards.
    pub cores: Box<[Mailbox<CoreCommand>]>,
    /// For the control executor. Ring its bell afterwards.
    pub control: Mailbox<CoreEvent>,
}

impl Mailboxes {
    /// Empty mailboxes for `core_count` cores.
    pub fn new(core_count: usize) -> Self {
        Self {
            cores: (0..core_count).map(|_| Mailbox::default()).collect(),
            control: Mailbox::default(),
        }
    }
}
