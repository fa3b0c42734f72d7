//! Nodes in network namespaces, joined by veth pairs and a bridge, between which packets are lost:
//! all of them in both directions or in one, or some at random.
//!
//! This needs root, `ip` and `nft`; where the host does not permit it, each test says so and ends.
//! The clients live where the bridge is and reach every node at all times.

#[path = "partitions/network.rs"]
mod network;

#[path = "cluster/counters.rs"]
mod counters;
mod live;
#[path = "cluster/load.rs"]
mod load;
#[path = "cluster/nodes.rs"]
mod nodes;

use std::time::{Duration, Instant};

use counters::Steps;
use load::{Load, Plan};
use network::Network;
use nodes::{Cluster, Node, wait_for};

const FLAGS: &str = "--replicas 3 --write-quorum 2 --read-quorum 2 --probe-period 300ms \
                     --dead-after 1s --operation-timeout 1s --cluster-insecure -m 64 -t 1";
const PLAN: Plan = Plan { clients: 3, keys: 40, may_miss: false };
/// Longest time without service on the side that has a quorum, and after healing on the other.
const GAP_MAX: Duration = Duration::from_secs(3);

/// Runs `test` with three nodes in a network of their own, if that can be had here.
fn with_three_nodes(test: impl FnOnce(&Network, &mut Cluster) + Send + 'static) {
    // The thread moves into the network, and all that it starts is born there.
    let thread = std::thread::spawn(|| {
        let Some(network) = Network::of(3) else { return };
        network.enter();
        let mut nodes: Vec<Node> = Vec::new();
        for host in 0..3 {
            let (prefix, id) = (network.inside(host), format!("n{host}"));
            let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
            let address = Network::address(host);
            let flags: Vec<&str> = FLAGS.split_whitespace().collect();
            nodes.push(Node::new_at(address, &prefix, &id, nodes.first(), &flags));
        }
        let Some(mut cluster) = Cluster::of(nodes) else { return };
        test(&network, &mut cluster);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Cuts the third node off as `cut` does, with clients on both sides, and heals the network again.
fn the_majority_goes_on_and_the_minority_says_so(cut: fn(&Network)) {
    with_three_nodes(move |network, cluster| {
        let addresses = cluster.addresses();
        let mut reader = cluster.nodes[2].client();
        reader.store("witness", b"before");
        let major = Load::start("major", &addresses[..2], PLAN);
        let minor = Load::start("minor", &addresses[2..], Plan { clients: 1, ..PLAN });
        major.run_for_requests(500);
        cut(network);
        let was_cut = Instant::now();
        wait_for("the third to be dead to the others", || {
            cluster.nodes[..2].iter().all(|node| node.view()["member:n2:state"] == "dead")
        });
        cluster.nodes[0].client().store("witness", b"after");
        for _ in 0..3 {
            let answer = reader.ask("get witness");
            assert!(answer.starts_with("SERVER_ERROR"), "a node without a quorum says {answer:?}");
        }
        let answer = reader.try_store("witness", b"from the minority");
        assert!(answer.starts_with("SERVER_ERROR"), "a node without a quorum says {answer:?}");
        major.run_for_requests(2000);
        network.heal();
        let healed = Instant::now();
        cluster.wait_ready();
        println!("one cluster again {:?} after healing", healed.elapsed());
        for node in &cluster.nodes {
            let value = node.client().fetch("witness").expect("it was acknowledged");
            assert!(value == b"after" || value == b"from the minority", "{value:?}");
        }
        std::thread::sleep(GAP_MAX.saturating_sub(healed.elapsed()));
        minor.run_for_requests(500);
        major.run_for_requests(500);
        let (major, minor) = (major.stop(), minor.stop());
        major.assert_truthful();
        minor.assert_truthful();
        assert!(!minor.errors.is_empty(), "the minority went on as if nothing were missing");
        major.assert_no_error_between(was_cut + GAP_MAX, healed);
        // The minority took the others for dead and says so when it is heard again; they refute.
        major.assert_no_error_after(healed + GAP_MAX);
        minor.assert_no_error_after(healed + GAP_MAX);
        assert!(major.longest_gap < GAP_MAX, "no service for {:?}", major.longest_gap);
        for address in addresses {
            major.account(address, false);
            minor.account(address, false);
        }
    });
}

#[test]
fn a_partition_stops_the_minority_only_and_heals_by_itself() {
    the_majority_goes_on_and_the_minority_says_so(|network| {
        for other in 0..2 {
            network.drop_packets(2, other);
            network.drop_packets(other, 2);
        }
    });
}

#[test]
fn a_node_that_is_not_heard_stops_alone_and_heals_by_itself() {
    the_majority_goes_on_and_the_minority_says_so(|network| {
        for other in 0..2 {
            network.drop_packets(2, other);
        }
    });
}

#[test]
fn a_node_that_hears_nobody_stops_alone_and_heals_by_itself() {
    the_majority_goes_on_and_the_minority_says_so(|network| {
        for other in 0..2 {
            network.drop_packets(other, 2);
        }
    });
}

#[test]
fn two_nodes_that_do_not_hear_each_other_lose_nothing_and_go_on() {
    with_three_nodes(|network, cluster| {
        let addresses = cluster.addresses();
        let load = Load::start("apart", &addresses, PLAN);
        let steps = Steps::start("apart-count", &addresses, 3, 3);
        load.run_for_requests(500);
        network.drop_packets(0, 1);
        network.drop_packets(1, 0);
        let was_cut = Instant::now();
        load.run_for_requests(1000);
        steps.run_for_steps(200);
        std::thread::sleep(Duration::from_secs(3).saturating_sub(was_cut.elapsed()));
        println!("cut for {:?}", was_cut.elapsed());
        network.heal();
        let healed = Instant::now();
        cluster.wait_ready();
        std::thread::sleep(GAP_MAX.saturating_sub(healed.elapsed()));
        load.run_for_requests(300);
        steps.run_for_steps(100);
        let (outcome, account) = (load.stop(), steps.stop());
        outcome.assert_truthful();
        outcome.assert_no_error_after(healed + GAP_MAX);
        account.assert_no_error_after(healed + GAP_MAX);
        assert!(outcome.longest_gap < GAP_MAX, "no service for {:?}", outcome.longest_gap);
        for address in &addresses {
            outcome.account(*address, false);
        }
        account.settle(&addresses);
    });
}

#[test]
fn lost_packets_make_it_slower_and_lose_nothing() {
    with_three_nodes(|network, cluster| {
        let load = Load::start("loss", &cluster.addresses(), PLAN);
        load.run_for_requests(500);
        network.lose_percent(5);
        let lossy = Instant::now();
        load.run_for_requests(2000);
        println!("2000 requests with lost packets took {:?}", lossy.elapsed());
        network.heal();
        let healed = Instant::now();
        cluster.wait_ready();
        load.run_for_requests(500);
        std::thread::sleep(GAP_MAX.saturating_sub(healed.elapsed()));
        load.run_for_requests(500);
        let outcome = load.stop();
        outcome.assert_truthful();
        outcome.assert_no_error_after(healed + GAP_MAX);
        for address in cluster.addresses() {
            outcome.account(address, false);
        }
    });
}
