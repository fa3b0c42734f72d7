//! Signal handling.
//!
//! | signal | what happens |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGUSR1 | the node leaves its cluster and stops; a second signal skips the wait for other nodes. SIGUSR1 is memcached's graceful stop |
//! | SIGHUP, SIGUSR2 | only a log line: settings are not reloaded at runtime |
//! | SIGPIPE | ignored by Rust's runtime |
//! | SIGQUIT | the kernel's default: the process ends at once with a core dump, its purpose |

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator;
use signal_hook::low_level::signal_name;

use super::node::Node;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignalAction {
    /// A graceful stop.
    Stop,
    /// Something this node does not support.
    Ignore,
}

/// All handled signals.
const HANDLED: [(i32, SignalAction); 5] = [
    (SIGTERM, SignalAction::Stop),
    (SIGINT, SignalAction::Stop),
    (SIGUSR1, SignalAction::Stop),
    (SIGHUP, SignalAction::Ignore),
    (SIGUSR2, SignalAction::Ignore),
];

/// The signals to this process. Once it exists none of them kills the process; those that arrive
/// before the node runs are kept for it.
#[derive(Debug)]
pub struct Signals(iterator::Signals);

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the process has no file descriptors left.
    pub fn install() -> io::Result<Self> {
        iterator::Signals::new(HANDLED.map(|(signal, _)| signal)).map(Self)
    }

    /// Delivers signals to `node` from now on.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn deliver_to(self, node: Arc<Node>) -> io::Result<SignalThread> {
        let Self(mut signals) = self;
        let handle = signals.handle();
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
            let mut earlier = 0;
            for signal in signals.forever() {
                act(signal, &mut earlier, &node);
            }
        })?;
        Ok(SignalThread { handle, thread })
    }
}

/// The thread that waits for signals.
#[derive(Debug)]
pub struct SignalThread {
    handle: iterator::Handle,
    thread: JoinHandle<()>,
}

impl SignalThread {
    /// Stops the thread. Signals are ignored from then on.
    pub fn end(self) {
        self.handle.close();
        let _ = self.thread.join();
    }
}

/// Handles `signal`; `earlier` counts previous requests to stop.
fn act(signal: i32, earlier: &mut u32, node: &Node) {
    let name = signal_name(signal).unwrap_or("a signal");
    let action = HANDLED.into_iter().find(|&(taken, _)| taken == signal).map(|(_, action)| action);
    match action {
        Some(SignalAction::Stop) if *earlier == 0 => {
            log::info!("{name}: shutting down");
            node.leave();
        }
        Some(SignalAction::Stop) => {
            log::warn!("{name} again: shutting down without waiting for other nodes");
            node.hurry();
        }
        Some(SignalAction::Ignore) | None => {
            log::warn!("{name} ignored: settings change only with a restart");
        }
    }
    *earlier += u32::from(action == Some(SignalAction::Stop));
}
