//! What the decoder makes of packets, and the bytes memcached 1.6.18 was seen to answer.

use bumpalo::Bump;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::pieces::{NOW, asked};
use crate::{
    AdminAnswer, Answer, Context, Decoder, Limits, Reply, ReplyForm, Step, encode as answer,
};
use ringlane_types::hash::HashSecret;
use ringlane_types::request::{
    Arithmetic, Body, Delete, Get, Hit, Marks, Number, Operation, Purpose, Response, Store,
    StoreMode, Value,
};
use ringlane_types::time::{Deadline, Instant};

fn limits() -> Limits {
    Limits { item_bytes_max: 4096, body_bytes_streamed: 512, ..Limits::default() }
}

/// A request packet.
#[derive(Clone, Copy, Default)]
struct Sent<'a> {
    opcode: u8,
    extras: &'a [u8],
    key: &'a [u8],
    value: &'a [u8],
    cas: u64,
}

impl Sent<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut packet = vec![REQUEST_MAGIC, self.opcode];
        packet.extend_from_slice(&(self.key.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[self.extras.len() as u8, 0, 0, 0]);
        let body = self.extras.len() + self.key.len() + self.value.len();
        packet.extend_from_slice(&(body as u32).to_be_bytes());
        packet.extend_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        packet.extend_from_slice(&self.cas.to_be_bytes());
        [&packet[..], self.extras, self.key, self.value].concat()
    }
}

/// A response packet with the opaque above, as memcached sends it.
fn packet(opcode: u8, status: u16, extras: &[u8], key: &[u8], value: &[u8], cas: u64) -> Vec<u8> {
    let mut packet = vec![RESPONSE_MAGIC, opcode];
    packet.extend_from_slice(&(key.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[extras.len() as u8, 0]);
    packet.extend_from_slice(&status.to_be_bytes());
    let body = extras.len() + key.len() + value.len();
    packet.extend_from_slice(&(body as u32).to_be_bytes());
    packet.extend_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    packet.extend_from_slice(&cas.to_be_bytes());
    [&packet[..], extras, key, value].concat()
}

fn with_step<T>(bytes: &[u8], look: impl FnOnce(&mut Decoder, Step<'_>) -> T) -> T {
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    let mut decoder = Decoder::default();
    let step = decoder.next(bytes, &context);
    look(&mut decoder, step)
}

fn operation_of(sent: Sent<'_>) -> String {
    let bytes = sent.bytes();
    with_step(&bytes, |_, step| match step {
        Step::Request { consumed, request, .. } => {
            assert_eq!((consumed, request.key), (bytes.len(), sent.key));
            format!("{:?}", request.operation)
        }
        other => panic!("{other:?}"),
    })
}

/// The bytes that answer `sent` when the shard says `response`.
fn answered(sent: Sent<'_>, response: &Response<'_>) -> Vec<u8> {
    with_step(&sent.bytes(), |_, step| match step {
        Step::Request { reply, .. } => {
            let mut out = Vec::new();
            answer(&reply, response, NOW, &mut out);
            out
        }
        other => panic!("{other:?}"),
    })
}

/// The bytes that answer `bytes` at once, what is left of `bytes`, and whether the connection
/// then closes.
fn refused(bytes: &[u8]) -> (Vec<u8>, i64, bool) {
    with_step(bytes, |decoder, step| match step {
        Step::Answer { consumed, answer: Answer::Bytes(answer), skip } => {
            let left = bytes.len() as i64 - consumed as i64 - skip as i64;
            let (limits, scratch) = (limits(), Bump::new());
            let context = Context {
                limits: &limits,
                now: NOW,
                hash_secret: &HashSecret::of_seed(1),
                scratch: &scratch,
            };
            let rest = &bytes[bytes.len().min(consumed + skip as usize)..];
            let closes = matches!(decoder.next(rest, &context), Step::Close);
            (answer.to_vec(), left, closes)
        }
        other => panic!("{other:?}"),
    })
}

fn hit() -> Response<'static> {
    Response::Hit(Hit {
        item: None,
        key: b"k",
        value: Value::Whole(b"value"),
        flags: 0x0102_0304,
        cas: 7,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        idle_seconds: 0,
        marks: Marks::default(),
        class: 1,
        item_bytes: 64,
    })
}

const FLAGS: &[u8] = &[1, 2, 3, 4];
const STORE_EXTRAS: &[u8] = &[1, 2, 3, 4, 0, 0, 0, 10];
const TOUCH_EXTRAS: &[u8] = &[0, 0, 0, 10];

fn in_ten_seconds() -> Deadline {
    Deadline::from_millis(NOW.as_millis() + 10_000)
}

#[test]
fn each_read_answers_a_hit_with_flags_and_those_with_k_with_the_key() {
    for (opcode, extras, key) in [
        (opcode::GET, &b""[..], &b""[..]),
        (opcode::GETQ, b"", b""),
        (opcode::GETK, b"", b"k"),
        (opcode::GETKQ, b"", b"k"),
        (opcode::GAT, TOUCH_EXTRAS, b""),
        (opcode::GATQ, TOUCH_EXTRAS, b""),
        (opcode::GATK, TOUCH_EXTRAS, b"k"),
        (opcode::GATKQ, TOUCH_EXTRAS, b"k"),
    ] {
        let sent = Sent { opcode, extras, key: b"k", ..Sent::default() };
        let expected = packet(opcode, 0, FLAGS, key, b"value", 7);
        assert_eq!(answered(sent, &hit()), expected, "{opcode:#x}");
    }
    let touch = Sent { opcode: opcode::TOUCH, extras: TOUCH_EXTRAS, key: b"k", ..Sent::default() };
    assert_eq!(answered(touch, &hit()), packet(opcode::TOUCH, 0, FLAGS, b"", b"", 7));
}

#[test]
fn a_miss_is_a_text_the_key_or_silence() {
    for (opcode, extras, expected) in [
        (opcode::GET, &b""[..], packet(opcode::GET, 1, b"", b"", b"Not found", 0)),
        (opcode::GETK, b"", packet(opcode::GETK, 1, b"", b"k", b"", 0)),
        (opcode::GETQ, b"", vec![]),
        (opcode::GETKQ, b"", vec![]),
        (opcode::TOUCH, TOUCH_EXTRAS, packet(opcode::TOUCH, 1, b"", b"", b"Not found", 0)),
        (opcode::GAT, TOUCH_EXTRAS, packet(opcode::GAT, 1, b"", b"", b"Not found", 0)),
        (opcode::GATK, TOUCH_EXTRAS, packet(opcode::GATK, 1, b"", b"k", b"", 0)),
        (opcode::GATQ, TOUCH_EXTRAS, vec![]),
        (opcode::GATKQ, TOUCH_EXTRAS, vec![]),
    ] {
        let sent = Sent { opcode, extras, key: b"k", ..Sent::default() };
        assert_eq!(answered(sent, &Response::Miss), expected, "{opcode:#x}");
    }
}

#[test]
fn reads_and_touches_reach_the_shard_as_such() {
    let get = Sent { opcode: opcode::GETK, key: b"k", ..Sent::default() };
    assert_eq!(operation_of(get), format!("{:?}", Operation::Get(Get::default())));
    let touching = Get { purpose: Purpose::Touch, touch: Some(in_ten_seconds()), ..Get::default() };
    for opcode in [opcode::TOUCH, opcode::GAT, opcode::GATKQ] {
        let sent = Sent { opcode, extras: TOUCH_EXTRAS, key: b"k", ..Sent::default() };
        assert_eq!(operation_of(sent), format!("{:?}", Operation::Get(touching)));
    }
}

#[test]
fn an_exptime_is_unsigned_and_follows_the_rule_of_thirty_days() {
    for (exptime, deadline) in [
        (0u32, Deadline::NEVER),
        (10, in_ten_seconds()),
        (1_700_000_005, Deadline::from_millis(1_700_000_005_000)),
        (u32::MAX, Deadline::from_millis(u64::from(u32::MAX) * 1000)),
    ] {
        let extras = [&[0; 4][..], &exptime.to_be_bytes()].concat();
        let sent = Sent { opcode: opcode::SET, extras: &extras, key: b"k", value: b"v", cas: 0 };
        let store = Store { deadline, ..Store::set(b"v") };
        assert_eq!(operation_of(sent), format!("{:?}", Operation::Store(store)), "{exptime}");
    }
}

#[test]
fn stores_have_their_modes_and_a_cas_token_makes_them_compare_and_swap() {
    use StoreMode::{Add, Append, Prepend, Replace, Set};
    for (opcode, mode, mode_with_cas) in [
        (opcode::SET, Set, Set),
        (opcode::SETQ, Set, Set),
        (opcode::ADD, Add, Set),
        (opcode::REPLACEQ, Replace, Set),
        (opcode::APPEND, Append, Append),
        (opcode::PREPENDQ, Prepend, Prepend),
    ] {
        for cas in [0, 9] {
            let bare = matches!(mode, Append | Prepend);
            let extras = if bare { b"" } else { STORE_EXTRAS };
            let sent = Sent { opcode, extras, key: b"k", value: b"v", cas };
            let store = Store {
                mode: if cas == 0 { mode } else { mode_with_cas },
                flags: if bare { 0 } else { 0x0102_0304 },
                deadline: if bare { Deadline::NEVER } else { in_ten_seconds() },
                compare: (cas != 0).then_some(cas),
                refusal_removes: matches!(opcode, opcode::SET | opcode::SETQ),
                ..Store::set(b"v")
            };
            assert_eq!(operation_of(sent), format!("{:?}", Operation::Store(store)));
        }
    }
}

#[test]
fn the_words_for_a_failed_store_depend_on_the_command() {
    for (opcode, status, text) in [
        (opcode::ADD, 2, "Data exists for key."),
        (opcode::ADDQ, 2, "Data exists for key."),
        (opcode::REPLACE, 1, "Not found"),
        (opcode::APPEND, 5, "Not stored."),
        (opcode::PREPENDQ, 5, "Not stored."),
    ] {
        let bare = matches!(opcode, opcode::APPEND | opcode::PREPENDQ);
        let extras = if bare { b"" } else { STORE_EXTRAS };
        let sent = Sent { opcode, extras, key: b"k", value: b"v", cas: 0 };
        let expected = packet(opcode, status, b"", b"", text.as_bytes(), 0);
        assert_eq!(answered(sent, &Response::NotStored), expected);
    }
    let set = Sent { opcode: opcode::SETQ, extras: STORE_EXTRAS, key: b"k", value: b"v", cas: 4 };
    for (response, status, text) in [
        (Response::Exists, 2, "Data exists for key."),
        (Response::NotFound, 1, "Not found"),
        (Response::TooLarge, 3, "Too large."),
        (Response::OutOfMemory, 0x82, "Out of memory allocating item"),
    ] {
        let expected = packet(opcode::SETQ, status, b"", b"", text.as_bytes(), 0);
        assert_eq!(answered(set, &response), expected, "errors are answered though quiet");
    }
    let stored = Response::Stored { cas: 5, value_bytes: 1 };
    assert!(answered(set, &stored).is_empty());
    let set = Sent { opcode: opcode::SET, ..set };
    assert_eq!(answered(set, &stored), packet(opcode::SET, 0, b"", b"", b"", 5));
}

#[test]
fn arithmetic_creates_unless_the_exptime_is_all_ones() {
    let extras = |exptime: u32| {
        [&5u64.to_be_bytes()[..], &100u64.to_be_bytes(), &exptime.to_be_bytes()].concat()
    };
    let expected = Arithmetic {
        create: Some((100, in_ten_seconds())),
        compare: Some(3),
        ..Arithmetic::by(5, true)
    };
    let creating = extras(10);
    let sent = Sent { opcode: opcode::DECREMENT, extras: &creating, key: b"n", value: b"", cas: 3 };
    assert_eq!(operation_of(sent), format!("{:?}", Operation::Arithmetic(expected)));
    let all_ones = extras(u32::MAX);
    let sent = Sent { opcode: opcode::INCREMENTQ, extras: &all_ones, key: b"n", ..sent };
    let expected = Arithmetic { compare: Some(3), ..Arithmetic::by(5, false) };
    assert_eq!(operation_of(sent), format!("{:?}", Operation::Arithmetic(expected)));

    let number = Response::Number(Number {
        value: 12,
        key: b"n",
        cas: 8,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        created: false,
        binary_key: false,
    });
    assert!(answered(sent, &number).is_empty());
    let sent = Sent { opcode: opcode::INCREMENT, ..sent };
    let expected = packet(opcode::INCREMENT, 0, b"", b"", &12u64.to_be_bytes(), 8);
    assert_eq!(answered(sent, &number), expected);
    for (response, status, text) in [
        (Response::NotFound, 1, "Not found"),
        (Response::NonNumeric, 6, "Non-numeric server-side value for incr or decr"),
        (Response::Exists, 2, "Data exists for key."),
        (Response::OutOfMemory, 0x82, "Out of memory incrementing value"),
        (Response::NotCreated, 0x82, "Out of memory allocating new item"),
    ] {
        let expected = packet(opcode::INCREMENT, status, b"", b"", text.as_bytes(), 0);
        assert_eq!(answered(sent, &response), expected);
    }
}

#[test]
fn delete_compares_a_cas_token_and_its_quiet_form_is_silent_about_success() {
    let delete = Sent { opcode: opcode::DELETE, key: b"k", cas: 9, ..Sent::default() };
    let expected = Delete { compare: Some(9), ..Delete::default() };
    assert_eq!(operation_of(delete), format!("{:?}", Operation::Delete(expected)));
    let deleted = packet(opcode::DELETE, 0, b"", b"", b"", 0);
    assert_eq!(answered(delete, &Response::Deleted), deleted);
    let quiet = Sent { opcode: opcode::DELETEQ, ..delete };
    assert!(answered(quiet, &Response::Deleted).is_empty());
    let missing = packet(opcode::DELETEQ, 1, b"", b"", b"Not found", 0);
    assert_eq!(answered(quiet, &Response::NotFound), missing);
}

#[test]
fn noop_and_version_are_answered_at_once_and_quit_closes() {
    let answer_to = |opcode| refused(&Sent { opcode, ..Sent::default() }.bytes());
    assert_eq!(answer_to(opcode::NOOP).0, packet(opcode::NOOP, 0, b"", b"", b"", 0));
    let version = packet(opcode::VERSION, 0, b"", b"", crate::VERSION.as_bytes(), 0);
    assert_eq!(answer_to(opcode::VERSION).0, version);
    let (quit, _, closes) = answer_to(opcode::QUIT);
    assert_eq!((quit, closes), (packet(opcode::QUIT, 0, b"", b"", b"", 0), true));
    let quitq = Sent { opcode: opcode::QUITQ, ..Sent::default() }.bytes();
    with_step(&quitq, |_, step| assert!(matches!(step, Step::Close)));
}

#[test]
fn flush_stat_and_verbosity_go_to_the_node() {
    let command = |opcode, extras: &[u8], key: &[u8]| {
        let bytes = Sent { opcode, extras, key, ..Sent::default() }.bytes();
        with_step(&bytes, |_, step| match step {
            Step::Admin { consumed, command, .. } => {
                assert_eq!(consumed, bytes.len());
                format!("{command:?}")
            }
            other => panic!("{other:?}"),
        })
    };
    let flush = |at: Instant| format!("FlushAll {{ at: {at:?} }}");
    assert_eq!(command(opcode::FLUSH, b"", b""), flush(NOW));
    assert_eq!(command(opcode::FLUSHQ, &[0; 4], b""), flush(NOW));
    let later = Instant::from_millis(NOW.as_millis() + 10_000);
    assert_eq!(command(opcode::FLUSH, TOUCH_EXTRAS, b""), flush(later));
    assert_eq!(
        command(opcode::STAT, b"", b"items"),
        format!("Stats {{ argument: {:?} }}", b"items")
    );
    assert_eq!(command(opcode::VERBOSITY, &[0, 0, 0, 2], b""), "Verbosity(2)");
}

#[test]
fn node_commands_end_in_success_silence_or_memcacheds_errors() {
    let ended = |opcode, answer| {
        let mut out = Vec::new();
        encode_admin(
            MemcachedBinaryForm { opcode, opaque: [0xde, 0xad, 0xbe, 0xef] },
            answer,
            &mut out,
        );
        out
    };
    let done = packet(opcode::FLUSH, 0, b"", b"", b"", 0);
    assert_eq!(ended(opcode::FLUSH, AdminAnswer::Done), done);
    assert!(ended(opcode::FLUSHQ, AdminAnswer::Done).is_empty());
    let refused = packet(opcode::FLUSHQ, 0x20, b"", b"", b"Auth failure.", 0);
    assert_eq!(ended(opcode::FLUSHQ, AdminAnswer::FlushNotAllowed), refused);
    let unknown = packet(opcode::STAT, 1, b"", b"", b"Not found", 0);
    assert_eq!(ended(opcode::STAT, AdminAnswer::Unknown), unknown);
    let reset = packet(opcode::STAT, 0, b"", b"", b"", 0);
    assert_eq!(ended(opcode::STAT, AdminAnswer::StatsReset), reset);
}

#[test]
fn statistics_are_packets_of_name_and_value_and_end_with_an_empty_one() {
    let reply = Reply {
        form: ReplyForm::MemcachedBinary(MemcachedBinaryForm {
            opcode: opcode::STAT,
            opaque: [0xde, 0xad, 0xbe, 0xef],
        }),
        key: b"",
        tail: b"",
    };
    let mut out = Vec::new();
    crate::encode_stat(&reply, b"pid", b"42", &mut out);
    crate::encode_stats_end(&reply, &mut out);
    let stat = packet(opcode::STAT, 0, b"", b"pid", b"42", 0);
    let end = packet(opcode::STAT, 0, b"", b"", b"", 0);
    assert_eq!(out, [&stat[..], &end].concat());
    out.clear();
    crate::encode_stats_text(&reply, b"END\r\n", &mut out);
    let detailed = packet(opcode::STAT, 0, b"", b"detailed", b"END\r\n", 0);
    assert_eq!(out, [detailed, end].concat());
}

#[test]
fn unknown_commands_are_answered_and_their_bodies_dropped() {
    for opcode in [0x40, 0xff, opcode::SASL_LIST, opcode::SASL_AUTH, opcode::SASL_STEP] {
        let bytes =
            Sent { opcode, key: b"PLAIN", value: b"\0user\0pass", ..Sent::default() }.bytes();
        let expected = packet(opcode, 0x81, b"", b"", b"Unknown command", 0);
        assert_eq!(refused(&bytes), (expected, 0, false));
    }
}

#[test]
fn lengths_a_command_does_not_take_end_the_connection() {
    let long_key = [b'k'; 251];
    for sent in [
        Sent { opcode: opcode::GET, ..Sent::default() },
        Sent { opcode: opcode::GET, key: b"k", extras: b"1234", ..Sent::default() },
        Sent { opcode: opcode::GET, key: b"k", value: b"v", ..Sent::default() },
        Sent { opcode: opcode::GET, key: &long_key, ..Sent::default() },
        Sent { opcode: opcode::SET, key: b"k", extras: b"1234", value: b"v", cas: 0 },
        Sent { opcode: opcode::SETQ, extras: STORE_EXTRAS, value: b"v", ..Sent::default() },
        Sent { opcode: opcode::APPEND, key: b"k", extras: b"1234", value: b"v", cas: 0 },
        Sent { opcode: opcode::DELETE, key: b"k", value: b"v", ..Sent::default() },
        Sent { opcode: opcode::INCREMENT, key: b"k", extras: b"12345678", ..Sent::default() },
        Sent { opcode: opcode::TOUCH, extras: TOUCH_EXTRAS, ..Sent::default() },
        Sent { opcode: opcode::FLUSH, extras: b"12", ..Sent::default() },
        Sent { opcode: opcode::NOOP, value: b"v", ..Sent::default() },
        Sent { opcode: opcode::VERSION, key: b"v", ..Sent::default() },
        Sent { opcode: opcode::STAT, key: b"items", extras: b"1234", ..Sent::default() },
    ] {
        let (answer, _, closes) = refused(&sent.bytes());
        assert_eq!(answer, packet(sent.opcode, 4, b"", b"", b"Invalid arguments", 0));
        assert!(closes, "{:#x}", sent.opcode);
    }
}

#[test]
fn a_key_longer_than_the_body_ends_the_connection() {
    let mut bytes = Sent { opcode: opcode::GET, key: b"key", ..Sent::default() }.bytes();
    bytes[11] = 2;
    let (answer, _, closes) = refused(&bytes);
    assert_eq!(answer, packet(opcode::GET, 0x81, b"", b"", b"Unknown command", 0));
    assert!(closes);
}

#[test]
fn another_magic_closes_without_an_answer() {
    let mut bytes = Sent { opcode: opcode::NOOP, ..Sent::default() }.bytes();
    bytes.extend_from_slice(b"get k\r\n");
    let (limits, scratch) = (limits(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    let mut decoder = Decoder::default();
    assert!(matches!(decoder.next(&bytes, &context), Step::Answer { consumed: 24, .. }));
    assert!(matches!(decoder.next(&bytes[24..], &context), Step::Close));
}

#[test]
fn large_values_are_streamed_and_too_large_ones_refused_unread() {
    let packet = |value: &[u8]| {
        Sent { opcode: opcode::SET, extras: STORE_EXTRAS, key: b"k", value, cas: 0 }.bytes()
    };
    let streamed = packet(&[b'x'; 600]);
    with_step(&streamed[..100], |_, step| match step {
        Step::StoreHeader { consumed: 33, value_bytes: 600, trailer_bytes: 0, .. } => {}
        other => panic!("{other:?}"),
    });
    with_step(&streamed, |_, step| match step {
        Step::Request { consumed, .. } => assert_eq!(consumed, streamed.len()),
        other => panic!("{other:?}"),
    });
    with_step(&packet(&[b'x'; 5000])[..33], |_, step| match step {
        Step::Request { consumed: 33, request, skip: 5000, .. } => match request.operation {
            Operation::Store(Store { value: Body::Refused(5000), .. }) => {}
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    });
}

fn steps(input: &[u8], piece: usize) -> Vec<String> {
    asked(Decoder::MemcachedBinary(MemcachedBinaryDecoder::default()), &limits(), input, piece)
}

/// Packets of every kind, some broken.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let packet = (
        prop_oneof![8 => 0u8..0x25, 1 => any::<u8>()],
        prop_oneof![4 => Just(None), 1 => (0usize..24).prop_map(Some)],
        vec(any::<u8>(), 0..6),
        prop_oneof![4 => 0usize..20, 1 => 500usize..700, 1 => 4000usize..4200],
        prop_oneof![Just(0), any::<u64>()],
    )
        .prop_map(|(opcode, extras, key, value_bytes, cas)| {
            use opcode::*;
            let usual = match opcode {
                SET..=REPLACE | SETQ..=REPLACEQ => 8,
                INCREMENT | DECREMENT | INCREMENTQ | DECREMENTQ => 20,
                TOUCH | GAT | GATQ | GATK | GATKQ | VERBOSITY => 4,
                _ => 0,
            };
            let stores =
                matches!(opcode, SET..=REPLACE | SETQ..=REPLACEQ | APPEND | PREPEND | APPENDQ);
            let value = vec![b'v'; if stores { value_bytes } else { 0 }];
            let extras = vec![0; extras.unwrap_or(usual)];
            Sent { opcode, extras: &extras, key: &key, value: &value, cas }.bytes()
        });
    vec(packet, 1..6).prop_map(|packets| packets.concat())
}

proptest! {
    #[test]
    fn split_input_parses_like_whole(bytes in packets(), fed in 1usize..40) {
        prop_assert_eq!(steps(&bytes, fed), steps(&bytes, usize::MAX / 2));
    }

    #[test]
    fn no_bytes_upset_the_decoder(
        mut bytes in vec(any::<u8>(), 24..200),
        opcode in 0u8..0x28,
        fed in 1usize..40,
    ) {
        bytes[0] = REQUEST_MAGIC;
        bytes[1] = opcode;
        bytes[2..12].fill(0);
        prop_assert_eq!(steps(&bytes, fed), steps(&bytes, usize::MAX / 2));
    }
}
