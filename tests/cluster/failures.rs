//! Nodes that die and nodes that hang, under load.

use std::time::{Duration, Instant};

use crate::THREE_COPIES;
use crate::counters::Steps;
use crate::load::{Load, Plan};
use crate::nodes::{Cluster, wait_for};

const PLAN: Plan = Plan { clients: 4, keys: 50, may_miss: false };

/// Longest time without service for any key after a node was killed.
const GAP_MAX: Duration = Duration::from_secs(3);

#[test]
fn a_killed_node_costs_no_acknowledged_write_and_is_filled_when_it_is_back() {
    let Some(mut cluster) = Cluster::form(3, &THREE_COPIES) else { return };
    let others = cluster.addresses()[..2].to_vec();
    let load = Load::start("kill", &others, PLAN);
    load.run_for_requests(1000);
    cluster.nodes[2].kill();
    let killed = Instant::now();
    std::thread::sleep(Duration::from_secs(4));
    load.run_for_requests(1000);
    let restarted = Instant::now();
    assert!(cluster.nodes[2].start());
    cluster.wait_ready();
    println!("filled {:?} after its start", restarted.elapsed());
    load.run_for_requests(1000);
    let outcome = load.stop();
    outcome.assert_truthful();
    outcome.assert_no_error_after(killed + GAP_MAX);
    assert!(outcome.longest_gap < GAP_MAX, "no service for {:?}", outcome.longest_gap);
    for node in cluster.addresses() {
        outcome.account(node, false);
    }
    // What is still there with another node gone can only come from the restarted one.
    cluster.nodes[0].kill();
    for node in cluster.addresses() {
        outcome.account(node, false);
    }
}

#[test]
fn a_killed_node_costs_no_acknowledged_step_of_a_counter() {
    let Some(mut cluster) = Cluster::form(3, &THREE_COPIES) else { return };
    let others = cluster.addresses()[..2].to_vec();
    let steps = Steps::start("steps", &cluster.addresses(), 6, 4);
    steps.run_for_steps(500);
    cluster.nodes[2].kill();
    let killed = Instant::now();
    steps.run_for_steps(1500);
    std::thread::sleep(GAP_MAX.saturating_sub(killed.elapsed()));
    assert!(cluster.nodes[2].start());
    steps.run_for_steps(500);
    cluster.wait_ready();
    steps.run_for_steps(500);
    let account = steps.stop();
    account.settle(&cluster.addresses());
    // What is still there with another node gone can only come from the restarted one.
    cluster.nodes[0].kill();
    account.settle(&others[1..]);
}

#[test]
fn a_node_that_hung_for_a_while_answers_nothing_old() {
    let flags = ["--probe-period", "300ms", "--dead-after", "1s"];
    let Some(mut cluster) = Cluster::form(3, &[&THREE_COPIES[..], &flags].concat()) else { return };
    let (all, others) = (cluster.addresses(), cluster.addresses()[..2].to_vec());
    let load = Load::start("hang", &others, PLAN);
    load.run_for_requests(500);
    cluster.nodes[2].freeze();
    cluster.wait_state(2, "dead");
    load.run_for_requests(2000);
    cluster.nodes[2].resume();
    let through_it = Load::start("back", &all[2..], PLAN);
    let back = Instant::now();
    let mut outcome = load.stop();
    outcome.assert_truthful();
    // Through the node that was away, at once.
    outcome.account(all[2], false);
    cluster.wait_ready();
    println!("whole again {:?} after it was back", back.elapsed());
    wait_for("the hints to be handed over", || cluster.up().all(|node| node.figure("hints") == 0));
    through_it.run_for_requests(500);
    let through_it = through_it.stop();
    through_it.assert_truthful();
    outcome.absorb(through_it);
    // It has caught up, so that it serves with either of the others gone.
    cluster.nodes[0].kill();
    outcome.account(all[1], false);
    outcome.account(all[2], false);
}

#[test]
fn requests_that_wait_for_a_hung_replica_share_one_timeout() {
    const REQUESTS: u32 = 12;
    const TIMEOUT: Duration = Duration::from_secs(4);
    let quorums = ["--replicas", "2", "--write-quorum", "2", "--read-quorum", "1"];
    // Nobody takes the node for dead meanwhile, and a client that waits is not a silent one.
    let patience = ["--probe-period", "5s", "--dead-after", "60s", "--idle-timeout", "1"];
    let timeout = ["--operation-timeout", "4s"];
    let Some(mut cluster) = Cluster::form(2, &[&quorums[..], &patience, &timeout].concat()) else {
        return;
    };
    let mut client = cluster.nodes[0].client();
    assert_eq!(client.try_store("key", b"before"), "STORED");
    cluster.nodes[1].freeze();
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        client.send(b"set key 0 0 5\r\nafter\r\n");
    }
    for request in 0..REQUESTS {
        let answer = client.line();
        assert!(answer.starts_with("SERVER_ERROR "), "request {request}: {answer}");
    }
    let waited = begun.elapsed();
    println!("{REQUESTS} requests ended after {waited:?}");
    assert!(waited < 2 * TIMEOUT, "they waited for each other: {waited:?}");
    assert_eq!(client.ask("mn"), "MN");
    cluster.nodes[1].resume();
}

#[test]
fn with_one_copy_a_killed_node_costs_its_own_keys_only() {
    let Some(mut cluster) = Cluster::form(3, &[]) else { return };
    let others = cluster.addresses()[..2].to_vec();
    let load = Load::start("alone", &others, Plan { may_miss: true, ..PLAN });
    load.run_for_requests(1000);
    let quiet = cluster.nodes[2].client().stats()["curr_items"].parse::<f64>().expect("a number");
    let lost_share = quiet / (PLAN.clients as f64 * PLAN.keys as f64);
    cluster.nodes[2].kill();
    let killed = Instant::now();
    std::thread::sleep(GAP_MAX);
    load.run_for_requests(1000);
    let outcome = load.stop();
    outcome.assert_truthful();
    outcome.assert_no_error_after(killed + GAP_MAX);
    // A lost key is missed until it is written again, and the rest never.
    assert!((0.1..0.7).contains(&lost_share), "{lost_share} of the keys were on one of three");
    for node in others {
        let found = outcome.account(node, true);
        assert!(found >= 1.0 - lost_share - 0.05, "{found} found, {lost_share} lost");
    }
}

#[test]
fn five_nodes_lose_one_and_nothing_else() {
    let Some(mut cluster) = Cluster::form(5, &THREE_COPIES) else { return };
    let load = Load::start("five", &cluster.addresses()[1..], Plan { keys: 100, ..PLAN });
    load.run_for_requests(500);
    cluster.nodes[0].kill();
    let killed = Instant::now();
    load.run_for_requests(2000);
    let outcome = load.stop();
    outcome.assert_truthful();
    outcome.assert_no_error_after(killed + GAP_MAX);
    for node in cluster.addresses() {
        outcome.account(node, false);
    }
}
