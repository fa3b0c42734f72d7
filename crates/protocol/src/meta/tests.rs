//! Rules of the meta commands: what a line asks for, and how each outcome is told.

use bumpalo::Bump;
use proptest::prelude::*;

use super::MetaForm;
use crate::text::{TextDecoder, TextError};
use crate::{Answer, Context, Limits, Reply, ReplyForm, Step, encode};
use ringlane_types::hash::HashSecret;
use ringlane_types::request::{
    Arithmetic, Body, Delete, Get, Hit, Marks, Number, Operation, Purpose, Request, Response,
    Store, StoreMode, Value, Vivify,
};
use ringlane_types::time::{Deadline, Instant};

const NOW: Instant = Instant::from_millis(1_700_000_000_000);

fn in_seconds(seconds: i64) -> Deadline {
    Deadline::from_exptime(seconds, NOW)
}

/// Decodes one whole request; `check` sees the step.
fn step<R>(input: &[u8], check: impl FnOnce(Step<'_>) -> R) -> R {
    let (scratch, limits) = (Bump::new(), Limits { item_bytes_max: 2048, ..Limits::default() });
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(3),
        scratch: &scratch,
    };
    check(TextDecoder::default().next(input, &context))
}

fn request<R>(text: &str, check: impl FnOnce(Request<'_>, Reply<'_>) -> R) -> R {
    let input = format!("{text}\r\n");
    step(input.as_bytes(), |step| match step {
        Step::Request { consumed, request, reply, skip: 0 } => {
            assert_eq!(consumed, input.len());
            assert_eq!(
                request.hash,
                ringlane_types::hash::KeyHash::of(request.key, &HashSecret::of_seed(3))
            );
            check(request, reply)
        }
        other => panic!("{text}: {other:?}"),
    })
}

fn get(text: &str) -> Get {
    request(text, |request, _| match request.operation {
        Operation::Get(get) => get,
        other => panic!("{other:?}"),
    })
}

fn store<R>(text: &str, check: impl FnOnce(Store<'_>) -> R) -> R {
    request(&format!("{text}\r\nhi"), |request, _| match request.operation {
        Operation::Store(store) => check(store),
        other => panic!("{other:?}"),
    })
}

fn delete(text: &str) -> Delete {
    request(text, |request, _| match request.operation {
        Operation::Delete(delete) => delete,
        other => panic!("{other:?}"),
    })
}

fn arithmetic(text: &str) -> Arithmetic {
    request(text, |request, _| match request.operation {
        Operation::Arithmetic(arithmetic) => arithmetic,
        other => panic!("{other:?}"),
    })
}

/// Asserts that a line is refused with `error`, and how many bytes after it are dropped.
fn refused(text: &str, error: TextError, skipped: u64) {
    let input = format!("{text}\r\n");
    step(input.as_bytes(), |step| match step {
        Step::Answer { consumed, answer, skip } => {
            assert_eq!(consumed, input.len());
            assert_eq!(answer, Answer::Bytes(error.line()), "{text}");
            assert_eq!(skip, skipped, "{text}");
        }
        other => panic!("{text}: {other:?}"),
    });
}

/// What is sent when a request has this outcome.
fn sent(text: &str, response: Response<'_>) -> String {
    request(text, |_, reply| {
        let mut out = Vec::new();
        encode(&reply, &response, NOW, &mut out);
        String::from_utf8(out).unwrap()
    })
}

fn hit(value: &[u8]) -> Hit<'_> {
    Hit {
        item: None,
        key: b"foo",
        value: Value::Whole(value),
        flags: 5,
        cas: 77,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        idle_seconds: 9,
        marks: Marks::default(),
        class: 3,
        item_bytes: 66,
    }
}

fn marked(marks: Marks) -> Response<'static> {
    Response::Hit(Hit { marks, ..hit(b"xy") })
}

fn stored() -> Response<'static> {
    Response::Stored { cas: 78, value_bytes: 12 }
}

fn number() -> Number<'static> {
    Number {
        value: 10,
        key: b"foo",
        cas: 5,
        deadline: in_seconds(90),
        deadline_before: in_seconds(30),
        created: false,
        binary_key: false,
    }
}

#[test]
fn mg_maps_its_flags() {
    let plain = Get { lease: true, ..Get::default() };
    assert_eq!(get("mg k"), plain);
    assert_eq!(get("mg k v s t c f h l k O1 q L P x I M F0 D1 J1"), plain);
    assert_eq!(get("mg k u T30"), Get { no_use: true, touch: Some(in_seconds(30)), ..plain });
    assert_eq!(get("mg k R30").refresh_below_seconds, Some(30));
    assert_eq!(get("mg k R0").refresh_below_seconds, None);
    assert_eq!(get("mg k R-1").refresh_below_seconds, None);
    assert_eq!(get("mg k R1700000060").refresh_below_seconds, Some(60));
    assert_eq!(get("mg k R2592001").refresh_below_seconds, None);
    assert_eq!(plain.purpose, Purpose::Get);
}

#[test]
fn the_later_of_n_and_t_sets_a_vivified_items_deadline() {
    let vivify = |text| get(text).vivify;
    let expected =
        |seconds, cas| Some(Vivify { deadline: in_seconds(seconds), cas, binary_key: false });
    assert_eq!(vivify("mg k N30"), expected(30, None));
    assert_eq!(vivify("mg k N30 T60 E9"), expected(60, Some(9)));
    assert_eq!(vivify("mg k T60 N30 E0"), expected(30, Some(0)));
    assert_eq!(vivify("mg k T60"), None);
}

#[test]
fn ms_modes_and_their_conditions() {
    let mode = |text: &str| store(text, |store| (store.mode, store.compare));
    assert_eq!(mode("ms k 2"), (StoreMode::Set, None));
    assert_eq!(mode("ms k 2 MS C5"), (StoreMode::Set, Some(5)));
    assert_eq!(mode("ms k 2 C0"), (StoreMode::Set, Some(0)));
    assert_eq!(mode("ms k 2 MR C5"), (StoreMode::Replace, Some(5)));
    assert_eq!(mode("ms k 2 ME C5"), (StoreMode::Add, None));
    assert_eq!(mode("ms k 2 MA C5"), (StoreMode::Append, Some(5)));
    assert_eq!(mode("ms k 2 MP C0"), (StoreMode::Prepend, None));
    assert_eq!(mode("ms k 2 MSx"), (StoreMode::Set, None));
    for bad in ["ms k 2 M", "ms k 2 Ms", "ms k 2 Mset", "ms k 2 M0"] {
        refused(bad, TextError::MetaStoreMode, 4);
    }
}

#[test]
fn ms_maps_its_flags() {
    store("ms k 2 F7 T30 E9 I", |store| {
        assert!(matches!(store.value, Body::Bytes(b"hi")));
        assert_eq!((store.flags, store.deadline), (7, in_seconds(30)));
        assert_eq!((store.cas, store.accept_older, store.vivify), (Some(9), false, None));
        assert!(store.refusal_removes && !store.binary_key);
    });
    assert!(store("ms k 2 I C5", |store| store.accept_older));
    assert!(!store("ms k 2 I C5 MA", |store| store.accept_older));
    assert_eq!(store("ms k 2 MA N30 T60", |store| store.vivify), Some(in_seconds(30)));
    assert_eq!(store("ms k 2 N30", |store| store.vivify), None);
    assert_eq!(store("ms k 2 E0", |store| store.cas), Some(0), "which the shard takes for none");
}

#[test]
fn ms_reads_its_data_like_set() {
    refused("ms k", TextError::CommandLine, 0);
    refused("ms k x", TextError::CommandLine, 0);
    refused("ms k S2", TextError::CommandLine, 0);
    refused("ms k -1", TextError::CommandLine, 0);
    refused("ms k 2 C", TextError::MetaNumber, 4);
    refused(&format!("ms {} 2", "k".repeat(251)), TextError::CommandLine, 4);
    step(b"ms k 2 q\r\nhixx", |step| {
        let Step::Answer { consumed: 14, answer, skip: 0 } = step else { panic!("{step:?}") };
        assert_eq!(answer, Answer::Bytes(TextError::DataChunk.line()));
    });
    step(b"ms k 3000 ME q\r\n", |step| {
        let Step::Request { request, reply, skip: 3002, .. } = step else { panic!("{step:?}") };
        let Operation::Store(store) = request.operation else { panic!("{request:?}") };
        assert!(store.refusal_removes);
        let mut out = Vec::new();
        encode(&reply, &Response::TooLarge, NOW, &mut out);
        assert_eq!(out, b"SERVER_ERROR object too large for cache\r\n");
    });
}

#[test]
fn md_maps_its_flags() {
    assert_eq!(delete("md k"), Delete::default());
    assert_eq!(
        delete("md k C0 I T30 E7"),
        Delete {
            compare: Some(0),
            invalidate: true,
            deadline: Some(in_seconds(30)),
            empty: None,
            cas: Some(7),
        }
    );
    assert_eq!(delete("md k x F9").empty, Some(9));
    assert_eq!(delete("md k x").empty, Some(0));
}

#[test]
fn ma_maps_its_flags() {
    assert_eq!(arithmetic("ma k"), Arithmetic::by(1, false));
    assert_eq!(arithmetic("ma k D5 M+"), Arithmetic::by(5, false));
    assert_eq!(arithmetic("ma k MI"), Arithmetic::by(1, false));
    assert_eq!(arithmetic("ma k MD"), Arithmetic::by(1, true));
    assert_eq!(arithmetic("ma k M-"), Arithmetic::by(1, true));
    assert_eq!(arithmetic("ma k N30 J13").create, Some((13, in_seconds(30))));
    assert_eq!(arithmetic("ma k J13").create, None);
    assert_eq!(arithmetic("ma k C0 E3 T9").compare, None);
    assert_eq!(arithmetic("ma k C4").compare, Some(4));
    refused("ma k Mi", TextError::MetaArithmeticMode, 0);
    refused("ma k M", TextError::MetaArithmeticMode, 0);
}

#[test]
fn unreadable_flags_are_told_apart_except_by_ma() {
    for (flags, error) in [
        ("v v", TextError::MetaDuplicate),
        ("vfoo v", TextError::MetaDuplicate),
        ("a", TextError::MetaFlag),
        ("noreply", TextError::MetaFlag),
        ("9", TextError::MetaFlag),
        ("S2", TextError::MetaFlag),
        ("!", TextError::CommandLine),
        ("a !", TextError::CommandLine),
        ("\u{e9}", TextError::CommandLine),
        ("T", TextError::MetaNumber),
        ("Tx", TextError::MetaNumber),
        ("N1x", TextError::MetaNumber),
        ("R99999999999", TextError::MetaNumber),
        ("C-1", TextError::MetaNumber),
        ("E", TextError::MetaNumber),
        ("F", TextError::CommandLine),
        ("F4294967296", TextError::CommandLine),
        ("Dx", TextError::MetaDelta),
        ("J-1", TextError::MetaInitial),
    ] {
        refused(&format!("mg k {flags}"), error, 0);
        refused(&format!("md k {flags}"), error, 0);
        let line_form = flags.contains(['!', '\u{e9}']);
        // A line of the wrong form announces no data.
        refused(&format!("ms k 2 {flags}"), error, if line_form { 0 } else { 4 });
        let error = if line_form { error } else { TextError::MetaArithmeticFlag };
        refused(&format!("ma k {flags}"), error, 0);
    }
    let long = "k".repeat(251);
    refused(&format!("mg {long} v"), TextError::CommandLine, 0);
    refused(&format!("ma {long}"), TextError::MetaArithmeticFlag, 0);
    for bare in ["mg", "md", "ma", "me", "ms"] {
        refused(bare, TextError::CommandLine, 0);
    }
}

#[test]
fn errors_are_sent_in_spite_of_q() {
    refused("mg k q Tx", TextError::MetaNumber, 0);
    assert_eq!(
        sent("ma k q", Response::NonNumeric),
        "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
    );
    assert_eq!(sent("ma k q", Response::OutOfMemory), "SERVER_ERROR out of memory\r\n");
    assert_eq!(
        sent("ms k 2 q\r\nhi", Response::OutOfMemory),
        "SERVER_ERROR out of memory storing object\r\n"
    );
}

#[test]
fn twenty_tokens_are_the_most() {
    let letters = "b c f h k l q s t u v x I L P E1 C1 F1 N1 R1".split(' ').collect::<Vec<_>>();
    let line = |n: usize| format!("mg Zm9v {}", letters[..n].join(" "));
    get(&line(18));
    refused(&line(19), TextError::MetaTokens, 0);
    let line = |n: usize| format!("ms Zm9v 2 {}", letters[..n].join(" "));
    store(&line(17), |_| ());
    refused(&line(18), TextError::MetaTokens, 4);
    refused(&format!("mg k {}", "v ".repeat(19)), TextError::MetaTokens, 0);
}

#[test]
fn an_opaque_is_repeated_up_to_31_bytes() {
    let opaque = format!("O{}", "x".repeat(31));
    assert_eq!(sent(&format!("mg k {opaque}"), Response::Miss), format!("EN {opaque}\r\n"));
    for line in ["mg k", "md k", "ma k"] {
        refused(&format!("{line} {opaque}x"), TextError::MetaOpaque, 0);
    }
    refused(&format!("ms k 2 {opaque}x"), TextError::MetaOpaque, 4);
    refused(&format!("mg k {opaque}x Tx"), TextError::MetaNumber, 0);
    assert_eq!(sent("mg k O", Response::Miss), "EN O\r\n");
}

#[test]
fn return_flags_follow_the_request() {
    let found = || Response::Hit(hit(b"value"));
    assert_eq!(sent("mg foo", found()), "HD\r\n");
    assert_eq!(sent("mg foo v", found()), "VA 5\r\nvalue\r\n");
    assert_eq!(sent("mg foo q v", found()), "VA 5\r\nvalue\r\n");
    assert_eq!(
        sent("mg foo s v t c f h l k O1", found()),
        "VA 5 s5 t-1 c77 f5 h0 l9 kfoo O1\r\nvalue\r\n"
    );
    assert_eq!(sent("mg foo O1 kx  lx  sx", found()), "HD O1 kfoo l9 s5\r\n");
    assert_eq!(sent("mg foo h", marked(Marks { fetched: true, ..Marks::default() })), "HD h1\r\n");
}

#[test]
fn mg_shows_the_ttl_before_or_after_its_t() {
    let touched = Response::Hit(Hit {
        deadline: in_seconds(90),
        deadline_before: in_seconds(30),
        ..hit(b"")
    });
    assert_eq!(sent("mg foo t T90", touched), "HD t30\r\n");
    assert_eq!(sent("mg foo T90 t", touched), "HD t90\r\n");
    let expired = Response::Hit(Hit { deadline: Deadline::PAST, ..hit(b"") });
    assert_eq!(sent("mg foo T-1 t", expired), "HD t0\r\n");
}

#[test]
fn a_value_that_the_client_has_is_withheld() {
    let found = || Response::Hit(hit(b"v"));
    assert_eq!(sent("mg foo v C77", found()), "HD\r\n");
    assert_eq!(sent("mg foo C76 v", found()), "VA 1\r\nv\r\n");
    assert_eq!(sent("mg foo C77 c", found()), "HD c77\r\n");
}

#[test]
fn marks_come_last_in_the_order_z_x_w() {
    let marks = |win_sent, stale, won| marked(Marks { win_sent, stale, won, ..Marks::default() });
    assert_eq!(sent("mg foo s", marks(false, false, true)), "HD s2 W\r\n");
    assert_eq!(sent("mg foo s", marks(true, false, false)), "HD s2 Z\r\n");
    assert_eq!(sent("mg foo s", marks(false, true, true)), "HD s2 X W\r\n");
    assert_eq!(sent("mg foo v", marks(true, true, false)), "VA 2 Z X\r\nxy\r\n");
}

#[test]
fn a_miss_repeats_key_and_opaque_unless_quiet() {
    assert_eq!(sent("mg foo v t k O9", Response::Miss), "EN kfoo O9\r\n");
    assert_eq!(sent("mg foo v q k O9", Response::Miss), "");
    assert_eq!(sent("mg Zm9v O9 k b", Response::Miss), "EN O9 kZm9v b\r\n");
}

#[test]
fn a_base64_key_addresses_the_same_item() {
    request("mg Zm9v b v", |request, reply| {
        assert_eq!((request.key, reply.key), (&b"foo"[..], &b"foo"[..]));
    });
    assert!(store("ms Zm9v 2 b", |store| store.binary_key));
    for bad in ["mg Zm9 b", "md Zm9v= b", "mg !!!! b"] {
        refused(bad, TextError::MetaKey, 0);
    }
    refused("ms Zm9 2 b", TextError::MetaKey, 4);
    refused("me Zm9 b", TextError::CommandLine, 0);
    request("me Zm9v b", |request, _| assert_eq!(request.key, b"foo"));
    request("me Zm9v b k", |request, _| assert_eq!(request.key, b"foo"));
    request("me Zm9v", |request, _| assert_eq!(request.key, b"Zm9v"));
    // The limit holds for the encoded form.
    let longest = "Zm9v".repeat(62);
    request(&format!("mg {longest} b"), |request, _| assert_eq!(request.key.len(), 186));
    refused(&format!("mg {longest}Zm9v b"), TextError::CommandLine, 0);
}

#[test]
fn a_returned_key_has_the_form_it_was_stored_in_on_a_hit_and_sent_in_otherwise() {
    let binary = || marked(Marks { binary_key: true, ..Marks::default() });
    assert_eq!(sent("mg foo k", binary()), "HD kZm9v b\r\n");
    assert_eq!(sent("mg Zm9v b k O1", binary()), "HD kZm9v b O1\r\n");
    assert_eq!(sent("mg Zm9v b k", marked(Marks::default())), "HD kfoo\r\n");
    assert_eq!(sent("ms Zm9v 2 b k\r\nhi", stored()), "HD kZm9v b\r\n");
    assert_eq!(sent("md Zm9v b k", Response::NotFound), "NF kZm9v b\r\n");
    assert_eq!(sent("ma Zm9v k b", Response::Number(number())), "HD kZm9v b\r\n");
    assert_eq!(sent("me foo", binary()), "ME Zm9v exp=-1 la=9 cas=77 fetch=no cls=3 size=66\r\n");
}

#[test]
fn ms_outcomes() {
    let sent = |flags: &str, response| sent(&format!("ms foo 2{flags}\r\nhi"), response);
    assert_eq!(sent("", stored()), "HD\r\n");
    assert_eq!(sent(" q", stored()), "");
    assert_eq!(sent(" s c k O1", stored()), "HD s12 c78 kfoo O1\r\n");
    assert_eq!(sent(" q c s", Response::NotStored), "NS c0 s2\r\n");
    assert_eq!(sent(" q O1", Response::Exists), "EX O1\r\n");
    assert_eq!(sent(" q k", Response::NotFound), "NF kfoo\r\n");
}

#[test]
fn md_outcomes() {
    assert_eq!(sent("md foo k O1", Response::Deleted), "HD kfoo O1\r\n");
    assert_eq!(sent("md foo q k", Response::Deleted), "");
    assert_eq!(sent("md foo q O1", Response::NotFound), "NF O1\r\n");
    assert_eq!(sent("md foo q", Response::Exists), "EX\r\n");
}

#[test]
fn ma_outcomes() {
    let counted = || Response::Number(number());
    assert_eq!(sent("ma foo", counted()), "HD\r\n");
    assert_eq!(sent("ma foo q", counted()), "");
    assert_eq!(sent("ma foo q v", counted()), "");
    assert_eq!(sent("ma foo v t c k O1", counted()), "VA 2 t30 c5 kfoo O1\r\n10\r\n");
    assert_eq!(sent("ma foo t T90", counted()), "HD t30\r\n");
    assert_eq!(sent("ma foo T90 t", counted()), "HD t90\r\n");
    assert_eq!(sent("ma foo N90 t", counted()), "HD t30\r\n");
    let created = Response::Number(Number { created: true, ..number() });
    assert_eq!(sent("ma foo N90 t", created), "HD t90\r\n");
    assert_eq!(sent("ma foo q k", Response::NotFound), "NF kfoo\r\n");
    assert_eq!(sent("ma foo q O1", Response::Exists), "EX O1\r\n");
    assert_eq!(sent("ma foo", Response::NotCreated), "NS\r\n");
}

#[test]
fn me_and_mn() {
    assert_eq!(
        sent("me foo", Response::Hit(Hit { deadline: in_seconds(20), ..hit(b"v") })),
        "ME foo exp=20 la=9 cas=77 fetch=no cls=3 size=66\r\n"
    );
    assert_eq!(sent("me foo", Response::Miss), "EN\r\n");
    assert_eq!(get("me foo"), Get { purpose: Purpose::Describe, no_use: true, ..Get::default() });
    step(b"mn k q\r\n", |step| {
        let Step::Answer { answer: Answer::Bytes(b"MN\r\n"), .. } = step else {
            panic!("{step:?}")
        };
    });
}

#[test]
fn a_very_long_argument_is_cut_before_it_is_kept() {
    let text = format!("mg foo v{} k O123", "x".repeat(5000));
    request(&text, |_, reply| {
        assert!(reply.tail.len() <= super::TAIL_BYTES_MAX);
        let mut out = Vec::new();
        encode(&reply, &Response::Hit(hit(b"hi")), NOW, &mut out);
        assert_eq!(out, b"VA 2 kfoo O123\r\nhi\r\n");
    });
}

/// Lines that may be right.
fn lines() -> impl Strategy<Value = String> {
    let flag = prop_oneof![
        8 => prop::sample::select(vec![
            "b", "c", "f", "h", "k", "l", "q", "s", "t", "u", "v", "x", "I", "L", "P", "C5", "E5",
            "T30", "T-1", "N30", "R30", "F7", "D2", "J3", "MS", "MA", "MI", "MD", "Oopaque",
        ]).prop_map(str::to_owned),
        1 => "[ -~]{0,40}",
    ];
    let key = prop_oneof!["[a-z]{1,20}", Just("Zm9v".to_owned())];
    let name = prop::sample::select(vec!["mg", "ms", "md", "ma", "me"]);
    (name, key, prop::collection::vec(flag, 0..20)).prop_map(|(name, key, flags)| {
        let length = if name == "ms" { " 2" } else { "" };
        let data = if name == "ms" { "\r\nhi" } else { "" };
        format!("{name} {key}{length} {}{data}\r\n", flags.join(" "))
    })
}

proptest! {
    #[test]
    fn every_outcome_of_every_line_can_be_written(line in lines(), key in "[a-z]{1,250}") {
        let found = Hit { key: key.as_bytes(), cas: u64::MAX, flags: u32::MAX, ..hit(b"v") };
        let all = Marks { fetched: true, stale: true, won: true, win_sent: true, binary_key: true };
        let responses = [
            Response::Hit(Hit { marks: all, idle_seconds: u32::MAX, ..found }),
            Response::Number(Number { value: u64::MAX, cas: u64::MAX, ..number() }),
            stored(), Response::Miss, Response::NotStored, Response::Exists, Response::NotFound,
            Response::Deleted, Response::NonNumeric, Response::TooLarge, Response::OutOfMemory,
            Response::NotCreated,
        ];
        step(line.as_bytes(), |step| {
            if let Step::Request { reply, .. } = step {
                assert!(matches!(reply.form, ReplyForm::Meta(
                    MetaForm::Get { .. } | MetaForm::Set { .. } | MetaForm::Delete { .. }
                        | MetaForm::Arithmetic { .. } | MetaForm::Inspect)));
                for response in &responses {
                    let mut out = Vec::new();
                    encode(&reply, response, NOW, &mut out);
                    assert!(out.is_empty() || out.ends_with(b"\r\n"));
                    let spaces = out.windows(2).any(|pair| pair == b"  " || pair == b" \r");
                    assert!(!spaces, "{:?}", String::from_utf8_lossy(&out));
                }
            }
        });
    }
}
