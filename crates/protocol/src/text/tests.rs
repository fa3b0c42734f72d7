//! Rules of the classic commands, and the two properties that every input must keep.

use super::*;
use crate::{Decoder, Limits, encode as encode_any};
use bumpalo::Bump;
use proptest::prelude::*;
use ringlane_types::hash::{HashSecret, KeyHash};
use ringlane_types::request::{Body, Get, Operation, Request, Response, Store, StoreMode};
use ringlane_types::time::{Deadline, Instant};

const NOW: Instant = Instant::from_millis(1_700_000_000_000);

/// What a connection sees of its decoder: one line of text per step.
struct Driver {
    limits: Limits,
}

impl Driver {
    /// Feeds `input` in pieces that end at `cuts`, and tells what came of it. Data blocks that are
    /// streamed are received as a connection would, and told like those that came whole.
    fn run(&self, input: &[u8], cuts: &[usize]) -> Vec<String> {
        let scratch = Bump::new();
        let context = Context {
            limits: &self.limits,
            now: NOW,
            hash_secret: &HashSecret::of_seed(7),
            scratch: &scratch,
        };
        let mut decoder = Decoder::default();
        let mut told = Vec::new();
        let mut at = 0;
        let mut ends = cuts.iter().map(|cut| cut % (input.len() + 1)).collect::<Vec<_>>();
        ends.push(input.len());
        ends.sort_unstable();
        for end in ends {
            // A skipped block may reach beyond what has arrived.
            while at <= end {
                match decoder.next(&input[at..end], &context) {
                    Step::Incomplete => break,
                    Step::Close => {
                        told.push("close".into());
                        return told;
                    }
                    Step::Request { consumed, request, reply, skip } => {
                        assert!(consumed > 0 && at + consumed <= end, "no progress");
                        told.push(format!("{request:?} {:?} {:?}", reply.form, reply.tail));
                        at += consumed + skip as usize;
                    }
                    Step::StoreHeader {
                        consumed,
                        mut request,
                        reply,
                        value_bytes,
                        trailer_bytes,
                    } => {
                        assert!(consumed > 0 && at + consumed <= end, "no progress");
                        at += consumed;
                        let after = at + value_bytes as usize;
                        let Some(trailer) = input.get(after..after + trailer_bytes as usize) else {
                            return told;
                        };
                        let Operation::Store(store) = &mut request.operation else {
                            panic!("only stores have a body")
                        };
                        store.value = Body::Bytes(&input[at..after]);
                        told.push(if decoder.trailer_is_valid(trailer) {
                            format!("{request:?} {:?} {:?}", reply.form, reply.tail)
                        } else {
                            format!("{:?}", bad_data_chunk(&reply))
                        });
                        at = after + trailer_bytes as usize;
                    }
                    Step::Answer { consumed, answer, skip } => {
                        assert!(consumed > 0 && at + consumed <= end, "no progress");
                        told.push(format!("{answer:?}"));
                        at += consumed + skip as usize;
                    }
                    Step::Admin { consumed, command, reply } => {
                        assert!(consumed > 0 && at + consumed <= end, "no progress");
                        told.push(format!("{command:?} {:?}", reply.form));
                        at += consumed;
                    }
                }
            }
        }
        told
    }
}

fn limits() -> Limits {
    Limits { body_bytes_streamed: 10, item_bytes_max: 1100, ..Limits::default() }
}

/// The first step of a whole input, with the decoder's answer lines as text.
fn first(input: &[u8]) -> String {
    let mut told = Driver { limits: limits() }.run(input, &[]);
    if told.is_empty() { "incomplete".into() } else { told.remove(0) }
}

/// All literal answers to an input.
fn answers(input: &[u8]) -> Vec<String> {
    Driver { limits: limits() }.run(input, &[])
}

fn line(error: TextError) -> String {
    format!("{:?}", Answer::Bytes(error.line()))
}

fn silence() -> String {
    format!("{:?}", Answer::Silence)
}

fn with_request<R>(input: &[u8], check: impl FnOnce(Request<'_>, Reply<'_>, u64) -> R) -> R {
    let scratch = Bump::new();
    let limits = limits();
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(7),
        scratch: &scratch,
    };
    match TextDecoder::default().next(input, &context) {
        Step::Request { consumed, request, reply, skip } => {
            assert!(consumed <= input.len());
            check(request, reply, skip)
        }
        other => panic!("{other:?}"),
    }
}

fn with_store<R>(input: &[u8], check: impl FnOnce(Store<'_>) -> R) -> R {
    with_request(input, |request, _, _| match request.operation {
        Operation::Store(store) => check(store),
        other => panic!("{other:?}"),
    })
}

#[test]
fn a_single_get_is_the_same_with_either_line_ending() {
    for input in [&b"get key\r\n"[..], b"get key\n", b"get   key  \r\n"] {
        with_request(input, |request, reply, _| {
            assert_eq!(request.key, b"key");
            assert_eq!(request.hash, KeyHash::of(b"key", &HashSecret::of_seed(7)));
            assert_eq!(reply.form, ReplyForm::Text(TextForm::Retrieval { cas: false, last: true }));
            assert!(matches!(request.operation, Operation::Get(get) if get == Get::default()));
        });
    }
}

#[test]
fn keys_may_hold_any_byte_but_space_and_newline() {
    with_request(b"get a\tb\0\xff\rc\r\n", |request, _, _| {
        assert_eq!(request.key, b"a\tb\0\xff\rc");
    });
}

#[test]
fn a_multiget_yields_its_keys_in_order_and_marks_the_last() {
    let told = answers(b"gets a  b a \r\nget c\r\n");
    assert_eq!(told.len(), 4);
    let last: Vec<_> = told.iter().map(|step| step.contains("last: true")).collect();
    assert_eq!(last, [false, false, true, true]);
    assert!(told[..3].iter().all(|step| step.contains("cas: true")));
    assert!(told[3].contains("cas: false"));
}

#[test]
fn a_key_too_long_anywhere_in_a_multiget_spoils_all_of_it() {
    let long = "x".repeat(251);
    assert_eq!(answers(format!("get a {long} b\r\n").as_bytes()), [line(TextError::CommandLine)]);
    assert_eq!(answers(format!("get {long}\r\n").as_bytes()), [line(TextError::CommandLine)]);
    let longest = "x".repeat(250);
    assert_eq!(answers(format!("get {longest}\r\n").as_bytes()).len(), 1);
    with_request(format!("get {longest}\n").as_bytes(), |request, _, _| {
        assert_eq!(request.key.len(), 250);
    });
}

#[test]
fn get_without_a_key_and_gat_without_its_arguments_are_bad_lines() {
    for input in ["get\r\n", "get \r\n", "gets   \r\n", "gat\r\n", "gat 10\r\n", "gats 0 \r\n"] {
        assert_eq!(first(input.as_bytes()), line(TextError::CommandLine), "{input:?}");
    }
    assert_eq!(first(b"gat x k\r\n"), line(TextError::Exptime));
    assert_eq!(first(b"gat 99999999999 k\r\n"), line(TextError::Exptime));
}

#[test]
fn gat_and_touch_carry_their_deadline_and_count_as_touches() {
    for input in [&b"gat 30 k\r\n"[..], b"touch k 30\r\n"] {
        with_request(input, |request, _, _| {
            let Operation::Get(get) = request.operation else { panic!("{request:?}") };
            assert_eq!(get.touch, Some(Deadline::from_exptime(30, NOW)));
            assert_eq!(get.purpose, ringlane_types::request::Purpose::Touch);
        });
    }
    assert_eq!(first(b"touch k\r\n"), line(TextError::CommandLine));
    assert_eq!(first(b"touch k x\r\n"), line(TextError::Exptime));
    assert_eq!(first(b"touch k x noreply\r\n"), silence());
}

#[test]
fn a_line_under_four_bytes_is_a_bad_line() {
    for input in ["\r\n", "\n", "a\r\n", "mn\n"] {
        assert_eq!(first(input.as_bytes()), line(TextError::CommandLine), "{input:?}");
    }
    assert_eq!(first(b"xx\r\n"), line(TextError::Unknown));
}

#[test]
fn command_names_are_exact() {
    for input in ["GET k\r\n", "get\tk\r\n", "gett k\r\n", " get k\r\n", " set k 0 0 0\r\n"] {
        assert_eq!(first(input.as_bytes()), line(TextError::Unknown), "{input:?}");
    }
}

#[test]
fn an_unknown_command_is_silenced_by_noreply_and_http_is_hung_up_on() {
    assert_eq!(first(b"bogus noreply\r\n"), silence());
    assert_eq!(first(b"bogus noreply x\r\n"), line(TextError::Unknown));
    assert_eq!(first(b"POST / HTTP/1.1\r\n"), "close");
    with_request(b"get / HTTP/1.1\r\n", |request, _, _| assert_eq!(request.key, b"/"));
}

#[test]
fn a_long_line_without_an_end_closes_unless_it_is_a_get() {
    let bytes = |start: &str, len: usize| {
        let mut line = start.as_bytes().to_vec();
        line.resize(len, b'x');
        line
    };
    assert_eq!(first(&bytes("set ", 2048)), "incomplete");
    assert_eq!(first(&bytes("set ", 2049)), "close");
    assert_eq!(first(&bytes("gat ", 2049)), "close");
    assert_eq!(first(&bytes("get ", 200_000)), "incomplete");
    assert_eq!(first(&bytes(&(" ".repeat(100) + "gets "), 200_000)), "incomplete");
    assert_eq!(first(&bytes(&(" ".repeat(101) + "gets "), 200_000)), "close");
    assert_eq!(first(&bytes("get ", (8 << 20) + 1)), "close");
    let mut whole = bytes("bogus ", 5000);
    whole.extend_from_slice(b"\r\n");
    assert_eq!(first(&whole), line(TextError::Unknown));
}

#[test]
fn a_store_takes_exactly_the_announced_bytes() {
    with_request(b"set k 5 0 4\r\na\r\nb\r\nget k\r\n", |request, _, skip| {
        let Operation::Store(store) = request.operation else { panic!("{request:?}") };
        assert!(matches!(store.value, Body::Bytes(b"a\r\nb")));
        assert_eq!((store.flags, store.mode, skip), (5, StoreMode::Set, 0));
        assert!(store.deadline.is_never());
    });
    assert_eq!(answers(b"set k 5 0 4\r\na\r\nb\r\nget k\r\n").len(), 2);
}

#[test]
fn storage_commands_have_their_conditions() {
    let mode = |input: &str| with_store(input.as_bytes(), |store| (store.mode, store.compare));
    assert_eq!(mode("add k 0 0 0\r\n\r\n"), (StoreMode::Add, None));
    assert_eq!(mode("replace k 0 0 0\r\n\r\n"), (StoreMode::Replace, None));
    assert_eq!(mode("append k 0 0 0\r\n\r\n"), (StoreMode::Append, None));
    assert_eq!(mode("prepend k 0 0 0\r\n\r\n"), (StoreMode::Prepend, None));
    assert_eq!(mode("cas k 0 0 0 7\r\n\r\n"), (StoreMode::Set, Some(7)));
    assert_eq!(mode("cas k 0 0 0 0 noreply\r\n\r\n"), (StoreMode::Set, Some(0)));
}

#[test]
fn only_a_refused_set_removes_the_old_value() {
    let removes = |name: &str, rest: &str| {
        with_request(format!("{name} k 0 0 2000{rest}\r\n").as_bytes(), |request, _, skip| {
            let Operation::Store(store) = request.operation else { panic!("{request:?}") };
            assert!(matches!(store.value, Body::Refused(2000)));
            assert_eq!(skip, 2002);
            store.refusal_removes
        })
    };
    assert!(removes("set", ""));
    for name in ["add", "replace", "append", "prepend"] {
        assert!(!removes(name, ""), "{name}");
    }
    assert!(!removes("cas", " 5"));
}

#[test]
fn the_item_size_limit_counts_as_memcached_does() {
    let limits = Limits::default();
    let driver = Driver { limits };
    let fits = |key: usize, flags: u32, bytes: u32| {
        let line = format!("set {} {flags} 0 {bytes}\r\n", "k".repeat(key));
        let input = [line.as_bytes(), &vec![b'v'; bytes as usize], b"\r\n"].concat();
        !driver.run(&input, &[])[0].contains("Refused")
    };
    assert!(fits(1, 0, 1_048_516) && !fits(1, 0, 1_048_517));
    assert!(fits(250, 0, 1_048_267) && !fits(250, 0, 1_048_268));
    assert!(fits(1, 9, 1_048_512) && !fits(1, 9, 1_048_513));
}

#[test]
fn an_error_with_a_readable_length_drops_the_data() {
    let long = "x".repeat(251);
    let after = answers(b"get next\r\n");
    for bad in [
        format!("set {long} 0 0 2"),
        "set k x 0 2".into(),
        "set k -1 0 2".into(),
        "set k 0 x 2".into(),
        "cas k 0 0 2".into(),
        "cas k 0 0 2 x".into(),
    ] {
        let told = answers(format!("{bad}\r\nhi\r\nget next\r\n").as_bytes());
        assert_eq!(told, [vec![line(TextError::CommandLine)], after.clone()].concat(), "{bad}");
        let told = answers(format!("{bad} noreply\r\nhi\r\nget next\r\n").as_bytes());
        assert_eq!(told, [vec![silence()], after.clone()].concat(), "{bad} noreply");
    }
}

#[test]
fn an_error_without_a_length_reads_the_data_as_commands() {
    for bad in ["set k 0 0", "set k 0 0 x", "set k 0 0 -1", "set k 0 0 2147483646", "set"] {
        for noreply in ["", " noreply"] {
            if bad.split(' ').count() < 5 && !noreply.is_empty() {
                continue;
            }
            let told = answers(format!("{bad}{noreply}\r\nbogus\r\n").as_bytes());
            assert_eq!(told, [line(TextError::CommandLine), line(TextError::Unknown)], "{bad}");
        }
    }
    // The word takes the place of the length, which it is not.
    assert_eq!(first(b"set k 0 0 noreply\r\n"), line(TextError::CommandLine));
}

#[test]
fn a_bad_data_chunk_uses_up_length_plus_two() {
    assert_eq!(
        answers(b"set k 0 0 2\r\nhiXX\r\n"),
        [line(TextError::DataChunk), line(TextError::CommandLine)]
    );
    assert_eq!(answers(b"set k 0 0 2 noreply\r\nhiXX"), [silence()]);
    assert_eq!(answers(b"set k 0 0 2\r\nhi\nX"), [line(TextError::DataChunk)]);
    let driver = Driver { limits: limits() };
    let streamed = b"set k 0 0 12\r\n0123456789abXX";
    assert_eq!(driver.run(streamed, &[14]), [line(TextError::DataChunk)]);
    assert_eq!(driver.run(b"set k 0 0 12 noreply\r\n0123456789abXX", &[22]), [silence()]);
}

#[test]
fn a_long_value_is_handed_over_before_it_has_arrived() {
    let scratch = Bump::new();
    let limits = limits();
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(7),
        scratch: &scratch,
    };
    let step = TextDecoder::default().next(b"set k 0 0 10\r\n01234", &context);
    let Step::StoreHeader { consumed: 14, value_bytes: 10, trailer_bytes: 2, .. } = step else {
        panic!("{step:?}")
    };
    let step = TextDecoder::default().next(b"set k 0 0 9\r\n01234", &context);
    assert!(matches!(step, Step::Incomplete), "{step:?}");
}

#[test]
fn delete_takes_an_old_zero_and_nothing_else() {
    for good in ["delete k\r\n", "delete k 0\r\n", "delete k noreply\r\n", "delete k 0 noreply\r\n"]
    {
        with_request(good.as_bytes(), |request, reply, _| {
            assert_eq!(request.key, b"k");
            let noreply = good.contains("noreply");
            assert_eq!(reply.form, ReplyForm::Text(TextForm::Delete { noreply }));
        });
    }
    with_request(b"delete noreply\r\n", |request, reply, _| {
        assert_eq!(request.key, b"noreply");
        assert_eq!(reply.form, ReplyForm::Text(TextForm::Delete { noreply: true }));
    });
    assert_eq!(first(b"delete k 5\r\n"), line(TextError::DeleteUsage));
    assert_eq!(first(b"delete a b c d e\r\n"), line(TextError::DeleteUsage));
    assert_eq!(first(b"delete\r\n"), line(TextError::CommandLine));
}

#[test]
fn arithmetic_wants_an_unsigned_amount() {
    with_request(b"incr k 18446744073709551615\r\n", |request, _, _| {
        let Operation::Arithmetic(arithmetic) = request.operation else { panic!("{request:?}") };
        assert_eq!(arithmetic, ringlane_types::request::Arithmetic::by(u64::MAX, false));
    });
    with_request(b"decr k 1 noreply\r\n", |request, reply, _| {
        let Operation::Arithmetic(arithmetic) = request.operation else { panic!("{request:?}") };
        assert!(arithmetic.decrement);
        assert_eq!(reply.form, ReplyForm::Text(TextForm::Arithmetic { noreply: true }));
    });
    for bad in ["incr k x\r\n", "incr k -1\r\n", "incr k 18446744073709551616\r\n"] {
        assert_eq!(first(bad.as_bytes()), line(TextError::Delta), "{bad:?}");
    }
    assert_eq!(first(b"incr k\r\n"), line(TextError::CommandLine));
    assert_eq!(first(b"incr k x noreply\r\n"), silence());
}

#[test]
fn quit_closes_and_later_requests_are_not_read() {
    assert_eq!(answers(b"version\r\nquit\r\nversion\r\n").len(), 2);
}

#[test]
fn answers_are_written_as_the_command_has_them() {
    let written = |form: TextForm, response: Response<'_>| {
        let mut out = Vec::new();
        let reply = Reply { form: ReplyForm::Text(form), key: b"k", tail: b"" };
        encode_any(&reply, &response, NOW, &mut out);
        String::from_utf8(out).unwrap()
    };
    let storage = |response| written(TextForm::Storage { noreply: false }, response);
    assert_eq!(storage(Response::Stored { cas: 1, value_bytes: 1 }), "STORED\r\n");
    assert_eq!(storage(Response::NotStored), "NOT_STORED\r\n");
    assert_eq!(storage(Response::Exists), "EXISTS\r\n");
    assert_eq!(storage(Response::NotFound), "NOT_FOUND\r\n");
    assert_eq!(storage(Response::TooLarge), "SERVER_ERROR object too large for cache\r\n");
    assert_eq!(storage(Response::OutOfMemory), "SERVER_ERROR out of memory storing object\r\n");
    assert_eq!(written(TextForm::Storage { noreply: true }, Response::TooLarge), "");
    let delete = TextForm::Delete { noreply: false };
    assert_eq!(written(delete, Response::Deleted), "DELETED\r\n");
    assert_eq!(written(delete, Response::NotFound), "NOT_FOUND\r\n");
    let arithmetic = TextForm::Arithmetic { noreply: false };
    assert_eq!(written(arithmetic, Response::OutOfMemory), "SERVER_ERROR out of memory\r\n");
    assert_eq!(
        written(arithmetic, Response::NonNumeric),
        "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
    );
    assert_eq!(written(TextForm::Touch { noreply: false }, Response::Miss), "NOT_FOUND\r\n");
    let get = |last| TextForm::Retrieval { cas: false, last };
    assert_eq!(written(get(false), Response::Miss), "");
    assert_eq!(written(get(true), Response::Miss), "END\r\n");
}

#[test]
fn a_hit_is_written_with_flags_length_and_cas() {
    let key = [b'k'; 250];
    let hit = |flags, cas, value| ringlane_types::request::Hit {
        item: None,
        key: &key,
        value: ringlane_types::request::Value::Whole(value),
        flags,
        cas,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        idle_seconds: 0,
        marks: Default::default(),
        class: 1,
        item_bytes: 100,
    };
    let written = |form, key, hit| {
        let mut out = Vec::new();
        let reply = Reply { form: ReplyForm::Text(form), key, tail: b"" };
        encode_any(&reply, &Response::Hit(hit), NOW, &mut out);
        String::from_utf8(out).unwrap()
    };
    let form = |cas, last| TextForm::Retrieval { cas, last };
    assert_eq!(written(form(false, true), b"a", hit(0, 9, b"xy")), "VALUE a 0 2\r\nxy\r\nEND\r\n");
    assert_eq!(written(form(true, false), b"a", hit(7, 9, b"")), "VALUE a 7 0 9\r\n\r\n");
    let longest = written(form(true, false), &key, hit(u32::MAX, u64::MAX, b"v"));
    assert!(longest.ends_with(" 4294967295 1 18446744073709551615\r\nv\r\n"));
    assert_eq!(written(TextForm::Touch { noreply: false }, b"a", hit(0, 1, b"")), "TOUCHED\r\n");
    assert_eq!(written(TextForm::Touch { noreply: true }, b"a", hit(0, 1, b"")), "");
}

/// Pieces that make up plausible and implausible input.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "get",
        "gets",
        "gat",
        "gats",
        "set",
        "add",
        "replace",
        "append",
        "prepend",
        "cas",
        "delete",
        "incr",
        "decr",
        "touch",
        "mg",
        "ms",
        "md",
        "ma",
        "me",
        "mn",
        "version",
        "verbosity",
        "stats",
        "flush_all",
        "lru_crawler",
        "slabs",
        "cache_memlimit",
        "watch",
        "shutdown",
        " ",
        " ",
        " ",
        " ",
        " ",
        "  ",
        "\r\n",
        "\r\n",
        "\r\n",
        "\r\n",
        "\n",
        "\r",
        "0",
        "1",
        "2",
        "10",
        "12",
        "-1",
        "key",
        "k",
        "v",
        "t",
        "T30",
        "N30",
        "q",
        "k",
        "O1",
        "b",
        "Zm9v",
        "c",
        "noreply",
        "0123456789",
        "xx",
        "\t",
        "999999999999",
        "2000",
        "HTTP/1.1",
        "me",
        "dump",
        "detail on",
        "\0",
    ]);
    let word = prop_oneof![
        12 => words.prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..12),
        1 => (1usize..300).prop_map(|n| vec![b'k'; n]),
    ];
    prop::collection::vec(word, 0..60).prop_map(|words| words.concat())
}

/// Whole requests, one after the other.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let key = "[a-z\t]{1,12}";
    let request = prop_oneof![
        key.prop_map(|key| format!("get {key}\r\n")),
        prop::collection::vec(key, 1..6).prop_map(|keys| format!("gets {}\n", keys.join("  "))),
        (key, 0usize..30, any::<bool>()).prop_map(|(key, bytes, bad)| {
            let ending = if bad { "XX" } else { "\r\n" };
            format!("set {key} 0 0 {bytes}\r\n{}{ending}", "\n".repeat(bytes))
        }),
        (key, 0usize..30).prop_map(|(key, bytes)| {
            format!("ms {key} {bytes} c O123 k\r\n{}\r\n", "v".repeat(bytes))
        }),
        (key, 2000usize..2100).prop_map(|(key, bytes)| {
            format!("set {key} 0 0 {bytes}\r\n{}\r\n", "\n".repeat(bytes))
        }),
        key.prop_map(|key| format!("mg {key} v q k\r\n")),
        Just("stats settings\r\n".to_owned()),
    ];
    prop::collection::vec(request, 1..8).prop_map(|requests| requests.concat().into_bytes())
}

proptest! {
    #[test]
    fn input_split_anywhere_parses_like_whole(
        input in prop_oneof![fragments(), requests()],
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        // A long line is only refused for its length while it has no end, so splitting may show.
        let driver = Driver { limits: Limits { line_bytes_max: usize::MAX, ..limits() } };
        prop_assert_eq!(driver.run(&input, &cuts), driver.run(&input, &[]));
    }

    #[test]
    fn a_long_get_is_judged_alike_however_it_arrives(
        tokens in prop::collection::vec((1usize..60, 0usize..4), 1..30),
        long in prop::option::of((any::<prop::sample::Index>(), 249usize..253)),
        end in prop_oneof![Just(" "), Just("\r"), Just(" \r"), Just("\r\r"), Just("")],
        cuts in prop::collection::vec(any::<usize>(), 0..40),
    ) {
        let mut tokens = tokens;
        if let Some((index, bytes)) = long {
            let at = index.index(tokens.len());
            tokens[at].0 = bytes;
        }
        let keys: String = tokens
            .iter()
            .map(|&(bytes, spaces)| format!("{}{}", "k".repeat(bytes), " ".repeat(1 + spaces)))
            .collect();
        let input = format!("gets {}{end}\nget a\r\n", keys.trim_end());
        let driver = Driver { limits: Limits { line_bytes_max: 64, ..limits() } };
        prop_assert_eq!(driver.run(input.as_bytes(), &cuts), driver.run(input.as_bytes(), &[]));
    }

    #[test]
    fn byte_by_byte_parses_like_whole(input in requests()) {
        let driver = Driver { limits: limits() };
        let cuts: Vec<_> = (0..input.len()).collect();
        prop_assert_eq!(driver.run(&input, &cuts), driver.run(&input, &[]));
    }

    #[test]
    fn any_bytes_are_accepted(mut input in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Some(first) = input.first_mut() {
            *first &= 0x7f;
        }
        Driver { limits: limits() }.run(&input, &[]);
    }
}

#[test]
fn a_missing_quorum_is_an_error_line_with_needed_and_reached() {
    let reply = |form| Reply { form: ReplyForm::Text(form), key: b"k", tail: b"" };
    let encoded = |form, response: Response<'_>| {
        let mut out = Vec::new();
        encode_any(&reply(form), &response, NOW, &mut out);
        String::from_utf8(out).unwrap()
    };
    let missing = Response::QuorumNotReached { needed: 2, reached: 1 };
    let line = "SERVER_ERROR quorum not reached: needed 2, reached 1\r\n";
    assert_eq!(encoded(TextForm::Retrieval { cas: false, last: true }, missing), line);
    assert_eq!(encoded(TextForm::Storage { noreply: false }, missing), line);
    assert_eq!(encoded(TextForm::Storage { noreply: true }, missing), "");
    assert!(
        encoded(TextForm::Delete { noreply: false }, Response::Uncertain)
            .starts_with("SERVER_ERROR outcome unknown")
    );
}
