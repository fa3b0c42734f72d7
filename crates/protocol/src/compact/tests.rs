//! What the decoder makes of frames, whole, split and broken, and what the encoder leaves unsaid.

use bumpalo::Bump;
use proptest::collection::vec;
use proptest::prelude::*;

use super::client::{EntryWriter, Frame, ResponseFrame as Received};
use super::opcode::{HEADER_BYTES, request_flags};
use super::*;
use crate::pieces::{NOW, asked};
use crate::{AdminCommand, Answer, Context, Decoder, Limits, ReplyForm, Step, encode as answer};
use ringlane_types::hash::HashSecret;
use ringlane_types::request::{
    Arithmetic, Body, Get, Hit, Marks, Number, Operation, Purpose, Request, Response, Store,
    StoreMode, Value,
};
use ringlane_types::time::{Deadline, Instant};

fn limits() -> Limits {
    Limits { item_bytes_max: 4096, body_bytes_streamed: 512, ..Limits::default() }
}

fn steps(input: &[u8], piece: usize) -> Vec<String> {
    asked(Decoder::Compact(CompactDecoder::default()), &limits(), input, piece)
}

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    assert_eq!(bytes.len(), frame.encoded_bytes());
    bytes
}

/// Takes the only request of `bytes` and hands it to `look`.
fn with_request<T>(bytes: &[u8], look: impl FnOnce(&Request<'_>, ReplyForm) -> T) -> T {
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    match Decoder::default().next(bytes, &context) {
        Step::Request { consumed, request, reply, .. } => {
            assert_eq!(consumed, bytes.len(), "the whole frame is one request");
            look(&request, reply.form)
        }
        other => panic!("{other:?}"),
    }
}

fn operation_of(frame: &Frame<'_>) -> String {
    with_request(&encoded(frame), |request, _| format!("{:?}", request.operation))
}

fn form_of(frame: &Frame<'_>) -> CompactForm {
    with_request(&encoded(frame), |_, form| match form {
        ReplyForm::Compact(form) => form,
        other => panic!("{other:?}"),
    })
}

/// The status of the error that answers `bytes`, and what is left of `bytes` after it.
fn refusal(bytes: &[u8]) -> (Status, i64) {
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    let mut decoder = Decoder::Compact(CompactDecoder::default());
    match decoder.next(bytes, &context) {
        Step::Answer { consumed, answer: Answer::Bytes(answer), skip } => {
            let left = bytes.len() as i64 - consumed as i64 - skip as i64;
            (Status::from_code(answer[2]).expect("a status"), left)
        }
        other => panic!("{other:?}"),
    }
}

fn sent(form: CompactForm, response: &Response<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let reply = crate::Reply { form: ReplyForm::Compact(form), key: &[], tail: &[] };
    answer(&reply, response, NOW, &mut out);
    out
}

fn hit(value: &[u8]) -> Hit<'_> {
    Hit {
        item: None,
        key: b"key",
        value: Value::Whole(value),
        flags: 0,
        cas: 77,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        idle_seconds: 0,
        marks: Marks::default(),
        class: 1,
        item_bytes: 64,
    }
}

#[test]
fn a_plain_get_is_a_header_and_a_key_and_its_hit_a_header_and_a_value() {
    let frame = Frame::get(b"key", 7);
    assert_eq!(encoded(&frame).len(), HEADER_BYTES + 3);
    assert_eq!(operation_of(&frame), format!("{:?}", Operation::Get(Get::default())));
    assert_eq!(sent(form_of(&frame), &Response::Hit(hit(b"value"))).len(), HEADER_BYTES + 5);
}

#[test]
fn fields_reach_the_store() {
    let mut frame = Frame::set(b"key", b"value", 1);
    frame.client_flags = 9;
    frame.ttl_millis = Some(1500);
    frame.version = Some(42);
    frame.consistency = Consistency::Quorum;
    let expected = Store {
        flags: 9,
        deadline: Deadline::from_millis(NOW.as_millis() + 1500),
        compare: Some(42),
        refusal_removes: false,
        ..Store::set(b"value")
    };
    assert_eq!(operation_of(&frame), format!("{:?}", Operation::Store(expected)));
    assert_eq!(form_of(&frame).consistency(), Consistency::Quorum);
}

#[test]
fn a_set_without_ttl_or_with_ttl_0_never_expires() {
    let plain = Frame::set(b"key", b"value", 1);
    let zero = Frame { ttl_millis: Some(0), ..plain };
    let expected = format!("{:?}", Operation::Store(Store::set(b"value")));
    assert_eq!(operation_of(&plain), expected);
    assert_eq!(operation_of(&zero), expected);
}

#[test]
fn each_store_has_its_mode_and_only_plain_set_removes_on_refusal() {
    for (opcode, mode) in [
        (Opcode::Set, StoreMode::Set),
        (Opcode::Add, StoreMode::Add),
        (Opcode::Replace, StoreMode::Replace),
        (Opcode::Append, StoreMode::Append),
        (Opcode::Prepend, StoreMode::Prepend),
    ] {
        let frame = Frame { key: b"k", value: b"v", ..Frame::new(opcode, 0) };
        let refusal_removes = opcode == Opcode::Set;
        let expected = Store { mode, refusal_removes, ..Store::set(b"v") };
        assert_eq!(operation_of(&frame), format!("{:?}", Operation::Store(expected)));
    }
}

#[test]
fn arithmetic_takes_no_amount_an_amount_or_an_amount_and_a_start() {
    let numbers = [5u64.to_le_bytes(), 100u64.to_le_bytes()].concat();
    let deadline = Deadline::from_millis(NOW.as_millis() + 10);
    for (value, expected) in [
        (&numbers[..0], Arithmetic { touch: Some(deadline), ..Arithmetic::by(1, true) }),
        (&numbers[..8], Arithmetic { touch: Some(deadline), ..Arithmetic::by(5, true) }),
        (&numbers[..], Arithmetic { create: Some((100, deadline)), ..Arithmetic::by(5, true) }),
    ] {
        let frame = Frame { key: b"n", value, ttl_millis: Some(10), ..Frame::new(Opcode::Decr, 0) };
        assert_eq!(operation_of(&frame), format!("{:?}", Operation::Arithmetic(expected)));
    }
    let frame = Frame { key: b"n", value: &numbers[..9], ..Frame::new(Opcode::Incr, 0) };
    assert_eq!(refusal(&encoded(&frame)), (Status::Invalid, 0));
}

#[test]
fn probes_leave_no_trace_and_touches_are_uses() {
    for (opcode, purpose, touch) in [
        (Opcode::Exists, Purpose::Inspect, None),
        (Opcode::Ttl, Purpose::Inspect, None),
        (Opcode::Persist, Purpose::Inspect, Some(Deadline::NEVER)),
        (Opcode::Expire, Purpose::Inspect, Some(Deadline::from_millis(NOW.as_millis() + 5))),
        (Opcode::Touch, Purpose::Touch, Some(Deadline::from_millis(NOW.as_millis() + 5))),
        (Opcode::Gat, Purpose::Touch, Some(Deadline::from_millis(NOW.as_millis() + 5))),
    ] {
        let needs_ttl = opcode.spec().flags_needed & request_flags::TTL != 0;
        let ttl_millis = needs_ttl.then_some(5);
        let frame = Frame { key: b"k", ttl_millis, ..Frame::new(opcode, 0) };
        let no_use = purpose == Purpose::Inspect;
        let expected = Get { purpose, touch, no_use, ..Get::default() };
        assert_eq!(operation_of(&frame), format!("{:?}", Operation::Get(expected)), "{opcode:?}");
    }
}

#[test]
fn expire_with_0_is_refused_because_0_is_for_ever() {
    let frame = Frame { key: b"k", ttl_millis: Some(0), ..Frame::new(Opcode::Expire, 0) };
    assert_eq!(refusal(&encoded(&frame)), (Status::Invalid, 0));
}

#[test]
fn an_mget_yields_each_key_and_marks_the_last() {
    let mut bytes = Vec::new();
    let head = Frame { flags: request_flags::ANY_ORDER, ..Frame::new(Opcode::Mget, 3) };
    let mut entries = EntryWriter::new(&head, &mut bytes);
    entries.get(b"one");
    entries.get(b"two");
    entries.finish();
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    let mut decoder = Decoder::default();
    let mut at = 0;
    for (key, last) in [(&b"one"[..], false), (b"two", true)] {
        let Step::Request { consumed, request, reply, .. } = decoder.next(&bytes[at..], &context)
        else {
            panic!("no request");
        };
        at += consumed;
        assert_eq!(request.key, key);
        assert_eq!(reply.form.may_overtake(), !last, "the last answer ends the request");
        let mut out = Vec::new();
        answer(&reply, &Response::Hit(hit(b"v")), NOW, &mut out);
        let (response, length) = Received::decode(&out).expect("a response").expect("a whole one");
        assert_eq!((response.index, response.more), (Some(u32::from(last)), !last));
        assert_eq!((length, response.opaque), (out.len(), 3));
    }
    assert_eq!(at, bytes.len());
    assert!(matches!(decoder.next(&[], &context), Step::Incomplete));
}

#[test]
fn the_last_entry_is_answered_even_if_quiet() {
    let mut bytes = Vec::new();
    let head = Frame { flags: request_flags::QUIET, ..Frame::new(Opcode::Mget, 3) };
    let mut entries = EntryWriter::new(&head, &mut bytes);
    entries.get(b"a");
    entries.get(b"b");
    entries.finish();
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    let mut decoder = Decoder::default();
    let (mut at, mut out) = (0, Vec::new());
    while let Step::Request { consumed, reply, .. } = decoder.next(&bytes[at..], &context) {
        at += consumed;
        answer(&reply, &Response::Miss, NOW, &mut out);
    }
    let (response, length) = Received::decode(&out).expect("a response").expect("a whole one");
    assert_eq!((response.status, response.index), (Status::NotFound, Some(1)));
    assert_eq!(length, out.len());
}

#[test]
fn a_broken_entry_ends_its_frame_and_the_next_frame_is_read() {
    let mut bytes = Vec::new();
    let mut entries = EntryWriter::new(&Frame::new(Opcode::Mget, 3), &mut bytes);
    entries.get(b"a");
    entries.get(b"");
    entries.get(b"c");
    entries.finish();
    encoded(&Frame::get(b"next", 4)).into_iter().for_each(|byte| bytes.push(byte));
    let seen = steps(&bytes, usize::MAX / 2);
    assert_eq!(seen.len(), 3, "{seen:#?}");
    assert!(seen[0].starts_with("a Get") && seen[2].contains("opaque: 4"), "{seen:#?}");
    assert_eq!(seen, steps(&bytes, 1));
}

#[test]
fn an_entry_longer_than_its_frame_is_refused_before_it_arrives() {
    let mut bytes = Vec::new();
    let mut entries = EntryWriter::new(&Frame::new(Opcode::Mset, 3), &mut bytes);
    entries.set(&Frame::set(b"key", b"value", 0));
    entries.finish();
    bytes[HEADER_BYTES + 4] += 1;
    bytes.truncate(HEADER_BYTES + 8);
    assert_eq!(refusal(&bytes), (Status::Invalid, -8));
}

#[test]
fn a_large_value_that_has_not_arrived_is_streamed_and_one_that_has_is_not() {
    let value = vec![b'x'; 600];
    let frame = encoded(&Frame::set(b"key", &value, 1));
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    let mut decoder = Decoder::default();
    assert!(matches!(decoder.next(&frame[..14], &context), Step::Incomplete));
    match decoder.next(&frame[..20], &context) {
        Step::StoreHeader { consumed: 15, value_bytes: 600, trailer_bytes: 0, .. } => {}
        other => panic!("{other:?}"),
    }
    match Decoder::default().next(&frame, &context) {
        Step::Request { consumed, .. } => assert_eq!(consumed, frame.len()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_value_over_the_item_limit_is_refused_without_its_bytes() {
    let value = vec![b'x'; 5000];
    let frame = encoded(&Frame::set(b"key", &value, 1));
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    match Decoder::default().next(&frame[..15], &context) {
        Step::Request { consumed: 15, request, skip: 5000, .. } => match request.operation {
            Operation::Store(Store { value: Body::Refused(5000), .. }) => {}
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn faults_are_answered_and_the_connection_survives() {
    let get = encoded(&Frame::get(b"key", 9));
    let with = |at: usize, byte: u8| {
        let mut bytes = get.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(refusal(&with(0, 0xe0)), (Status::UnknownOpcode, 0));
    assert_eq!(refusal(&with(0, 0xff)), (Status::UnknownOpcode, 0));
    assert_eq!(refusal(&with(1, request_flags::RESERVED)), (Status::Invalid, 0));
    // A field that GET does not take is still part of the frame.
    assert_eq!(refusal(&with(1, request_flags::CLIENT_FLAGS)), (Status::Invalid, -4));
    assert_eq!(refusal(&with(2, 0)), (Status::Invalid, 3));
    assert_eq!(refusal(&with(2, 251)), (Status::Invalid, 3 - 251));
    assert_eq!(refusal(&with(4, 1)), (Status::Invalid, -1));
    let touch = encoded(&Frame { key: b"k", ..Frame::new(Opcode::Touch, 0) });
    assert_eq!(refusal(&touch), (Status::Invalid, 0), "the TTL is missing");
}

#[test]
fn an_error_tells_the_client_what_was_wrong() {
    let mut bytes = encoded(&Frame::get(b"key", 9));
    bytes[1] = request_flags::RESERVED;
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    let Step::Answer { answer: Answer::Bytes(answer), .. } =
        Decoder::default().next(&bytes, &context)
    else {
        panic!("no answer");
    };
    let (response, length) = Received::decode(answer).expect("a response").expect("a whole one");
    assert_eq!((length, response.opaque), (answer.len(), 9));
    assert_eq!(response.value, FrameError::FlagNotAllowed.message().as_bytes());
}

#[test]
fn a_stream_out_of_step_is_closed_after_an_answer() {
    let mut bytes = encoded(&Frame::get(b"key", 9));
    bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
    let seen = steps(&bytes, usize::MAX / 2);
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2], "close");
    let mut endless = encoded(&Frame::get(b"key", 9));
    endless[7] = 0x7f;
    assert_eq!(steps(&endless, 64).last().map(String::as_str), Some("close"));
}

#[test]
fn noop_is_answered_in_order_and_hello_flush_and_stats_go_to_the_node() {
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    let next = |frame: Frame<'_>| -> String {
        let bytes = encoded(&frame);
        match Decoder::default().next(&bytes, &context) {
            Step::Answer { consumed, answer, skip: 0 } if consumed == bytes.len() => {
                format!("{answer:?}")
            }
            Step::Admin { consumed, command, .. } if consumed == bytes.len() => {
                format!("{command:?}")
            }
            other => panic!("{other:?}"),
        }
    };
    let noop = Answer::Bytes(&[0x83, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]);
    assert_eq!(next(Frame::new(Opcode::Noop, 5)), format!("{noop:?}"));
    assert_eq!(next(Frame::new(Opcode::Hello, 5)), "Hello");
    let at = Instant::from_millis(NOW.as_millis() + 2000);
    let later = Frame { ttl_millis: Some(2000), ..Frame::new(Opcode::Flush, 5) };
    assert_eq!(next(later), format!("{:?}", AdminCommand::FlushAll { at }));
    let settings = Frame { key: b"settings", ..Frame::new(Opcode::Stats, 5) };
    assert_eq!(next(settings), format!("{:?}", AdminCommand::Stats { argument: b"settings" }));
}

#[test]
fn quiet_reads_keep_silent_about_misses_and_quiet_writes_about_success() {
    let quiet = |opcode: Opcode| {
        let ttl_millis = (opcode.spec().flags_needed & request_flags::TTL != 0).then_some(1);
        let version = (opcode.spec().flags_needed & request_flags::VERSION != 0).then_some(1);
        let flags = request_flags::QUIET;
        form_of(&Frame { key: b"k", flags, ttl_millis, version, ..Frame::new(opcode, 0) })
    };
    for spec in OPCODES {
        let form = match spec.kind {
            Kind::Read | Kind::Write | Kind::Store => quiet(spec.opcode),
            _ => continue,
        };
        let is_read = spec.kind == Kind::Read;
        assert_eq!(sent(form, &Response::Miss).is_empty(), is_read, "{}", spec.name);
        assert_eq!(sent(form, &Response::Hit(hit(b""))).is_empty(), !is_read, "{}", spec.name);
        assert!(!sent(form, &Response::OutOfMemory).is_empty(), "{}", spec.name);
    }
}

#[test]
fn details_carry_version_and_time_left() {
    let frame = Frame { flags: request_flags::DETAILS, ..Frame::get(b"key", 1) };
    let deadline = Deadline::from_millis(NOW.as_millis() + 250);
    let found = Hit { deadline, flags: 3, ..hit(b"value") };
    let bytes = sent(form_of(&frame), &Response::Hit(found));
    let (response, _) = Received::decode(&bytes).expect("a response").expect("a whole one");
    assert_eq!(response.client_flags, 3);
    assert_eq!((response.ttl_millis, response.version), (Some(250), Some(77)));
    assert_eq!(response.value, b"value");
    let stored = Response::Stored { cas: 5, value_bytes: 1 };
    let bytes = sent(form_of(&Frame { opcode: Opcode::Set, ..frame }), &stored);
    let (response, _) = Received::decode(&bytes).expect("a response").expect("a whole one");
    assert_eq!(response.version, Some(5));
}

#[test]
fn only_reads_of_values_send_the_value() {
    let found = Response::Hit(Hit { flags: 3, ..hit(b"value") });
    for opcode in [Opcode::Exists, Opcode::Ttl, Opcode::Persist] {
        let bytes = sent(form_of(&Frame { key: b"k", ..Frame::new(opcode, 0) }), &found);
        assert_eq!(bytes.len(), HEADER_BYTES, "{opcode:?}");
    }
}

#[test]
fn arithmetic_answers_eight_bytes() {
    let number = Number {
        value: u64::MAX,
        key: b"n",
        cas: 3,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        created: false,
        binary_key: false,
    };
    let frame = Frame { key: b"n", ..Frame::new(Opcode::Incr, 0) };
    let bytes = sent(form_of(&frame), &Response::Number(number));
    let (response, _) = Received::decode(&bytes).expect("a response").expect("a whole one");
    assert_eq!(response.number(), Some(u64::MAX));
}

#[test]
fn statistics_end_with_an_answer_that_has_no_more() {
    let form = CompactForm {
        opcode: Opcode::Stats,
        opaque: 6,
        index: 0,
        flags: 0,
        consistency: Consistency::Configured,
        entry: Entry::Only,
    };
    let mut out = Vec::new();
    encode_stat(form, b"pid", b"42", &mut out);
    encode_stats_end(form, &mut out);
    let (stat, length) = Received::decode(&out).expect("a response").expect("a whole one");
    assert_eq!((stat.key, stat.value, stat.more), (&b"pid"[..], &b"42"[..], true));
    let (end, rest) = Received::decode(&out[length..]).expect("a response").expect("a whole one");
    assert_eq!((end.key.len(), end.value.len(), end.more), (0, 0, false));
    assert_eq!(length + rest, out.len());
}

/// Frames of every kind, some broken.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![
        8 => (0..OPCODES.len()).prop_map(|index| OPCODES[index].opcode as u8),
        1 => any::<u8>(),
    ];
    let frame = (
        opcode,
        prop_oneof![2 => Just(0), 1 => any::<u8>()],
        vec(any::<u8>(), 0..6),
        prop_oneof![4 => 0usize..20, 1 => 500usize..700, 1 => 4000usize..4200],
        any::<u32>(),
    )
        .prop_map(|(opcode, flags, key, value_bytes, opaque)| {
            let mut bytes = vec![opcode, flags];
            bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
            let spec = Opcode::from_code(opcode).map(Opcode::spec);
            let value_bytes = match spec {
                Some(spec) if spec.value_bytes_max == 0 => 0,
                _ => value_bytes,
            };
            bytes.extend_from_slice(&(value_bytes as u32).to_le_bytes());
            bytes.extend_from_slice(&opaque.to_le_bytes());
            let fields = opcode::REQUEST_FIELD_BYTES[(flags & request_flags::FIELDS) as usize];
            bytes.resize(bytes.len() + fields as usize, 0);
            bytes.extend_from_slice(&key);
            // Zeros and small numbers, so that they also make entries now and then.
            bytes.extend((0..value_bytes).map(|at| u8::from(at % 3 == 0)));
            bytes
        });
    vec(frame, 1..6).prop_map(|frames| frames.concat())
}

proptest! {
    #[test]
    fn split_input_parses_like_whole(bytes in frames(), fed in 1usize..40) {
        prop_assert_eq!(steps(&bytes, fed), steps(&bytes, usize::MAX / 2));
    }

    #[test]
    fn no_bytes_upset_the_decoder(mut bytes in vec(any::<u8>(), 1..200), fed in 1usize..40) {
        bytes[0] |= 0x82;
        prop_assert_eq!(steps(&bytes, fed), steps(&bytes, usize::MAX / 2));
    }

    #[test]
    fn no_bytes_upset_the_client(bytes in vec(any::<u8>(), 0..100)) {
        if let Ok(Some((_, length))) = Received::decode(&bytes) {
            prop_assert!((HEADER_BYTES..=bytes.len()).contains(&length));
        }
        let _ = Topology::from_bytes(&bytes);
    }
}
