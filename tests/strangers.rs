//! What a stranger to the cluster can do to nodes that it reaches: nothing that lasts, and nothing
//! that costs them much. Real nodes, attacked over real sockets.

#[path = "strangers/forgers.rs"]
mod forgers;
#[path = "strangers/logs.rs"]
mod logs;
#[path = "strangers/namesakes.rs"]
mod namesakes;

mod live;
#[path = "cluster/nodes.rs"]
mod nodes;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nodes::Node;

/// A file in the build directory.
fn scratch(name: &str, contents: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, contents).expect("the scratch directory is writable");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
    path
}

/// A node of one core, alone in its cluster. `None` where the host forbids io_uring.
fn alone(id: &str, flags: &[&str]) -> Option<Node> {
    let flags = [&["-m", "64", "-t", "1"], flags].concat();
    let mut node = Node::new(id, None, &flags);
    if !node.start() {
        return None;
    }
    nodes::wait_for("the node to found its cluster", || node.client().ask("get a") == "END");
    Some(node)
}
