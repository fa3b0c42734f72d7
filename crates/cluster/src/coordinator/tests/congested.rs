//! Links without room, and peers that are slow.

use super::*;

/// A bench whose link with the one other node has room or not.
fn congested(replication: Replication) -> (Bench, Peer) {
    let bench = Bench::with_replication(2, replication);
    let peer = Peer { node: bench.others[0], core: 0 };
    (bench, peer)
}

fn alone() -> Replication {
    Replication::new(1, 1, 1).expect("valid")
}

#[test]
fn requests_wait_for_room_in_their_order_and_nobody_failed() {
    let (mut bench, peer) = congested(alone());
    let key = bench.key_of(peer.node);
    bench.full = true;
    for connection in 0..20 {
        let said = bench.ask(connection, 0, &key, get());
        assert!(said.messages.is_empty() && said.answers.is_empty());
    }
    bench.now = NOW.after(Duration::from_secs(1));
    assert!(bench.with(|coordinator, turn| coordinator.tick(turn)).messages.is_empty());
    bench.request_buffer = Some(3);
    bench.full = false;
    let said = bench.with(|coordinator, turn| coordinator.on_buffer_available(peer, turn));
    assert_eq!(Messages::new(&said.messages).count(), 3, "as many as have room");
    bench.request_buffer = None;
    let said = bench.with(|coordinator, turn| coordinator.on_buffer_available(peer, turn));
    let operations: Vec<u64> = Messages::new(&said.messages)
        .map(|message| match Message::read(message.expect("whole")) {
            Ok(Message::Forward(forward)) => forward.operation.0 & 0xffff_ffff,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(operations, (3..20).collect::<Vec<u64>>(), "in their order");
    assert_eq!(bench.coordinator.breakers(bench.now)[0].1, BreakerState::Closed);
    assert_eq!(bench.coordinator.counters().quorum_failures, 0);
}

#[test]
fn a_request_that_never_finds_room_is_refused_as_busy_in_its_time() {
    let (mut bench, peer) = congested(alone());
    let key = bench.key_of(peer.node);
    bench.full = true;
    for connection in 0..20 {
        bench.ask(connection, 0, &key, set(b"v"));
    }
    bench.now = NOW.after(Duration::from_secs(2));
    bench.with(|coordinator, turn| coordinator.heard(peer, true, turn.now));
    bench.now = NOW.after(RetentionTimes::default().operation);
    let said = bench.with(|coordinator, turn| coordinator.tick(turn));
    assert_eq!(said.answers(), ["Busy"; 20]);
    assert_eq!(bench.coordinator.breakers(bench.now)[0].1, BreakerState::Closed);
    bench.full = false;
    let said = bench.with(|coordinator, turn| coordinator.on_buffer_available(peer, turn));
    assert!(said.messages.is_empty(), "what was refused is not performed");
    assert_eq!(bench.coordinator.operations(), 0);
}

#[test]
fn a_link_on_which_nothing_moves_is_the_peers_failure() {
    let (mut bench, peer) = congested(alone());
    let key = bench.key_of(peer.node);
    bench.full = true;
    for connection in 0..20 {
        bench.ask(connection, 0, &key, set(b"v"));
    }
    bench.now = NOW.after(RetentionTimes::default().operation);
    bench.with(|coordinator, turn| coordinator.tick(turn));
    assert_eq!(bench.coordinator.breakers(bench.now)[0].1, BreakerState::Open);
}

#[test]
fn what_waits_for_a_link_that_goes_looks_for_another_way() {
    let (mut bench, peer) = congested(alone());
    let key = bench.key_of(peer.node);
    bench.full = true;
    bench.ask(0, 0, &key, get());
    bench.full = false;
    let facts = PeerFacts { boot: Boot(1), core_count: 1, hash_seed: 0 };
    bench.with(|coordinator, turn| {
        // The next link comes before the former one is seen to be gone.
        coordinator.link(LinkEvent::Up { peer, facts }, turn);
        coordinator.link(LinkEvent::Down { peer, boot: Boot(1) }, turn);
    });
    bench.now = NOW.after(CHECK_EVERY);
    let said = bench.with(|coordinator, turn| coordinator.tick(turn));
    assert!(matches!(said.first(), Message::Forward(_)));
}

#[test]
fn what_requests_under_way_hold_is_bounded() {
    let (mut bench, peer) = congested(alone());
    let key = bench.key_of(peer.node);
    bench.full = true;
    let value = vec![7; 1 << 20];
    let limit = bench.coordinator.settings.operation_bytes_max;
    let mut refused = 0;
    for connection in 0..100 {
        let said = bench.ask(connection, 0, &key, set(&value));
        refused += said.answers().iter().filter(|answer| **answer == "Busy").count();
        assert!(bench.coordinator.operation_bytes() <= limit + value.len() + 1024);
    }
    assert_eq!(refused, 100 - (limit >> 20), "{}", bench.coordinator.operation_bytes());
    assert!(bench.ask(100, 0, &key, get()).answers.is_empty(), "what is short is taken");
    bench.now = NOW.after(RetentionTimes::default().operation);
    bench.with(|coordinator, turn| coordinator.tick(turn));
    assert_eq!(bench.coordinator.operation_bytes(), 0);
}

#[test]
fn what_other_nodes_hand_on_has_room_of_its_own() {
    let mut bench = Bench::with_replication(2, Replication::new(2, 2, 1).expect("valid"));
    let limit = 2 << 20;
    bench.coordinator.settings.operation_bytes_max = limit;
    let value = vec![7; 1 << 20];
    let key = bench.own_key();
    let asked: Vec<String> = (0..3)
        .flat_map(|connection| bench.ask(connection, 0, &key, set(&value)).answers)
        .map(|(_, answer)| answer)
        .collect();
    assert_eq!(asked, ["Busy"], "two are under way");
    assert_eq!(bench.coordinator.forward_room(), limit);
    let stamp = bench.view.stamp();
    let said = bench.forward(stamp, set(&value));
    let Message::Write { operation, .. } = said.first() else { panic!("{:?}", said.first()) };
    assert!(bench.coordinator.forward_room() < 1 << 20);
    bench.hear(&Message::WriteReply { operation, outcome: WriteOutcome::Applied });
    assert_eq!(bench.coordinator.forward_room(), limit);
}

#[test]
fn a_touch_of_a_long_value_is_refused_where_it_would_hold_too_much() {
    let mut bench = Bench::with_replication(2, Replication::new(2, 2, 1).expect("valid"));
    let key = bench.own_key();
    let said = bench.ask(0, 0, &key, set(&vec![7; 1 << 20]));
    let Message::Write { operation, .. } = said.first() else { panic!("{:?}", said.first()) };
    bench.hear(&Message::WriteReply { operation, outcome: WriteOutcome::Applied });
    bench.coordinator.settings.operation_bytes_max = 3 << 20;
    for connection in 1..10 {
        let deadline = Deadline::at(NOW.after(Duration::from_secs(60 + u64::from(connection))));
        let touch = Get { touch: Some(deadline), ..Get::default() };
        let said = bench.ask(connection, 0, &key, Command::Get(touch));
        // Each holds what it answers and what was there before.
        let refused = said.answers() == ["Busy"];
        assert_eq!(refused, connection > 2, "{connection}: {:?}", said.answers());
    }
    assert!(bench.coordinator.operation_bytes() <= 5 << 20);
}

#[test]
fn a_long_answer_waits_for_room_and_a_short_one_does_not() {
    let (mut bench, peer) = congested(alone());
    let keys: Vec<String> = (0..1000).map(|number| format!("key{number}")).collect();
    let own = |key: &&String| {
        let ring = bench.view.ring();
        bench.view.member(ring.owner(ring.point_of(key.as_bytes()))).key == bench.me
    };
    let own: Vec<&String> = keys.iter().filter(own).take(2).collect();
    bench.ask(0, 0, own[0], set(&vec![1; 100_000]));
    bench.ask(0, 1, own[1], set(b"short"));
    let stamp = bench.view.stamp();
    let forward = |bench: &mut Bench, key: &str| {
        let key = key.as_bytes();
        let hash = KeyHash::of(key, &HashSecret::of_seed(7));
        let request = Request { key, hash, operation: get() };
        let mut bytes = vec![0; codec::encoded_request_bytes(&request)];
        codec::encode_request(&request, &mut bytes);
        bench.hear(&Message::Forward(Forward {
            operation: OperationId(9),
            stamp,
            consistency: Consistency::Configured,
            point: RingHash::Md5.point_of(key),
            after: Version::NONE,
            request: &bytes,
        }))
    };
    bench.full = true;
    assert!(forward(&mut bench, own[0]).messages.is_empty(), "it waits");
    let said = forward(&mut bench, own[1]);
    assert!(matches!(said.first(), Message::ForwardReply { .. }), "it does not");
    assert!(bench.coordinator.operation_bytes() < 1000, "the value is not kept meanwhile");
    bench.full = false;
    let said = bench.with(|coordinator, turn| coordinator.on_buffer_available(peer, turn));
    let Message::ForwardReply { outcome, response, .. } = said.first() else { panic!("no reply") };
    assert_eq!(outcome, ForwardOutcome::Answered);
    assert!(response.len() > 100_000);
    assert_eq!(bench.coordinator.operations(), 0);
}

#[test]
fn a_replica_that_is_slow_is_waited_for_until_the_operation_timeout() {
    let mut bench = Bench::with_replication(2, Replication::new(2, 2, 1).expect("valid"));
    let node = bench.others[0];
    let mut asked = 0;
    for connection in 0..30 {
        let said = bench.ask(connection, 0, &format!("key{connection}"), set(b"v"));
        assert!(said.answers.is_empty());
        asked += Messages::new(&said.messages).count();
    }
    assert_eq!(asked, 30);
    let mut answers = Vec::new();
    let operation = RetentionTimes::default().operation;
    for millis in (0..operation.as_millis() as u64).step_by(50) {
        bench.now = NOW.after(Duration::from_millis(millis));
        let said = bench.with(|coordinator, turn| coordinator.tick(turn));
        answers.extend(said.answers().iter().map(|answer| (*answer).to_owned()));
    }
    assert_eq!(answers, Vec::<String>::new(), "nobody is refused before the time is over");
    assert_eq!(bench.coordinator.breakers(bench.now)[0].1, BreakerState::Open, "it is silent");
    // It answers after all.
    let under_way: Vec<OperationId> = bench.coordinator.operations.ids(|_| true);
    for operation in under_way {
        let outcome = WriteOutcome::Applied;
        let said = bench.hear_from(node, &Message::WriteReply { operation, outcome });
        assert_eq!(said.answers(), ["Stored"]);
    }
    assert_eq!(bench.coordinator.breakers(bench.now)[0].1, BreakerState::Closed);
    let counters = bench.coordinator.breaker_counters();
    assert_eq!((counters.opened, counters.closed), (1, 1));
}

#[test]
fn a_peer_that_says_anything_is_not_silent() {
    let mut bench = Bench::with_replication(2, Replication::new(2, 2, 1).expect("valid"));
    let peer = Peer { node: bench.others[0], core: 0 };
    for connection in 0..30 {
        bench.ask(connection, 0, &format!("key{connection}"), set(b"v"));
    }
    for second in 1..5 {
        bench.now = NOW.after(Duration::from_secs(second));
        bench.with(|coordinator, turn| {
            coordinator.heard(peer, true, turn.now);
            coordinator.tick(turn);
        });
    }
    assert_eq!(bench.coordinator.breakers(bench.now)[0].1, BreakerState::Closed);
}
