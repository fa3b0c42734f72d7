use std::collections::BTreeMap;

use super::super::quorum::Replication;
use super::*;
use ringlane_ring::RingParameters;

const START: Instant = Instant::from_millis(1_700_000_000_000);

fn terms(name: &str) -> Terms {
    Terms::new(name, RingParameters::default(), Replication::default())
}

fn settings() -> MembershipSettings {
    MembershipSettings::new(terms("test"))
}

fn address(node: u8) -> SocketAddr {
    SocketAddr::new([127, 0, 0, node].into(), 7946)
}

/// A few nodes on a network with a delay of 2 ms, on one clock.
struct World {
    now: Instant,
    nodes: BTreeMap<SocketAddr, Node>,
    /// Datagrams under way: when, from, to.
    wire: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
    /// Pairs whose datagrams are lost, in this direction.
    cut: Vec<(u8, u8)>,
    /// Every datagram that was sent.
    recorded: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

struct Node {
    membership: Membership,
    events: Vec<MembershipEffect>,
}

impl World {
    fn new() -> Self {
        Self {
            now: START,
            nodes: BTreeMap::new(),
            wire: BTreeMap::new(),
            sent: 0,
            cut: Vec::new(),
            recorded: Vec::new(),
        }
    }

    /// Starts node `number`, which is called `n{number}`.
    fn start(&mut self, number: u8, settings: MembershipSettings) {
        self.start_at(number, number, settings);
    }

    fn start_at(&mut self, number: u8, at: u8, settings: MembershipSettings) {
        let boot = Boot(self.now.as_millis());
        let identity = Identity::new(&format!("n{number}"), boot, address(at), address(at));
        let mut membership = Membership::new(identity, &settings, number as u64);
        let mut effects = Vec::new();
        membership.handle(MembershipEvent::Start, self.now, &mut effects);
        self.nodes.insert(address(at), Node { membership, events: Vec::new() });
        self.perform(address(at), effects);
    }

    fn crash(&mut self, number: u8) {
        self.nodes.remove(&address(number));
    }

    fn leave(&mut self, number: u8) {
        let node = self.nodes.get_mut(&address(number)).unwrap();
        let mut effects = Vec::new();
        node.membership.handle(MembershipEvent::Leave, self.now, &mut effects);
        self.perform(address(number), effects);
    }

    fn partition(&mut self, one: &[u8], other: &[u8]) {
        self.cut =
            one.iter().flat_map(|&a| other.iter().flat_map(move |&b| [(a, b), (b, a)])).collect();
    }

    fn perform(&mut self, from: SocketAddr, effects: Vec<MembershipEffect>) {
        for effect in effects {
            let MembershipEffect::Send { to, bytes } = effect else {
                if let Some(node) = self.nodes.get_mut(&from) {
                    node.events.push(effect);
                }
                continue;
            };
            self.recorded.push((from, to, bytes.clone()));
            let pair = self.cut.iter().any(|&(a, b)| (address(a), address(b)) == (from, to));
            if !pair {
                self.sent += 1;
                let arrival = self.now.after(Duration::from_millis(2));
                self.wire.insert((arrival, self.sent), (from, to, bytes));
            }
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now.after(span);
        loop {
            let arrival = self.wire.keys().next().map(|(at, _)| *at);
            let deadline = self.nodes.values().filter_map(|n| n.membership.next_deadline()).min();
            let Some(next) = arrival.into_iter().chain(deadline).min().filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            while let Some(entry) = self.wire.first_entry().filter(|e| e.key().0 <= self.now) {
                let (from, to, bytes) = entry.remove();
                self.deliver(from, to, &bytes);
            }
            for at in self.nodes.keys().copied().collect::<Vec<_>>() {
                let mut effects = Vec::new();
                let node = self.nodes.get_mut(&at).unwrap();
                node.membership.handle(MembershipEvent::Tick, self.now, &mut effects);
                self.perform(at, effects);
            }
        }
        self.now = end;
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let mut effects = Vec::new();
        if let Some(node) = self.nodes.get_mut(&to) {
            node.membership.handle(
                MembershipEvent::Datagram { from, bytes },
                self.now,
                &mut effects,
            );
            self.perform(to, effects);
        }
    }

    /// Ids that node `number` holds for alive.
    fn alive(&self, number: u8) -> Vec<String> {
        let members = self.nodes[&address(number)].membership.members();
        let alive = members.into_iter().filter(|(_, health)| *health == Health::Alive);
        alive.map(|(identity, _)| identity.id.to_string()).collect()
    }

    fn events(&mut self, number: u8) -> Vec<MembershipEffect> {
        std::mem::take(&mut self.nodes.get_mut(&address(number)).unwrap().events)
    }

    /// Every node sees exactly the others of `numbers` alive.
    fn assert_complete(&self, numbers: &[u8]) {
        for number in numbers {
            let others: Vec<String> =
                numbers.iter().filter(|n| *n != number).map(|n| format!("n{n}")).collect();
            assert_eq!(self.alive(*number), others, "as node {number} sees it");
            let own = format!("n{number}");
            let members = self.nodes[&address(*number)].membership.members();
            assert!(members.iter().all(|(identity, _)| *identity.id != *own), "{members:?}");
        }
    }
}

fn joining(through: &[u8]) -> MembershipSettings {
    MembershipSettings { join: through.iter().map(|&n| address(n)).collect(), ..settings() }
}

/// Nodes 1 to `count`, each of which joined through its predecessor.
fn cluster(count: u8, settings: impl Fn(u8) -> MembershipSettings) -> World {
    let mut world = World::new();
    for number in 1..=count {
        world.start(number, settings(number));
        world.run(Duration::from_millis(300));
    }
    world.run(Duration::from_secs(20));
    let numbers: Vec<u8> = (1..=count).collect();
    world.assert_complete(&numbers);
    world
}

fn chain(number: u8) -> MembershipSettings {
    joining(if number == 1 { &[] } else { std::slice::from_ref(&BEFORE[number as usize]) })
}

const BEFORE: [u8; 9] = [0, 0, 1, 2, 3, 4, 5, 6, 7];

fn deaths(events: &[MembershipEffect]) -> Vec<&str> {
    let mut dead = Vec::new();
    for effect in events {
        if let MembershipEffect::Dead(identity) = effect {
            dead.push(&*identity.id);
        }
    }
    dead
}

#[test]
fn any_live_member_lets_a_node_into_the_whole_cluster() {
    cluster(8, chain);
}

#[test]
fn nodes_that_start_together_find_each_other_through_any_listed_address() {
    let mut world = World::new();
    for number in 1..=3 {
        world.start(number, joining(&[1, 2, 3]));
    }
    world.run(Duration::from_secs(5));
    world.assert_complete(&[1, 2, 3]);
}

#[test]
fn a_crashed_node_is_dead_within_five_probe_periods_and_not_before_three() {
    let mut world = cluster(5, chain);
    world.crash(3);
    world.run(Duration::from_millis(2_500));
    for number in [1, 2, 4, 5] {
        assert!(deaths(&world.events(number)).is_empty());
    }
    world.run(Duration::from_millis(4_500));
    world.assert_complete(&[1, 2, 4, 5]);
    assert_eq!(deaths(&world.events(1)), ["n3"]);
}

#[test]
fn a_node_that_leaves_is_gone_at_once() {
    let mut world = cluster(4, chain);
    world.leave(2);
    world.run(Duration::from_secs(1));
    world.assert_complete(&[1, 3, 4]);
}

#[test]
fn a_restarted_node_is_known_under_its_new_boot() {
    let mut world = cluster(3, chain);
    let before = world.nodes[&address(2)].membership.identity().boot;
    world.crash(2);
    world.run(Duration::from_millis(100));
    world.events(1);
    world.start(2, joining(&[1]));
    world.run(Duration::from_secs(5));
    world.assert_complete(&[1, 2, 3]);
    let alive = world.events(1).into_iter().find_map(|effect| match effect {
        MembershipEffect::Alive(identity) if &*identity.id == "n2" => Some(identity.boot),
        _ => None,
    });
    assert!(alive.expect("node 2 came up") > before);
}

#[test]
fn both_sides_of_a_partition_find_each_other_again_without_help() {
    for seconds in [10, 900] {
        let mut world = cluster(5, chain);
        world.partition(&[1, 2], &[3, 4, 5]);
        world.run(Duration::from_secs(seconds));
        world.assert_complete(&[1, 2]);
        world.assert_complete(&[3, 4, 5]);
        world.cut.clear();
        world.run(Duration::from_secs(30));
        world.assert_complete(&[1, 2, 3, 4, 5]);
    }
}

#[test]
fn a_node_cut_off_alone_finds_the_cluster_again_though_nobody_listed_it() {
    let mut world = cluster(3, chain);
    world.partition(&[1], &[2, 3]);
    world.run(Duration::from_secs(60));
    assert!(world.alive(1).is_empty());
    world.cut.clear();
    world.run(Duration::from_secs(10));
    world.assert_complete(&[1, 2, 3]);
}

#[test]
fn a_node_that_hears_but_is_not_heard_is_dead_to_the_others_and_comes_back() {
    let mut world = cluster(4, chain);
    world.cut = vec![(2, 1), (2, 3), (2, 4)];
    world.run(Duration::from_secs(15));
    world.assert_complete(&[1, 3, 4]);
    world.cut.clear();
    world.run(Duration::from_secs(15));
    world.assert_complete(&[1, 2, 3, 4]);
}

#[test]
fn a_dead_node_is_forgotten_after_the_configured_time() {
    let brief =
        |number| MembershipSettings { forget_after: Duration::from_secs(30), ..chain(number) };
    let mut world = cluster(3, brief);
    world.crash(3);
    world.run(Duration::from_secs(15));
    assert_eq!(world.nodes[&address(1)].membership.members().len(), 2);
    world.run(Duration::from_secs(30));
    assert_eq!(world.nodes[&address(1)].membership.members().len(), 1);
}

#[test]
fn a_stranger_is_refused_and_both_sides_learn_why() {
    let keyed = |settings, key: &[u8]| MembershipSettings {
        key: Some(AuthKey::from_file_contents(key)),
        ..settings
    };
    let other_ring = RingParameters { points_per_weight: 100, ..Default::default() };
    let listed: Arc<[Box<str>]> = ["n1".into(), "n2".into()].into();
    let with = |terms| MembershipSettings { terms, ..joining(&[1]) };
    let cases: [(MembershipSettings, MembershipSettings, GossipRefusal); 6] = [
        (settings(), with(terms("other")), GossipRefusal::Cluster),
        (
            settings(),
            with(Terms::new("test", other_ring, Replication::default())),
            GossipRefusal::Parameters,
        ),
        (keyed(settings(), b"one"), keyed(joining(&[1]), b"two"), GossipRefusal::Key),
        (keyed(settings(), b"one"), joining(&[1]), GossipRefusal::Key),
        (settings(), keyed(joining(&[1]), b"two"), GossipRefusal::Key),
        (
            MembershipSettings { listed: Some(listed), ..settings() },
            joining(&[1]),
            GossipRefusal::NotListed,
        ),
    ];
    for (inside, outside, reason) in cases {
        let mut world = World::new();
        world.start(1, inside);
        world.start(3, outside);
        world.run(Duration::from_secs(5));
        assert!(world.alive(1).is_empty() && world.alive(3).is_empty(), "{reason:?}");
        assert!(world.events(1).contains(&MembershipEffect::Refused { from: address(3), reason }));
        assert!(
            world.events(3).contains(&MembershipEffect::RefusedBy { from: address(1), reason })
        );
    }
}

#[test]
fn a_keyed_cluster_forms_and_believes_no_recording() {
    let keyed = |number| MembershipSettings {
        key: Some(AuthKey::from_file_contents(b"secret")),
        ..chain(number)
    };
    let mut world = cluster(3, keyed);
    world.events(1);
    let recorded = std::mem::take(&mut world.recorded);
    let to_first: Vec<_> = recorded.into_iter().filter(|(_, to, _)| *to == address(1)).collect();
    assert!(to_first.len() > 20);
    for (from, to, bytes) in &to_first {
        world.deliver(*from, *to, bytes);
    }
    let refused = world.events(1);
    assert_eq!(refused.len(), to_first.len());
    let replay = |effect: &MembershipEffect| {
        matches!(effect, MembershipEffect::Refused { reason: GossipRefusal::Replay, .. })
    };
    assert!(refused.iter().all(replay));
    // Nor after a restart, when the numbers seen before are forgotten: by then they are too old.
    world.run(Duration::from_secs(40));
    world.crash(1);
    world.start(1, keyed(1));
    for (from, to, bytes) in &to_first {
        world.deliver(*from, *to, bytes);
    }
    assert!(world.events(1).iter().all(replay));
}

fn superseded(events: &[MembershipEffect]) -> bool {
    events.iter().any(|effect| matches!(effect, MembershipEffect::Superseded { .. }))
}

#[test]
fn of_two_processes_with_one_id_the_one_that_is_there_stays() {
    for keyed in [false, true] {
        let settings = |mut settings: MembershipSettings| {
            settings.key = keyed.then(|| AuthKey::from_file_contents(b"secret"));
            settings
        };
        let mut world = cluster(3, |number| settings(chain(number)));
        world.crash(2);
        world.start(2, settings(joining(&[1, 3])));
        world.run(Duration::from_secs(30));
        assert!(!superseded(&world.events(2)), "a restart is no second process");
        (1..=3).for_each(|number| drop(world.events(number)));
        // Again and again, as a supervisor does.
        for _ in 0..5 {
            world.start_at(2, 9, settings(joining(&[1, 2])));
            world.run(Duration::from_secs(3));
            assert!(superseded(&world.events(9)), "the newcomer gives way");
            world.crash(9);
        }
        world.run(Duration::from_secs(10));
        world.assert_complete(&[1, 2, 3]);
        for number in 1..=3 {
            let events = world.events(number);
            assert!(!superseded(&events) && deaths(&events).is_empty(), "{number}: {events:?}");
        }
    }
}

#[test]
fn who_is_there_alone_stays_too() {
    let mut world = World::new();
    // It looks for a member at the newcomer's address.
    world.start(2, joining(&[9]));
    world.run(Duration::from_secs(30));
    world.start_at(2, 9, joining(&[2]));
    world.run(Duration::from_secs(30));
    assert!(superseded(&world.events(9)) && !superseded(&world.events(2)));
}

#[test]
fn a_return_at_another_address_waits_until_the_former_life_is_dead() {
    let mut world = cluster(3, chain);
    world.crash(2);
    world.start_at(2, 9, joining(&[1]));
    world.run(Duration::from_secs(15));
    assert!(!superseded(&world.events(9)));
    for number in [1, 3] {
        let members = world.nodes[&address(number)].membership.members();
        let back = members.iter().find(|(identity, _)| &*identity.id == "n2").expect("it is back");
        assert_eq!((back.0.gossip, back.1), (address(9), Health::Alive));
    }
}

#[test]
fn who_was_replaced_while_it_was_away_ends_when_it_returns() {
    for stays in [true, false] {
        let mut world = cluster(3, chain);
        let away = world.nodes.remove(&address(2)).expect("it runs");
        world.run(Duration::from_secs(15));
        world.start_at(2, 9, joining(&[1]));
        world.run(Duration::from_secs(15));
        if !stays {
            world.crash(9);
            world.run(Duration::from_secs(15));
        }
        world.nodes.insert(address(2), away);
        world.run(Duration::from_secs(30));
        assert!(superseded(&world.events(2)), "its replacement lives: {stays}");
        if stays {
            assert!(!superseded(&world.events(9)));
        }
    }
}

/// What a stranger without the key, or without need of one, can write.
struct Forger {
    head: Vec<u8>,
}

impl Forger {
    /// Knows what any datagram of the cluster shows, but not what is sent to others.
    fn new(world: &World) -> Self {
        let (_, _, bytes) = world.recorded.first().expect("members have spoken");
        Self { head: bytes[..21].to_vec() }
    }

    fn datagram(
        &self,
        kind: u8,
        as_whom: &Identity,
        shown: u64,
        body: impl Fn(&mut Vec<u8>),
    ) -> Vec<u8> {
        let mut bytes = self.head.clone();
        bytes[4] = kind;
        bytes.put_u64(as_whom.key.0);
        bytes.put_u64(as_whom.boot.0);
        bytes.put_u64(u64::MAX);
        bytes.put_u64(shown);
        bytes.put_u64(0);
        body(&mut bytes);
        bytes
    }
}

/// What the node at `to` sends because of a datagram.
fn reaction(world: &mut World, from: SocketAddr, to: u8, bytes: &[u8]) -> Vec<MembershipEffect> {
    let node = world.nodes.get_mut(&address(to)).unwrap();
    let mut effects = Vec::new();
    node.membership.handle(MembershipEvent::Datagram { from, bytes }, world.now, &mut effects);
    effects
}

fn sent_bytes(effects: &[MembershipEffect]) -> usize {
    let sent = effects.iter().map(|effect| match effect {
        MembershipEffect::Send { bytes, .. } => bytes.len(),
        _ => 0,
    });
    sent.sum()
}

#[test]
fn answers_that_nobody_asked_for_change_nothing() {
    let mut world = cluster(3, chain);
    let forger = Forger::new(&world);
    let victim = world.nodes[&address(1)].membership.identity().clone();
    let host = world.nodes[&address(2)].membership.identity().clone();
    let later = Identity { boot: Boot(u64::MAX / 2), ..victim.clone() };
    let before = world.nodes[&address(1)].membership.members();
    for nonce in [0, 1, u64::MAX] {
        let welcome = forger.datagram(2, &host, nonce, |out| {
            out.put_u64(nonce);
            host.write(out);
            later.write(out);
        });
        let taken = forger.datagram(3, &victim, nonce, |out| {
            out.put_u64(nonce);
            out.put_u8(GossipRefusal::IdInUse as u8);
            out.put_address(address(2));
            out.put_u64(u64::MAX);
        });
        let refused = forger.datagram(3, &host, nonce, |out| {
            out.put_u64(nonce);
            out.put_u8(GossipRefusal::Key as u8);
        });
        let cookie = forger.datagram(4, &host, nonce, |out| out.put_address(address(2)));
        for bytes in [welcome, taken, refused, cookie] {
            for from in [address(2), address(9)] {
                assert_eq!(reaction(&mut world, from, 1, &bytes), []);
            }
        }
    }
    world.run(Duration::from_secs(20));
    assert_eq!(world.nodes[&address(1)].membership.members(), before);
    world.assert_complete(&[1, 2, 3]);
}

#[test]
fn gossip_in_a_members_name_is_not_believed_without_what_the_member_was_told() {
    let mut world = cluster(3, chain);
    (1..=3).for_each(|number| drop(world.events(number)));
    let forger = Forger::new(&world);
    let member = world.nodes[&address(2)].membership.identity().clone();
    let victim = world.nodes[&address(3)].membership.identity().clone();
    let listener = world.nodes[&address(1)].membership.identity().clone();
    for shown in [0, 1, u64::MAX] {
        let bytes = forger.datagram(0, &member, shown, |out| {
            let header = foca::Header {
                src: member.clone(),
                src_incarnation: 5,
                dst: listener.clone(),
                message: foca::Message::Gossip,
            };
            let down = foca::Member::new(victim.clone(), 9, foca::State::Down);
            out.extend(Gossip { header, updates: vec![down] }.write());
        });
        let effects = reaction(&mut world, address(2), 1, &bytes);
        assert!(sent_bytes(&effects) <= bytes.len(), "{effects:?}");
    }
    world.run(Duration::from_secs(5));
    for number in 1..=3 {
        assert!(deaths(&world.events(number)).is_empty());
    }
}

#[test]
fn nobody_is_sent_more_than_was_asked_with_in_his_name() {
    let mut world = cluster(8, chain);
    let forger = Forger::new(&world);
    let long = "x".repeat(64);
    let listener = world.nodes[&address(1)].membership.identity().clone();
    let six: SocketAddr = "[2001:db8::1]:7946".parse().unwrap();
    for guest in [
        Identity::new("a", Boot(1), address(9), address(9)),
        Identity::new(&long, Boot(u64::MAX), six, six),
        Identity { boot: Boot(0), ..world.nodes[&address(3)].membership.identity().clone() },
        Identity { boot: Boot(0), ..listener.clone() },
        Identity { boot: Boot(0), gossip: six, ..listener.clone() },
    ] {
        for padding in (0..400).step_by(20) {
            for kind in 0..8 {
                let bytes = forger.datagram(kind, &guest, 0, |out| {
                    if kind != 0 {
                        out.put_u64(7);
                    }
                    guest.write(out);
                    if kind == 0 {
                        out.put_u16(1);
                        listener.write(out);
                        // An announcement, which is answered with all members.
                        out.extend([6, 0]);
                    }
                    out.resize(out.len() + padding, 0);
                });
                let effects = reaction(&mut world, address(9), 1, &bytes);
                let answered = sent_bytes(&effects);
                assert!(answered <= bytes.len(), "{answered} for {}: {effects:?}", bytes.len());
            }
        }
    }
}

/// A member that lies, among three that do not: what it says reaches node 1 as its own gossip.
fn liar_says(world: &mut World, updates: Vec<foca::Member<Identity>>) -> Vec<MembershipEffect> {
    let listener = world.nodes[&address(1)].membership.identity().clone();
    let liar = world.nodes.get_mut(&address(4)).expect("the liar is a member");
    let source = liar.membership.identity().clone();
    let header = foca::Header {
        src: source,
        src_incarnation: 9,
        dst: listener,
        message: foca::Message::Gossip,
    };
    let mut effects = Vec::new();
    let gossip = Gossip { header, updates }.write();
    liar.membership.send_gossip(address(1), gossip, world.now, &mut effects);
    let Some(MembershipEffect::Send { bytes, .. }) = effects.pop() else {
        panic!("it knows node 1")
    };
    reaction(world, address(4), 1, &bytes)
}

#[test]
fn third_parties_are_not_called_because_a_member_names_them() {
    let mut world = cluster(4, chain);
    let (mut sent, mut probes) = (0, 0);
    for round in 0..100u8 {
        let updates = (0..10u8)
            .map(|number| {
                let at = SocketAddr::new([192, 0, round, number].into(), 80);
                let identity = Identity::new(&format!("f{round}.{number}"), Boot(1), at, at);
                foca::Member::alive(identity)
            })
            .collect();
        let effects = liar_says(&mut world, updates);
        assert!(
            !effects.iter().any(|effect| matches!(effect, MembershipEffect::Alive(_))),
            "{effects:?}"
        );
        probes += effects.len();
        sent += sent_bytes(&effects);
    }
    assert!(probes <= 64 && sent < 64 * 400, "{probes} probes, {sent} bytes in a moment");
    world.recorded.clear();
    world.run(Duration::from_secs(15));
    let strangers = world.recorded.iter().filter(|(_, to, _)| to.port() == 80).count();
    assert_eq!(strangers, 0, "and nothing later");
    assert!(world.nodes[&address(1)].membership.members().len() < 10);
}

#[test]
fn a_member_cannot_replace_a_living_node_by_a_later_life() {
    let mut world = cluster(4, chain);
    (1..=4).for_each(|number| drop(world.events(number)));
    for state in [foca::State::Alive, foca::State::Suspect, foca::State::Down] {
        for victim in [1, 2] {
            for at in [victim, 4] {
                let victim = world.nodes[&address(victim)].membership.identity().clone();
                let boot = Boot(u64::MAX / 2);
                let later = Identity { boot, gossip: address(at), link: address(at), ..victim };
                liar_says(&mut world, vec![foca::Member::new(later, 0, state)]);
            }
        }
    }
    world.run(Duration::from_secs(30));
    world.assert_complete(&[1, 2, 3, 4]);
    for number in 1..=4 {
        let events = world.events(number);
        assert!(!superseded(&events) && deaths(&events).is_empty(), "{number}: {events:?}");
    }
}

#[test]
fn links_are_for_living_members_that_receive_at_their_address() {
    let mut world = cluster(3, chain);
    let two = world.nodes[&address(2)].membership.identity().clone();
    let pass = world.nodes[&address(2)].membership.pass_to(address(1));
    let admits = |world: &World, boot, pass| {
        world.nodes[&address(1)].membership.admits_link(two.key, boot, pass)
    };
    assert!(admits(&world, two.boot, pass));
    assert!(!admits(&world, two.boot, 0) && !admits(&world, two.boot, pass ^ 1));
    assert!(!admits(&world, Boot(two.boot.0 + 1), pass));
    let three = world.nodes[&address(3)].membership.pass_to(address(1));
    assert!(!admits(&world, two.boot, three), "another member's");
    let stranger = NodeKey::of("stranger");
    assert!(!world.nodes[&address(1)].membership.admits_link(stranger, Boot(1), pass));
    world.crash(2);
    world.run(Duration::from_secs(15));
    assert!(!admits(&world, two.boot, pass), "it is dead");
}

#[test]
fn nodes_of_an_earlier_version_are_refused_with_the_reason() {
    let mut world = cluster(2, chain);
    let bytes = [b"RLg1", &[0u8; 60][..]].concat();
    let refused = MembershipEffect::Refused { from: address(9), reason: GossipRefusal::Version };
    assert_eq!(reaction(&mut world, address(9), 1, &bytes), [refused]);
}

#[test]
fn noise_is_ignored() {
    let mut world = cluster(2, chain);
    let recorded = world.recorded.last().unwrap().2.clone();
    for cut in 0..recorded.len() {
        world.deliver(address(9), address(1), &recorded[..cut]);
        let mut changed = recorded.clone();
        changed[cut] ^= 0xff;
        world.deliver(address(9), address(1), &changed);
    }
    world.run(Duration::from_secs(10));
    world.assert_complete(&[1, 2]);
}

#[test]
fn equal_seeds_and_events_give_equal_effects() {
    let run = || {
        let mut world = cluster(4, chain);
        world.crash(2);
        world.run(Duration::from_secs(10));
        world.recorded
    };
    assert!(run() == run());
}

/// Tells node `number` that nobody listens any more where `suspect` took connections.
fn refused(world: &mut World, number: u8, suspect: u8) {
    let identity = Identity::new(&format!("n{suspect}"), Boot(0), address(1), address(1));
    let node = world.nodes.get_mut(&address(number)).unwrap();
    let boot = node.membership.known[&identity.key].identity.boot;
    let mut effects = Vec::new();
    let event = MembershipEvent::ListenerGone { node: identity.key, boot };
    node.membership.handle(event, world.now, &mut effects);
    world.perform(address(number), effects);
}

#[test]
fn a_process_seen_to_be_gone_is_dead_to_all_after_one_probe_period() {
    let mut world = cluster(5, chain);
    world.crash(3);
    refused(&mut world, 1, 3);
    world.run(Duration::from_millis(900));
    for number in [1, 2, 4, 5] {
        assert_eq!(deaths(&world.events(number)), [""; 0], "node {number} is too quick");
    }
    world.run(Duration::from_millis(600));
    world.assert_complete(&[1, 2, 4, 5]);
}

#[test]
fn a_living_member_refutes_that_it_is_gone_also_through_others() {
    for cut in [&[][..], &[(1, 3), (3, 1)]] {
        let mut world = cluster(5, chain);
        world.cut = cut.to_vec();
        for _ in 0..10 {
            refused(&mut world, 1, 3);
            world.run(Duration::from_secs(2));
        }
        for number in 1..=5 {
            assert_eq!(deaths(&world.events(number)), [""; 0], "node {number}, cut {cut:?}");
        }
        world.assert_complete(&[1, 2, 3, 4, 5]);
    }
}

#[test]
fn a_later_life_is_not_held_for_gone_because_the_former_one_is() {
    let mut world = cluster(3, chain);
    world.crash(3);
    refused(&mut world, 1, 3);
    world.run(Duration::from_millis(500));
    world.start(3, chain(3));
    world.run(Duration::from_secs(3));
    world.assert_complete(&[1, 2, 3]);
}

#[test]
fn who_was_cut_off_from_all_returns_without_anybody_being_held_for_dead() {
    for cut in [vec![(1, 3), (3, 1), (2, 3), (3, 2)], vec![(3, 1), (3, 2)], vec![(1, 3), (2, 3)]] {
        let mut world = cluster(3, chain);
        world.cut = cut.clone();
        world.run(Duration::from_secs(12));
        (1..=3).for_each(|number| drop(world.events(number)));
        world.cut.clear();
        world.run(Duration::from_secs(5));
        world.assert_complete(&[1, 2, 3]);
        for number in 1..=3 {
            assert_eq!(deaths(&world.events(number)), [""; 0], "node {number} after {cut:?}");
        }
        world.run(Duration::from_secs(20));
        world.assert_complete(&[1, 2, 3]);
    }
}
