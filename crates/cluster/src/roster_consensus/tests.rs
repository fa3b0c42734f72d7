use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::roster::tests::member;
use super::*;
use ringlane_types::wire::Reader;

const START: Instant = Instant::from_millis(1_700_000_000_000);

/// Nodes whose messages are delayed, lost and doubled at random.
struct World {
    now: Instant,
    random: Xoshiro256PlusPlus,
    nodes: BTreeMap<NodeKey, Node>,
    wire: BTreeMap<(Instant, u64), (NodeKey, NodeKey, Vec<u8>)>,
    sent: u64,
    loss_percent: u32,
    delay_millis_max: u64,
    /// Whether messages between these two, in this direction, are lost.
    cut: fn(NodeKey, NodeKey) -> bool,
    /// Everything decided on, by digest of the parent.
    decisions: BTreeMap<u64, u64>,
}

struct Node {
    consensus: RosterConsensus,
    gone: Vec<(NodeKey, Boot)>,
    hold: bool,
    superseded: bool,
}

fn key(id: &str) -> NodeKey {
    NodeKey::of(id)
}

fn adding(id: &str, boot: u64) -> Change {
    Change::Add(member(id, boot))
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            now: START,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            nodes: BTreeMap::new(),
            wire: BTreeMap::new(),
            sent: 0,
            loss_percent: 0,
            delay_millis_max: 5,
            cut: |_, _| false,
            decisions: BTreeMap::new(),
        }
    }

    /// A cluster of these nodes in boot 1, all of which know the roster.
    fn with_members(seed: u64, ids: &[&str]) -> Self {
        let mut world = Self::new(seed);
        ids.iter().for_each(|id| world.start(id, 1));
        let found = ConsensusEvent::FoundCluster { member: member(ids[0], 1), random: seed };
        world.handle(key(ids[0]), found);
        for id in &ids[1..] {
            world.request(ids[0], adding(id, 1));
        }
        world.run(5_000);
        for id in ids {
            assert_eq!(world.member_ids(id), sorted(ids), "as {id} sees it");
        }
        world
    }

    fn start(&mut self, id: &str, boot: u64) {
        let seed = self.random.random();
        let consensus = RosterConsensus::new(key(id), Boot(boot), seed);
        let node = Node { consensus, gone: Vec::new(), hold: false, superseded: false };
        self.nodes.insert(key(id), node);
    }

    fn request(&mut self, at: &str, change: Change) {
        self.handle(key(at), ConsensusEvent::RequestChange(change));
    }

    fn handle(&mut self, at: NodeKey, event: ConsensusEvent) {
        let Some(node) = self.nodes.get_mut(&at) else { return };
        let mut effects = Vec::new();
        let gone = node.gone.clone();
        let situation = Situation { gone: &gone, hold: node.hold };
        node.consensus.handle(event, situation, self.now, &mut effects);
        for effect in effects {
            match effect {
                ConsensusEffect::Send { to, message } => self.send(at, to, message),
                ConsensusEffect::Decided(roster) => {
                    let decided = *self.decisions.entry(roster.parent).or_insert(roster.digest());
                    let reformed = !self.nodes[&at].gone.is_empty();
                    assert!(decided == roster.digest() || reformed, "two decisions on one roster");
                }
                ConsensusEffect::HistorySuperseded(_) => {
                    self.nodes.get_mut(&at).unwrap().superseded = true
                }
            }
        }
    }

    fn send(&mut self, from: NodeKey, to: NodeKey, message: ConsensusMessage) {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        for _ in 0..2 {
            if (self.cut)(from, to) || self.random.random_range(0..100) < self.loss_percent {
                continue;
            }
            self.sent += 1;
            let delay = Duration::from_millis(self.random.random_range(0..=self.delay_millis_max));
            self.wire.insert((self.now.after(delay), self.sent), (from, to, bytes.clone()));
            if self.random.random_range(0..10) > 0 {
                break;
            }
        }
    }

    fn run(&mut self, millis: u64) {
        let end = self.now.after(Duration::from_millis(millis));
        loop {
            let arrival = self.wire.keys().next().map(|(at, _)| *at);
            let deadline = self.nodes.values().filter_map(|n| n.consensus.next_deadline()).min();
            let Some(next) = arrival.into_iter().chain(deadline).min().filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            while let Some(entry) = self.wire.first_entry().filter(|e| e.key().0 <= self.now) {
                let (from, to, bytes) = entry.remove();
                let mut reader = Reader::new(&bytes);
                let message = ConsensusMessage::read(&mut reader).expect("our own message");
                reader.end().expect("nothing behind it");
                self.handle(to, ConsensusEvent::Message { from, message });
            }
            for at in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.handle(at, ConsensusEvent::Tick);
            }
        }
        self.now = end;
    }

    fn roster(&self, id: &str) -> Arc<Roster> {
        self.nodes[&key(id)].consensus.roster().expect("a member").clone()
    }

    fn member_ids(&self, id: &str) -> Vec<String> {
        self.roster(id).members().iter().map(|member| member.id.to_string()).collect()
    }
}

fn sorted(ids: &[&str]) -> Vec<String> {
    let mut ids: Vec<String> = ids.iter().map(|id| id.to_string()).collect();
    ids.sort();
    ids
}

#[test]
fn any_member_adds_and_removes_a_node() {
    let mut world = World::with_members(1, &["a", "b", "c"]);
    world.start("d", 1);
    world.request("b", adding("d", 1));
    world.run(2_000);
    assert_eq!(world.member_ids("d"), sorted(&["a", "b", "c", "d"]));
    world.request("d", Change::Remove { key: key("a"), boot: Boot(1) });
    world.run(2_000);
    for id in ["b", "c", "d"] {
        assert_eq!(world.member_ids(id), sorted(&["b", "c", "d"]));
    }
}

#[test]
fn a_minority_decides_nothing() {
    let mut world = World::with_members(2, &["a", "b", "c", "d", "e"]);
    world.cut = |from, to| {
        let minority = |node| node == NodeKey::of("a") || node == NodeKey::of("b");
        minority(from) != minority(to)
    };
    world.start("f", 1);
    world.request("a", adding("g", 1));
    world.request("c", adding("f", 1));
    world.run(10_000);
    assert_eq!(world.member_ids("a").len(), 5);
    assert_eq!(world.member_ids("c"), sorted(&["a", "b", "c", "d", "e", "f"]));
    // Healed, who was away learns by asking.
    world.cut = |_, _| false;
    let digest = world.roster("a").digest();
    world.handle(
        key("e"),
        ConsensusEvent::Message {
            from: key("a"),
            message: ConsensusMessage::RequestChain { digest },
        },
    );
    world.run(100);
    assert_eq!(world.member_ids("a"), world.member_ids("c"));
}

#[test]
fn a_restarted_member_has_no_vote_until_it_is_in_the_roster_again() {
    let mut world = World::with_members(3, &["a", "b", "c"]);
    world.start("b", 2);
    world.nodes.remove(&key("c"));
    world.request("a", adding("b", 2));
    world.run(10_000);
    assert_eq!(
        world.roster("a").member(key("b")).unwrap().boot,
        Boot(1),
        "one of three decides nothing"
    );
    world.start("c", 2);
    // Both others are gone for good; what is left decides alone, and adds their new boots.
    world.nodes.get_mut(&key("a")).unwrap().gone = vec![(key("b"), Boot(1)), (key("c"), Boot(1))];
    world.request("a", adding("b", 2));
    world.request("a", adding("c", 2));
    world.run(3_000);
    for id in ["a", "b", "c"] {
        assert_eq!(world.roster(id).member(key("b")).unwrap().boot, Boot(2), "{id}");
        assert_eq!(world.member_ids(id), sorted(&["a", "b", "c"]));
    }
}

#[test]
fn nobody_decides_without_members_whom_the_others_do_not_miss() {
    let mut world = World::with_members(4, &["a", "b", "c", "d", "e"]);
    let gone = vec![(key("c"), Boot(1)), (key("d"), Boot(1)), (key("e"), Boot(1))];
    world.nodes.get_mut(&key("a")).unwrap().gone = gone.clone();
    world.cut = |from, to| {
        let cut_off = |node| [NodeKey::of("c"), NodeKey::of("d"), NodeKey::of("e")].contains(&node);
        cut_off(from) || cut_off(to)
    };
    world.request("a", adding("f", 1));
    world.run(5_000);
    assert_eq!(world.member_ids("a").len(), 5);
    world.nodes.get_mut(&key("b")).unwrap().gone = gone;
    world.request("a", adding("f", 1));
    world.run(5_000);
    assert_eq!(world.member_ids("b"), sorted(&["a", "b", "f"]));
}

#[test]
fn of_two_histories_the_longer_stays_and_the_other_learns_it() {
    let mut world = World::with_members(5, &["a", "b", "c"]);
    world.start("x", 1);
    world.handle(key("x"), ConsensusEvent::FoundCluster { member: member("x", 1), random: 99 });
    let digest = world.roster("x").digest();
    world.handle(
        key("a"),
        ConsensusEvent::Message {
            from: key("x"),
            message: ConsensusMessage::RequestChain { digest },
        },
    );
    world.run(1_000);
    assert!(world.nodes[&key("x")].superseded);
    assert!(!world.nodes[&key("a")].superseded);
}

#[test]
fn a_held_decision_is_taken_once_it_is_released() {
    let mut world = World::with_members(6, &["a", "b", "c"]);
    world.nodes.values_mut().for_each(|node| node.hold = true);
    world.start("d", 1);
    world.request("a", adding("d", 1));
    world.run(5_000);
    assert_eq!(world.member_ids("a").len(), 3);
    world.nodes.values_mut().for_each(|node| node.hold = false);
    world.run(2_000);
    assert_eq!(world.member_ids("d").len(), 4);
}

#[test]
fn a_node_far_behind_is_told_to_join_anew() {
    let mut world = World::with_members(7, &["a", "b", "c", "e", "f"]);
    world.cut = |from, to| from == NodeKey::of("c") || to == NodeKey::of("c");
    for boot in 0..CHAIN_MAX as u64 + 5 {
        world.request("a", adding("d", boot + 1));
        world.run(500);
    }
    world.cut = |_, _| false;
    let digest = world.roster("c").digest();
    world.handle(
        key("a"),
        ConsensusEvent::Message {
            from: key("c"),
            message: ConsensusMessage::RequestChain { digest },
        },
    );
    world.run(100);
    assert!(world.nodes[&key("c")].superseded);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    // Members that never run stay a minority, or the cluster would rightly stand still.
    /// Whatever the network does, no roster is followed by two, and with the network mended
    /// everybody who asks ends with the same one, in which every request is granted.
    #[test]
    fn one_decision_follows_each_roster(
        seed: u64,
        loss_percent in 0u32..40,
        delay_millis_max in 1u64..2_000,
        requests in proptest::collection::vec((0usize..5, 0usize..4, any::<bool>(), 0u64..3_000), 1..12),
    ) {
        let ids = ["a", "b", "c", "d", "e"];
        let mut world = World::with_members(seed, &ids);
        (world.loss_percent, world.delay_millis_max) = (loss_percent, delay_millis_max);
        for (at, whom, add_it, pause) in requests {
            let id = format!("n{whom}");
            let change = if add_it {
                adding(&id, 1)
            } else {
                Change::Remove { key: key(&id), boot: Boot(1) }
            };
            world.request(ids[at], change);
            world.run(pause);
        }
        (world.loss_percent, world.delay_millis_max) = (0, 5);
        world.request("a", adding("last", 1));
        world.run(20_000);
        for id in &ids[1..] {
            let digest = world.roster(id).digest();
            let ask = ConsensusEvent::Message { from: key(id), message: ConsensusMessage::RequestChain { digest } };
            world.handle(key("a"), ask);
        }
        world.run(100);
        let decided = world.roster("a");
        prop_assert!(decided.member(key("last")).is_some());
        for id in &ids {
            prop_assert_eq!(world.roster(id), decided.clone());
        }
    }

    #[test]
    fn any_bytes_are_taken_without_panic(bytes: Vec<u8>) {
        let _ = ConsensusMessage::read(&mut Reader::new(&bytes));
    }
}
