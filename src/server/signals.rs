//! What signals do to a node.
//!
//! | signal | what happens |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGUSR1 | the node leaves its cluster and stops; a second one does not wait for others. SIGUSR1 is memcached's for a graceful stop |
//! | SIGHUP, SIGUSR2 | nothing but a line in the log: no setting is read again while a node runs |
//! | SIGPIPE | nothing; Rust's runtime has it ignored |
//! | SIGQUIT | the kernel's default: the process ends at once with a core dump, which is what one sends it for |

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator;
use signal_hook::low_level::signal_name;

use super::node::Node;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// That the node ends in order.
    End,
    /// What this node does not offer.
    Nothing,
}

/// All signals that are taken from the kernel's hands.
const TAKEN: [(i32, Wish); 5] = [
    (SIGTERM, Wish::End),
    (SIGINT, Wish::End),
    (SIGUSR1, Wish::End),
    (SIGHUP, Wish::Nothing),
    (SIGUSR2, Wish::Nothing),
];

/// The signals to this process. From the moment it exists none of them kills; those that arrive
/// before a node is there to be told are kept for it.
#[derive(Debug)]
pub struct Signals(iterator::Signals);

impl Signals {
    /// Takes them.
    ///
    /// # Errors
    /// When the process has no descriptors left for it.
    pub fn take() -> io::Result<Self> {
        iterator::Signals::new(TAKEN.map(|(signal, _)| signal)).map(Self)
    }

    /// Tells `node` from now on.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn tell(self, node: Arc<Node>) -> io::Result<Listening> {
        let Self(mut signals) = self;
        let handle = signals.handle();
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
            let mut earlier = 0;
            for signal in signals.forever() {
                act(signal, &mut earlier, &node);
            }
        })?;
        Ok(Listening { handle, thread })
    }
}

/// The thread that waits for signals.
#[derive(Debug)]
pub struct Listening {
    handle: iterator::Handle,
    thread: JoinHandle<()>,
}

impl Listening {
    /// Ends the thread. Signals go unheard from then on.
    pub fn end(self) {
        self.handle.close();
        let _ = self.thread.join();
    }
}

/// Does what `signal` asks for; `earlier` counts those that asked for the end.
fn act(signal: i32, earlier: &mut u32, node: &Node) {
    let name = signal_name(signal).unwrap_or("a signal");
    let wish = TAKEN.into_iter().find(|&(taken, _)| taken == signal).map(|(_, wish)| wish);
    match wish {
        Some(Wish::End) if *earlier == 0 => {
            log::info!("{name}: shutting down");
            node.leave();
        }
        Some(Wish::End) => {
            log::warn!("{name} again: shutting down without waiting for others");
            node.hurry();
        }
        Some(Wish::Nothing) | None => {
            log::warn!("{name} ignored: settings change only by a restart");
        }
    }
    *earlier += u32::from(wish == Some(Wish::End));
}
