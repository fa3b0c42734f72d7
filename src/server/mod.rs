//! The I/O shell around the pure crates: executors, sockets, clock, signals. Nowhere else.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;

use glommio::{GlommioError, LocalExecutorBuilder, Placement};

use crate::cluster::coordinator::Coordinator;
use crate::cluster::identity::NodeKey;
use crate::config::Config;
use crate::engine::PrefixCounters;
use crate::engine::{Engine, EngineConfig};
use crate::hash::HashSecret;

mod admin;
pub mod clock;
pub mod cluster;
mod commands;
pub mod connection;
mod connection_memory;
mod control_executor;
pub mod core_message;
mod core_state;
mod glommio_fd;
pub mod host;
mod http;
pub mod listener;
pub mod log_writer;
pub mod mesh;
pub mod net_ring;
pub mod node;
mod owned_path;
mod pending;
pub mod pid_file;
pub mod poll_policy;
pub mod prefault;
pub mod preflight;
mod process;
#[cfg(test)]
mod scratch;
pub mod signals;
mod stalled;
pub mod stats_collector;
mod topology;
mod unix_socket;
mod uploads;
pub mod worker;

use listener::Listener;
use log_writer::LogWriter;
use mesh::{Doorbell, Mesh};
use net_ring::{NetRing, NetRingConfig};
use node::Node;
use pid_file::PidFileError;
use prefault::{PrefaultSender, Prefaulter};
use signals::Signals;
use worker::{Worker, WorkerParts};

/// Bytes that each glommio reactor registers with the kernel, three times. Nothing large is read or
/// written through it.
const REACTOR_MEMORY_BYTES: usize = 64 << 10;
/// Submission queue entries of a net ring.
const NET_RING_ENTRIES: u32 = 1024;

/// Why the server could not start or had to stop.
#[derive(Debug)]
pub enum ServerError {
    /// An address or path cannot be listened on.
    Listen {
        /// The address or path.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// A core could not start.
    Core {
        /// Its CPU.
        cpu: usize,
        /// Why.
        reason: String,
    },
    /// Signals cannot be received.
    Signals(io::Error),
    /// An eventfd cannot be created.
    Doorbell(io::Error),
    /// The kernel provides no random numbers.
    Random(io::Error),
    /// The control executor could not start.
    Control(io::Error),
    /// The prefault thread could not start.
    Prefault(io::Error),
    /// The process id cannot be written.
    PidFile(PidFileError),
    /// Another process has taken this node's place in its cluster.
    Superseded {
        /// The id that both use.
        node_id: String,
        /// Address of the other one.
        by: SocketAddr,
    },
}

impl ServerError {
    /// The exit code of the process. A place in the cluster may become free later, so this code
    /// differs from that of errors that a restart does not fix.
    pub fn exit_code(&self) -> u8 {
        match self {
            ServerError::Superseded { .. } => 3,
            _ => 1,
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerError::Listen { address, error } => {
                write!(f, "cannot listen on {address}: {error}")
            }
            ServerError::Core { cpu, reason } => {
                write!(f, "cannot start a core on CPU {cpu}: {reason}")
            }
            ServerError::Signals(error) => write!(f, "cannot receive signals: {error}"),
            ServerError::Doorbell(error) => write!(f, "cannot create an eventfd: {error}"),
            ServerError::Random(error) => {
                write!(f, "cannot get random hash keys from the kernel: {error}")
            }
            ServerError::Control(error) => {
                write!(f, "cannot start the control executor: {error}")
            }
            ServerError::Prefault(error) => write!(
                f,
                "cannot start the prefault thread ({error}): raise the limit with `ulimit -u` or \
                 TasksMax of the systemd unit"
            ),
            ServerError::PidFile(error) => write!(f, "{error}"),
            ServerError::Superseded { node_id, by } => write!(
                f,
                "another process runs as node {node_id} at {by}: stop it, or give one of the two \
                 another --node-id"
            ),
        }
    }
}

impl std::error::Error for ServerError {}

/// Runs a node until a signal (see [`signals`]) or a client stops it. Log lines go to `log` through
/// the `log` crate.
///
/// # Errors
/// If it cannot start. Once it runs, a failing core ends the process.
pub fn run(config: Config, signals: Signals, log: &LogWriter) -> Result<(), ServerError> {
    end_process_on_panic(log.clone());
    let core_count = config.core_count();
    let listeners = (0..core_count)
        .map(|core| listener::open(&config, core))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|(address, error)| ServerError::Listen { address, error })?;
    let admin =
        admin::open(&config).map_err(|(address, error)| ServerError::Listen { address, error })?;
    let others = cluster::sockets::open(&config)
        .map_err(|(address, error)| ServerError::Listen { address, error })?;
    let doorbells = (0..core_count)
        .map(|_| eventfd().map(Doorbell::new))
        .collect::<io::Result<Arc<[_]>>>()
        .map_err(ServerError::Doorbell)?;
    let meshes = mesh::build(core_count, config.queues.mesh_ring_bytes as usize, doorbells.clone());
    let hash_seed = random_seed();
    let hash_secret = draw_secret().map_err(ServerError::Random)?;
    let control_bell = eventfd().map(Doorbell::new).map_err(ServerError::Doorbell)?;
    let node = Arc::new(Node::new(config, doorbells, control_bell));

    let (prefault_sender, _) = prefault::start().map_err(ServerError::Prefault)?;
    let (started, starts) = mpsc::channel();
    let mut cores = Vec::new();
    for ((core, mesh), listeners) in (0..core_count).zip(meshes).zip(listeners) {
        let cpu = node.config.cpus[core];
        let (node, prefault_sender) = (node.clone(), prefault_sender.clone());
        let hash_secret = hash_secret.clone();
        let parts =
            CoreParts { core, mesh, listeners, hash_seed, hash_secret, node, prefault_sender };
        let started = started.clone();
        let handle = LocalExecutorBuilder::new(Placement::Fixed(cpu))
            .name(&format!("core-{core}"))
            .io_memory(REACTOR_MEMORY_BYTES)
            .spawn(move || run_core(parts, started))
            .map_err(|error| ServerError::Core { cpu, reason: thread_refusal(&error) })?;
        cores.push(handle);
    }
    drop((started, prefault_sender));
    for (core, outcome) in starts.iter().take(core_count) {
        outcome.map_err(|error: io::Error| ServerError::Core {
            cpu: node.config.cpus[core],
            reason: error.to_string(),
        })?;
    }
    let pid_file = node.config.pid_file.as_deref().map(pid_file::write);
    let pid_file = pid_file.transpose().map_err(ServerError::PidFile)?;
    let control = control_executor::start(node.clone(), admin, others, hash_seed)
        .map_err(ServerError::Control)?;
    announce(&node);

    let listening = signals.deliver_to(node.clone()).map_err(ServerError::Signals)?;
    for handle in cores {
        let _ = handle.join();
    }
    node.end();
    let _ = control.join();
    listening.end();
    drop(pid_file);
    log::info!("stopped after {:.1} s", node.clock.uptime().as_secs_f64());
    match (node.superseded_by(), &node.config.cluster) {
        (Some(by), Some(cluster)) => {
            Err(ServerError::Superseded { node_id: cluster.node_id.clone(), by })
        }
        _ => Ok(()),
    }
}

struct CoreParts {
    core: usize,
    mesh: Mesh,
    listeners: Vec<Listener>,
    hash_seed: u64,
    hash_secret: HashSecret,
    node: Arc<Node>,
    prefault_sender: PrefaultSender,
}

async fn run_core(parts: CoreParts, started: mpsc::Sender<(usize, io::Result<()>)>) {
    let CoreParts { core, mesh, listeners, hash_seed, hash_secret, node, prefault_sender } = parts;
    let config = &node.config;
    let hash_secret = Rc::new(hash_secret);
    let mut engine = Engine::new(EngineConfig {
        core: core as u32,
        core_count: config.core_count() as u32,
        hash_seed,
        hash_secret: hash_secret.clone(),
        shard: config.shard(),
        default_ttl: config.default_ttl,
        pipeline_requests_max: config.queues.pipeline_depth_max as usize,
        pipeline_bytes_max: config.queues.pipeline_bytes_max as usize,
    });
    engine.finishing.hides_cas = !config.permissions.cas;
    engine.finishing.prefixes = config.prefix_delimiter.map(|delimiter| {
        let mut prefixes = PrefixCounters::new(delimiter);
        prefixes.switch(true);
        prefixes
    });
    if let Some(cluster) = &config.cluster {
        let settings = cluster.coordinator(core, config.core_count(), hash_secret);
        let me = NodeKey::of(&cluster.node_id);
        let coordinator = Coordinator::new(me, node.boot, settings);
        engine.join_cluster(coordinator, &cluster.retention());
    }
    process::prefer_huge_pages(engine.shard.memory_mut());
    let mut prefaulter = Prefaulter::new(engine.shard.memory_mut(), prefault_sender);
    if config.lock_memory
        && let Err(error) = prefaulter.lock_all()
    {
        let error = io::Error::other(format!("cannot lock its memory: {error}"));
        let _ = started.send((core, Err(error)));
        return;
    }
    let ring = NetRingConfig {
        entries: NET_RING_ENTRIES,
        buffer_count: config.queues.receive_buffers,
        buffer_bytes: config.queues.receive_buffer_bytes,
    };
    let net = node.doorbells[core]
        .eventfd()
        .try_clone_to_owned()
        .and_then(|wakeup| NetRing::new(ring, wakeup));
    let net = match net {
        Ok(net) => net,
        Err(error) => {
            let _ = started.send((core, Err(error)));
            return;
        }
    };
    let _ = started.send((core, Ok(())));
    drop(started);
    Worker::new(WorkerParts { net, mesh, engine, node, listeners, prefaulter }).run().await;
}

/// Why a core's thread could not be started, with the fix if there is one.
fn thread_refusal(error: &GlommioError<()>) -> String {
    match error {
        GlommioError::IoError(io) if io.kind() == io::ErrorKind::WouldBlock => {
            "the thread limit is reached: raise it with `ulimit -u` or TasksMax of the systemd \
             unit, or use fewer --cores"
                .into()
        }
        error => error.to_string(),
    }
}

/// A panicking core must not leave a silently dead shard behind.
fn end_process_on_panic(log: LogWriter) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let mut report = format!("thread '{name}' {panic}\n");
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            report += &trace.to_string();
        }
        // By the log's own thread: with stderr full, the hook of the standard library would wait
        // for its reader, and the process would neither end nor serve.
        let _ = log.clone().write_all(report.as_bytes());
        log::error!("a core failed; the process exits rather than serve only part of the keys");
        log.flush_within_patience();
        std::process::exit(101);
    }));
}

fn eventfd() -> io::Result<OwnedFd> {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).map_err(io::Error::from)
}

/// The keys of the secret hash, from the kernel: other random numbers of the process, which may
/// become known, must reveal nothing about them.
fn draw_secret() -> io::Result<HashSecret> {
    let mut failed = None;
    let secret = HashSecret::drawn(|| {
        let mut word = [0; 8];
        // This few bytes come whole or not at all.
        let got = rustix::rand::getrandom(&mut word[..], rustix::rand::GetRandomFlags::empty());
        failed = got.err().or(failed);
        u64::from_ne_bytes(word)
    });
    failed.map_or(Ok(secret), |error| Err(error.into()))
}

/// An unpredictable number that differs between processes.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn announce(node: &Node) {
    let config = &node.config;
    let addresses: Vec<String> = config
        .listen
        .iter()
        .map(|address| std::net::SocketAddr::new(*address, config.port).to_string())
        .chain(config.unix_socket.iter().map(|unix| unix.path.display().to_string()))
        .collect();
    let cores = config.core_count();
    log::info!(
        "ringlane {} ready on {}: {cores} core{}, {} MiB",
        env!("CARGO_PKG_VERSION"),
        addresses.join(", "),
        if cores == 1 { "" } else { "s" },
        config.memory_bytes >> 20
    );
}
