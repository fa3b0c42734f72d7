//! The control executor: unpinned, for work that must not share a core's turns.
//!
//! It serves the admin pages and represents the node in its cluster. It stops after the cores, so
//! that `/health` reports until the end that the node is stopping.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use socket2::Socket;

use super::cluster::driver::ClusterDriver;
use super::cluster::sockets::ClusterSockets;
use super::node::Node;
use super::stats_collector::StatsCollector;
use super::{REACTOR_MEMORY_BYTES, admin, glommio_fd};

/// Starts it; it runs until [`Node::end`].
///
/// # Errors
/// If the kernel refuses its rings or its thread.
pub fn start(
    node: Arc<Node>,
    admin: Option<Socket>,
    others: Option<ClusterSockets>,
    hash_seed: u64,
) -> io::Result<ExecutorJoinHandle<()>> {
    LocalExecutorBuilder::new(Placement::Unbound)
        .name("control")
        .io_memory(REACTOR_MEMORY_BYTES)
        .spawn(move || run(node, admin, others, hash_seed))
        .map_err(|error| io::Error::other(error.to_string()))
}

async fn run(
    node: Arc<Node>,
    admin: Option<Socket>,
    others: Option<ClusterSockets>,
    hash_seed: u64,
) {
    let stats_collector = Rc::new(StatsCollector::new(node.clone()));
    let pages = admin.map(|socket| {
        let listener = glommio_fd::listener(socket);
        glommio::spawn_local(admin::serve(listener, node.clone(), stats_collector.clone()))
    });
    let cluster = node.config.cluster.as_ref().zip(others).map(|(config, sockets)| {
        ClusterDriver::start(node.clone(), stats_collector.clone(), config, sockets, hash_seed)
            .unwrap_or_else(|error| panic!("cannot join the cluster: {error}"))
    });
    if let Ok(eventfd) = node.control_bell.eventfd().try_clone_to_owned() {
        let bell = glommio_fd::eventfd_file(eventfd);
        while !node.has_ended() {
            let _ = bell.read_at(0, 8).await;
            if let Some(cluster) = &cluster {
                cluster.on_wake();
            }
        }
        let _ = bell.close().await;
    }
    if let Some(pages) = pages {
        pages.cancel().await;
    }
}
