//! Reads whose value is longer than whoever asked can take.

use super::*;
use ringlane_types::request::Allowance;

fn limited(bytes: u32) -> Command<'static> {
    Command::Get(Get { allowance: Allowance(bytes), ..Get::default() })
}

fn alone() -> Replication {
    Replication::new(1, 1, 1).expect("valid")
}

/// The operation under which the one message of `said` forwards a request.
fn forwarded(said: &Said) -> OperationId {
    match said.first() {
        Message::Forward(forward) => forward.operation,
        other => panic!("{other:?}"),
    }
}

/// Lets the other node answer `operation` by `response`.
fn answer(bench: &mut Bench, operation: OperationId, response: &Response<'_>) -> Said {
    let mut bytes = vec![0; codec::encoded_response_bytes(response)];
    codec::encode_response(response, &mut bytes);
    let (outcome, version) = (ForwardOutcome::Answered, Version::NONE);
    bench.hear(&Message::ForwardReply { operation, outcome, version, response: &bytes })
}

/// The one request that came back to its client, and how long its value is.
fn put_off(said: &Said) -> (Request<'_>, u32) {
    let [(value_bytes, request)] = &said.put_off[..] else { panic!("{:?}", said.put_off) };
    (codec::decode_request(request).expect("whole"), *value_bytes)
}

#[test]
fn a_value_longer_than_its_forwarded_read_was_allowed_does_not_leave_its_node() {
    let mut bench = Bench::new(1);
    let stamp = bench.view.stamp();
    bench.forwarded(stamp, set(&[b'v'; 100]));
    for (allowance, comes) in [(0, false), (99, false), (100, true), (u32::MAX, true)] {
        let (outcome, response) = bench.forwarded(stamp, limited(allowance));
        assert_eq!(outcome, ForwardOutcome::Answered);
        match codec::decode_response(&response) {
            Ok(Response::Hit(hit)) => assert!(comes && hit.value.len() == 100, "{allowance}"),
            Ok(Response::OverAllowance { value_bytes: 100, request: [] }) => assert!(!comes),
            other => panic!("{allowance}: {other:?}"),
        }
    }
}

#[test]
fn a_read_over_its_allowance_comes_back_as_its_client_made_it() {
    let mut bench = Bench::with_replication(2, alone());
    let key = bench.key_of(bench.others[0]);
    let said = bench.ask(1, 0, &key, limited(1000));
    let Message::Forward(forward) = said.first() else { panic!("{:?}", said.first()) };
    let told = codec::decode_request(forward.request).expect("whole");
    assert!(matches!(told.operation, Command::Get(get) if get.allowance == Allowance(1000)));
    let over = Response::OverAllowance { value_bytes: 1001, request: &[] };
    let said = answer(&mut bench, forward.operation, &over);
    let (request, value_bytes) = put_off(&said);
    assert_eq!((request.key, value_bytes), (key.as_bytes(), 1001));
    assert_eq!(request.hash, KeyHash::of(key.as_bytes(), &HashSecret::of_seed(0)));
    assert_eq!(bench.coordinator.operations(), 0);
}

#[test]
fn a_node_that_refuses_what_was_allowed_is_not_believed() {
    let mut bench = Bench::with_replication(2, alone());
    let key = bench.key_of(bench.others[0]);
    for command in [get(), limited(1000), set(b"v")] {
        let asked = forwarded(&bench.ask(1, 0, &key, command));
        let over = Response::OverAllowance { value_bytes: 1000, request: &[] };
        let said = answer(&mut bench, asked, &over);
        assert_eq!((said.answers(), said.put_off.len()), (vec!["Uncertain"], 0));
    }
    assert_eq!(bench.coordinator.counters().malformed, 3);
}

#[test]
fn a_replicated_read_over_its_allowance_is_not_performed() {
    let mut bench = Bench::with_replication(2, Replication::new(2, 2, 1).expect("valid"));
    let key = bench.own_key();
    bench.ask(1, 0, &key, set(&[b'v'; 100]));
    let touch = |bytes| {
        let deadline = Deadline::at(NOW.after(Duration::from_secs(60)));
        Command::Get(Get { touch: Some(deadline), allowance: Allowance(bytes), ..Get::default() })
    };
    let held = bench.store.read(key.as_bytes(), NOW).expect("it was set").version;
    for (sequence, command) in [(1, limited(99)), (2, touch(99))] {
        let said = bench.ask(2, sequence, &key, command);
        assert_eq!(put_off(&said).1, 100, "{command:?}");
    }
    let after = bench.store.read(key.as_bytes(), NOW).expect("it was set").version;
    assert_eq!(held, after, "neither was performed");
    assert_eq!(bench.ask(3, 0, &key, limited(100)).answers(), ["v".repeat(100)]);
}

#[test]
fn a_copy_of_a_hot_key_is_as_long_as_what_it_copies() {
    let mut bench = Bench::with_replication(2, alone());
    let key = bench.key_of(bench.others[0]);
    let hit = Response::Hit(ringlane_types::request::Hit {
        item: None,
        key: key.as_bytes(),
        value: ringlane_types::request::Value::Whole(&[b'v'; 100]),
        flags: 0,
        cas: 1,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        idle_seconds: 0,
        marks: Default::default(),
        class: 1,
        item_bytes: 200,
    });
    for _ in 0..HotKeySettings::default().threshold {
        let asked = forwarded(&bench.ask(1, 0, &key, get()));
        answer(&mut bench, asked, &hit);
    }
    assert_eq!(bench.ask(1, 0, &key, limited(100)).answers().len(), 1);
    assert_eq!(put_off(&bench.ask(1, 0, &key, limited(99))).1, 100);
}
