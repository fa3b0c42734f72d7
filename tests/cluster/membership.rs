//! Nodes that leave, come, and are not let in, under load.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::THREE_COPIES;
use crate::load::{Load, Plan};
use crate::nodes::{Cluster, Node, wait_for};

const PLAN: Plan = Plan { clients: 4, keys: 60, may_miss: false };

/// Longest time a node may take to leave.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// Longer than a node waits for others unless it is told to.
const AGAIN_AFTER: Duration = Duration::from_secs(4);
/// What a client may notice of a change of members.
const TROUBLE_MAX: Duration = Duration::from_secs(3);

fn a_node_leaves_and_takes_nothing_with_it(name: &str, flags: &[&str]) {
    let Some(mut cluster) = Cluster::form(3, flags) else { return };
    let others = cluster.addresses()[..2].to_vec();
    let load = Load::start(name, &others, PLAN);
    load.run_for_requests(1000);
    let left = Instant::now();
    let (status, after) = cluster.nodes[2].leave();
    println!("left after {after:?}");
    let said = cluster.nodes[2].said();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(after < LEAVE_MAX, "left after {after:?}");
    assert!(said.contains("everything they needed"), "{said}");
    load.run_for_requests(1000);
    std::thread::sleep(TROUBLE_MAX.saturating_sub(left.elapsed()));
    load.run_for_requests(500);
    let outcome = load.stop();
    outcome.assert_truthful();
    outcome.assert_no_error_after(left + TROUBLE_MAX);
    for node in others {
        outcome.account(node, false);
    }
}

#[test]
fn a_node_hands_over_its_keys_before_it_leaves() {
    a_node_leaves_and_takes_nothing_with_it("leave-one", &[]);
}

#[test]
fn a_node_leaves_two_with_three_copies() {
    a_node_leaves_and_takes_nothing_with_it("leave-three", &THREE_COPIES);
}

#[test]
fn a_node_waits_for_others_as_long_as_it_is_told_to_and_not_after_a_second_signal() {
    let flags = ["--leave-timeout", "1h", "--rebalance-rate", "1MiB"];
    let Some(mut cluster) = Cluster::form(2, &flags) else { return };
    let mut client = cluster.nodes[0].client();
    let value = vec![b'v'; 100_000];
    (0..200).for_each(|number| client.store(&format!("large-{number}"), &value));
    let left = std::thread::scope(|scope| {
        let leaving = &mut cluster.nodes[1];
        let pid = leaving.pid();
        let again = scope.spawn(move || {
            std::thread::sleep(AGAIN_AFTER);
            Node::signal_process(pid, "TERM");
        });
        let left = leaving.leave();
        again.join().expect("a signal was sent");
        left
    });
    let said = cluster.nodes[1].said();
    assert_eq!(left.0.code(), Some(0), "{said}");
    assert!((AGAIN_AFTER..LEAVE_MAX * 2).contains(&left.1), "left after {:?}:\n{said}", left.1);
    assert!(said.contains("are lost (see --leave-timeout)"), "{said}");
    // It has served and given what it could meanwhile.
    let lost = (0..200).filter(|number| client.fetch(&format!("large-{number}")).is_none()).count();
    assert!((1..100).contains(&lost), "{lost} of 200 are lost");
}

fn a_fourth_node_takes_its_part(name: &str, flags: &[&str], share: std::ops::Range<f64>) {
    let Some(mut cluster) = Cluster::form(3, flags) else { return };
    let plan = Plan { keys: 250, ..PLAN };
    let load = Load::start(name, &cluster.addresses(), plan);
    load.run_for_requests(500);
    let joined = Instant::now();
    cluster.grow().expect("the others were started too");
    cluster.wait_ready();
    println!("joined and filled after {:?}", joined.elapsed());
    load.run_for_requests(500);
    let outcome = load.stop();
    outcome.assert_truthful();
    outcome.assert_no_error_after(joined + TROUBLE_MAX);
    for node in cluster.addresses() {
        outcome.account(node, false);
    }
    let items = cluster.nodes[3].client().stats()["curr_items"].parse::<f64>().expect("a number");
    let held = items / (plan.clients as f64 * plan.keys as f64);
    assert!(share.contains(&held), "the fourth holds {held} of the keys, not {share:?}");
}

#[test]
fn a_fourth_node_takes_a_quarter_and_no_read_misses() {
    a_fourth_node_takes_its_part("join-one", &[], 0.15..0.40);
}

#[test]
fn a_fourth_node_takes_three_quarters_of_three_copies() {
    a_fourth_node_takes_its_part("join-three", &THREE_COPIES, 0.60..0.90);
}

fn key_file(name: &str, contents: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, contents).expect("the scratch directory is writable");
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
    path
}

#[test]
fn strangers_are_refused_with_a_reason_and_the_cluster_goes_on() {
    let (ours, theirs) = (
        key_file("ours.key", "a secret of all of them\n"),
        key_file("theirs.key", "the secret of another cluster\n"),
    );
    let key = |path: &Path| ["--cluster-key-file".into(), path.to_str().expect("UTF-8").to_owned()];
    let (ours, theirs) = (key(&ours), key(&theirs));
    let own = [&*ours[0], &*ours[1]];
    let Some(cluster) = Cluster::form(2, &own) else { return };
    let load = Load::start("strangers", &cluster.addresses(), PLAN);
    let parameters = "differ";
    let strangers: [(&str, Vec<&str>, &str); 4] = [
        (
            "name",
            vec![own[0], own[1], "--cluster-name", "another"],
            "it belongs to another cluster",
        ),
        ("ring", vec![own[0], own[1], "--vnodes", "77"], parameters),
        ("copies", vec![own[0], own[1], "--replicas", "2"], parameters),
        ("key", vec![&*theirs[0], &*theirs[1]], "its cluster key is missing or differs"),
    ];
    for (id, flags, reason) in strangers {
        let flags = [&["-t", "1", "-m", "64"][..], &flags].concat();
        let mut stranger = Node::new(id, cluster.nodes.first(), &flags);
        assert!(stranger.start());
        wait_for(&format!("{reason:?} about {id}"), || {
            let ip = stranger.address().ip().to_string();
            let said = cluster.nodes[0].said();
            said.lines().any(|line| line.contains(&ip) && line.contains(reason))
        });
        assert_eq!(cluster.nodes[0].figure("members"), 2, "{id} was let in");
    }
    load.run_for_requests(500);
    let outcome = load.stop();
    outcome.assert_truthful();
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
}
