//! A second process with the id of a node: by mistake, under a supervisor, or in its place.

use crate::nodes::{Cluster, Node, wait_for};

/// The exit code that says that a node's place is taken.
const TAKEN: i32 = 3;

fn newcomer(cluster: &Cluster) -> Node {
    let mut node = Node::new("n1", cluster.nodes.first(), &["-m", "64", "-t", "1"]);
    assert!(node.start(), "others have started");
    node
}

#[test]
fn a_namesake_of_a_living_node_gives_way_and_of_a_dead_one_takes_its_place() {
    let Some(mut cluster) = Cluster::form(3, &[]) else { return };
    // As a supervisor starts it again and again.
    for _ in 0..3 {
        let mut node = newcomer(&cluster);
        let mut code = None;
        wait_for("the newcomer to end", || {
            code = node.exit_code();
            code.is_some()
        });
        let said = node.said();
        assert_eq!(code, Some(TAKEN), "{said}");
        let sentence = said.lines().last().expect("it said why");
        let there = cluster.nodes[1].cluster_address().to_string();
        assert!(sentence.starts_with("ringlane: another process runs as node n1 at"), "{said}");
        assert!(sentence.contains(&there) && sentence.contains("--node-id"), "{said}");
    }
    for node in &mut cluster.nodes {
        assert_eq!(node.exit_code(), None, "{}", node.said());
    }
    cluster.wait_ready();
    // At another address, right after the former life was killed.
    cluster.nodes[1].kill();
    let node = newcomer(&cluster);
    cluster.nodes[1] = node;
    cluster.wait_ready();
}

#[test]
fn a_node_that_was_replaced_while_it_slept_ends_and_its_replacement_stays() {
    let Some(mut cluster) = Cluster::form(3, &["--probe-period", "300ms", "--dead-after", "1s"])
    else {
        return;
    };
    cluster.nodes[1].freeze();
    cluster.wait_state(1, "dead");
    let mut node = Node::new(
        "n1",
        cluster.nodes.first(),
        &["-m", "64", "-t", "1", "--probe-period", "300ms", "--dead-after", "1s"],
    );
    assert!(node.start(), "others have started");
    let mut former = std::mem::replace(&mut cluster.nodes[1], node);
    cluster.wait_ready();
    former.resume();
    let mut code = None;
    wait_for("the former one to end", || {
        code = former.exit_code();
        code.is_some()
    });
    assert_eq!(code, Some(TAKEN), "{}", former.said());
    cluster.wait_ready();
}
