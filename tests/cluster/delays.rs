//! Nodes between which everything takes a while, as between sites.

use crate::THREE_COPIES;
use crate::counters::Steps;
use crate::load::{Load, Plan};
use crate::nodes::{CLUSTER_PORT, Cluster, Node, loopback};
use crate::relay::Relay;

/// In each direction, so that a round trip takes 20 to 200 ms.
const MILLIS: std::ops::Range<u64> = 10..100;

#[test]
fn a_slow_network_makes_it_slower_and_breaks_nothing() {
    let places: Vec<_> = (0..3).map(|_| (loopback(), loopback())).collect();
    let relay = Relay::start(&places, MILLIS);
    let front = |at: usize| format!("{}:{CLUSTER_PORT}", places[at].0);
    let nodes = (0..3).map(|at| {
        let (front, first) = (front(at), front(0));
        let mut flags = THREE_COPIES.to_vec();
        flags.extend(["-m", "64", "-t", "1", "--cluster-advertise", &front]);
        if at > 0 {
            flags.extend(["--join", &first]);
        }
        Node::new_at(places[at].1, &[], &format!("n{at}"), None, &flags)
    });
    let Some(cluster) = Cluster::of(nodes.collect()) else { return };
    let addresses = cluster.addresses();
    let load = Load::start("slow", &addresses, Plan { clients: 9, keys: 6, may_miss: false });
    let steps = Steps::start("slow-count", &addresses, 6, 3);
    load.run_for_requests(300);
    steps.run_for_steps(30);
    let (outcome, account) = (load.stop(), steps.stop());
    outcome.assert_truthful();
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    for address in &addresses {
        outcome.account(*address, false);
    }
    account.settle(&addresses);
    drop(relay);
}
