//! A few governors on a perfect network, where every message arrives in the next step.

use super::super::membership::Terms;
use super::*;

const STEP: Duration = Duration::from_millis(20);

struct World {
    now: Instant,
    nodes: Vec<Node>,
    /// Gossip arrives, messages between governors do not.
    unlinked: bool,
    /// What a new view brings never arrives.
    unsettled: bool,
    replication: Replication,
}

struct Node {
    governor: Governor,
    address: SocketAddr,
    running: bool,
    view: Option<Arc<View>>,
    handed_over: bool,
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::new([127, 0, 0, number].into(), 7946)
}

impl World {
    fn new() -> Self {
        Self {
            now: Instant::from_millis(1_700_000_000_000),
            nodes: Vec::new(),
            unlinked: false,
            unsettled: false,
            replication: Replication::default(),
        }
    }

    fn start(&mut self, id: &str, number: u8, join: &[u8]) -> usize {
        let ring = RingParameters::default();
        let terms = Terms::new("test", ring, self.replication);
        let mut membership = MembershipSettings::new(terms);
        membership.join = join.iter().map(|number| address(*number)).collect();
        membership.forget_after = Duration::from_secs(20);
        let boot = Boot(self.now.as_millis());
        let identity = Identity::new(id, boot, address(number), address(number));
        let settings = GovernorSettings {
            membership,
            ring,
            replication: self.replication,
            weight: 1,
            core_count: 1,
        };
        let seed = boot.0 ^ u64::from(number);
        let node = Node {
            governor: Governor::new(identity, settings, seed),
            address: address(number),
            running: true,
            view: None,
            handed_over: false,
        };
        self.nodes.push(node);
        let at = self.nodes.len() - 1;
        self.deliver(at, GovernorEvent::Start);
        at
    }

    fn deliver(&mut self, at: usize, event: GovernorEvent<'_>) {
        let mut effects = Vec::new();
        self.nodes[at].governor.handle(event, self.now, &mut effects);
        let key = self.nodes[at].governor.identity().key;
        for effect in effects {
            match effect {
                GovernorEffect::Datagram { to, bytes } => {
                    let from = self.nodes[at].address;
                    if let Some(to) = self.find(|node| node.address == to) {
                        self.deliver(to, GovernorEvent::Datagram { from, bytes: &bytes });
                    }
                }
                GovernorEffect::Send { to, bytes } if !self.unlinked => {
                    if let Some(to) = self.find(|node| node.governor.identity().key == to) {
                        self.deliver(to, GovernorEvent::Message { from: key, bytes: &bytes });
                    }
                }
                GovernorEffect::Notice(GovernorNotice::ViewChanged(view)) => {
                    let epoch = view.epoch();
                    self.nodes[at].view = Some(view);
                    if !self.unsettled {
                        self.deliver(at, GovernorEvent::Settled { core: 0, epoch });
                    }
                }
                GovernorEffect::HandedOver => self.nodes[at].handed_over = true,
                _ => {}
            }
        }
    }

    fn find(&self, is: impl Fn(&Node) -> bool) -> Option<usize> {
        self.nodes.iter().position(|node| node.running && is(node))
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 1000 / STEP.as_millis() as u64 {
            self.now = self.now.after(STEP);
            for at in 0..self.nodes.len() {
                let due = self.nodes[at].governor.next_deadline().is_some_and(|d| d <= self.now);
                if self.nodes[at].running && due {
                    self.deliver(at, GovernorEvent::Tick);
                }
            }
        }
    }

    fn members(&self, at: usize) -> Vec<String> {
        let view = self.nodes[at].view.as_ref().expect("it has a view");
        view.roster().members().iter().map(|member| member.id.to_string()).collect()
    }
}

#[test]
fn a_node_without_anybody_to_join_founds_a_cluster_and_others_join_it() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    world.start("b", 2, &[1]);
    world.start("c", 3, &[2]);
    world.run(10);
    (0..3).for_each(|at| assert_eq!(world.members(at), ["a", "b", "c"]));
    let stamp = |at: usize| world.nodes[at].view.as_ref().unwrap().stamp();
    assert!(stamp(0) == stamp(1) && stamp(1) == stamp(2));
}

#[test]
fn of_nodes_that_all_name_each_other_only_one_founds() {
    let mut world = World::new();
    for (id, number) in [("c", 3), ("b", 2), ("a", 1)] {
        world.start(id, number, &[1, 2, 3]);
    }
    world.run(15);
    (0..3).for_each(|at| assert_eq!(world.members(at), ["a", "b", "c"]));
}

#[test]
fn without_the_first_of_them_the_next_one_founds() {
    let mut world = World::new();
    world.start("c", 3, &[1, 2, 3]);
    world.start("b", 2, &[1, 2, 3]);
    world.run(25);
    (0..2).for_each(|at| assert_eq!(world.members(at), ["b", "c"]));
}

#[test]
fn nobody_founds_while_one_who_may_know_of_a_cluster_is_remembered() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    world.unlinked = true;
    let b = world.start("b", 2, &[1, 2]);
    world.run(2);
    world.nodes[0].running = false;
    world.run(18);
    assert!(world.nodes[b].view.is_none(), "its first data would be what others have already");
    world.run(30);
    assert_eq!(world.members(b), ["b"]);
}

#[test]
fn fewer_than_a_write_quorum_found_no_cluster_that_promises_quorums() {
    let mut world = World::new();
    world.replication = Replication::new(3, 2, 2).expect("valid");
    let b = world.start("b", 2, &[1, 2, 3]);
    world.run(40);
    assert!(world.nodes[b].view.is_none());
    world.start("c", 3, &[1, 2, 3]);
    world.run(10);
    assert_eq!(world.members(b), ["b", "c"]);
}

#[test]
fn a_dead_node_stays_a_member_for_a_while_and_is_then_removed() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    world.start("b", 2, &[1]);
    let c = world.start("c", 3, &[1]);
    world.run(10);
    world.nodes[c].running = false;
    world.run(12);
    assert_eq!(world.members(0), ["a", "b", "c"]);
    world.run(30);
    (0..2).for_each(|at| assert_eq!(world.members(at), ["a", "b"]));
}

#[test]
fn a_restarted_node_is_a_member_under_its_new_boot() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    world.start("b", 2, &[1]);
    let first = world.start("c", 3, &[1]);
    world.run(10);
    world.nodes[first].running = false;
    world.run(2);
    let second = world.start("c", 3, &[1]);
    world.run(15);
    let boot = world.nodes[second].governor.identity().boot;
    let roster = world.nodes[0].view.as_ref().unwrap().roster().clone();
    assert!(roster.has(NodeKey::of("c"), boot));
}

#[test]
fn a_restarted_node_is_added_though_others_still_wait_for_its_former_boot() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    world.start("b", 2, &[1]);
    let first = world.start("c", 3, &[1]);
    world.run(10);
    world.unsettled = true;
    world.start("d", 4, &[1]);
    world.run(5);
    world.nodes[first].running = false;
    world.run(2);
    let second = world.start("c", 3, &[1]);
    world.run(15);
    let boot = world.nodes[second].governor.identity().boot;
    let roster = world.nodes[0].view.as_ref().unwrap().roster().clone();
    assert!(roster.has(NodeKey::of("c"), boot));
}

#[test]
fn a_leaving_node_is_removed_and_hears_when_it_may_go() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    let b = world.start("b", 2, &[1]);
    world.run(10);
    world.deliver(b, GovernorEvent::Leave);
    world.run(10);
    assert_eq!(world.members(0), ["a"]);
    assert!(world.nodes[b].handed_over);
}

#[test]
fn a_leaving_node_waits_for_those_that_it_cannot_reach_any_more() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    let b = world.start("b", 2, &[1]);
    let c = world.start("c", 3, &[1]);
    world.run(10);
    world.unsettled = true;
    world.deliver(b, GovernorEvent::Leave);
    world.run(2);
    assert_eq!(world.members(b), ["a", "c"]);
    let epoch = world.nodes[b].view.as_ref().unwrap().epoch();
    [0, c].into_iter().for_each(|at| world.nodes[at].running = false);
    world.run(8);
    assert!(!world.nodes[b].handed_over, "no node has reported that it copied anything");
    for at in [0, c] {
        world.nodes[at].running = true;
        world.deliver(at, GovernorEvent::Settled { core: 0, epoch });
    }
    world.run(10);
    assert!(world.nodes[b].handed_over);
}

#[test]
fn a_flush_reaches_those_that_come_back_later() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    let b = world.start("b", 2, &[1]);
    world.run(10);
    world.nodes[b].running = false;
    world.deliver(0, GovernorEvent::Flush(Version(77)));
    world.nodes[b].running = true;
    world.run(5);
    assert_eq!(world.nodes[b].governor.flushed, Version(77));
}

#[test]
fn a_node_whose_link_is_lost_is_called_until_its_host_refuses() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    world.start("b", 2, &[1]);
    world.run(10);
    let b = world.nodes[1].governor.identity().clone();
    let calls = |world: &mut World, event| {
        let mut effects = Vec::new();
        world.nodes[0].governor.handle(event, world.now, &mut effects);
        effects
            .iter()
            .filter(|effect| matches!(effect, GovernorEffect::ProbeListener { .. }))
            .count()
    };
    world.nodes[1].running = false;
    assert_eq!(calls(&mut world, GovernorEvent::LinkLost { node: b.key }), 1, "called at once");
    world.now = world.now.after(Duration::from_millis(60));
    assert_eq!(calls(&mut world, GovernorEvent::Tick), 1, "and again, as it may be about to close");
    let elsewhere = GovernorEvent::ConnectionRefused { node: b.key, address: address(9) };
    assert_eq!(calls(&mut world, elsewhere), 0);
    let health = |world: &World| {
        let members = world.nodes[0].governor.members();
        members.iter().find(|member| member.key == b.key).map(|member| member.health)
    };
    assert_eq!(health(&world), Some(Health::Alive), "that was another place");
    assert_eq!(
        calls(&mut world, GovernorEvent::ConnectionRefused { node: b.key, address: b.link }),
        0
    );
    assert_eq!(health(&world), Some(Health::Suspect));
    world.run(2);
    assert_eq!(health(&world), Some(Health::Dead));
    assert_eq!(calls(&mut world, GovernorEvent::LinkLost { node: b.key }), 0, "that is known");
}

#[test]
fn a_node_without_others_does_not_wait_for_them_when_it_leaves() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    world.start("stray", 3, &[9]);
    world.run(10);
    for at in 0..2 {
        world.deliver(at, GovernorEvent::Leave);
        assert!(world.nodes[at].handed_over, "node {at}");
    }
}

#[test]
fn a_node_that_cannot_reach_others_waits_for_them_when_it_leaves() {
    let mut world = World::new();
    world.start("a", 1, &[]);
    world.start("b", 2, &[1]);
    world.run(10);
    world.nodes[1].running = false;
    world.deliver(0, GovernorEvent::Leave);
    world.run(8);
    assert!(!world.nodes[0].handed_over);
}
