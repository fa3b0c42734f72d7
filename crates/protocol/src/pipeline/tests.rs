//! One rule each.

use std::collections::BTreeSet;

use bumpalo::Bump;

use super::*;
use crate::{Context, Decoder, Limits, Step};
use ringlane_types::hash::HashSecret;
use ringlane_types::request::{Hit, Marks, Value};
use ringlane_types::time::Deadline;

const NOW: Instant = Instant::from_millis(1_700_000_000_000);

/// A pipeline in which `delete` requests wait, one for each key.
fn waiting(keys: &[&str]) -> (Pipeline, Vec<u32>) {
    let mut pipeline = Pipeline::default();
    let numbers = keys.iter().map(|key| wait(&mut pipeline, &format!("get {key}"))).collect();
    (pipeline, numbers)
}

fn wait(pipeline: &mut Pipeline, line: &str) -> u32 {
    let (limits, scratch) = (Limits::default(), Bump::new());
    let secret = HashSecret::of_seed(0);
    let context = Context { limits: &limits, now: NOW, hash_secret: &secret, scratch: &scratch };
    let line = format!("{line}\r\n");
    match Decoder::default().next(line.as_bytes(), &context) {
        Step::Request { reply, .. } => pipeline.reserve(&reply),
        step => panic!("no request: {step:?}"),
    }
}

fn complete(pipeline: &mut Pipeline, number: u32, out: &mut Vec<u8>) {
    pipeline.complete(number, Completion::Response(&Response::Miss), NOW, out);
}

#[test]
fn early_answers_wait_for_those_before_them() {
    let (mut pipeline, numbers) = waiting(&["a", "b", "c"]);
    pipeline.push_ready(|bytes| bytes.extend_from_slice(b"known\r\n"));
    let mut out = Vec::new();
    complete(&mut pipeline, numbers[2], &mut out);
    complete(&mut pipeline, numbers[1], &mut out);
    assert!(out.is_empty());
    complete(&mut pipeline, numbers[0], &mut out);
    assert_eq!(out, b"END\r\nEND\r\nEND\r\nknown\r\n");
    assert!(pipeline.is_empty());
}

#[test]
fn answers_in_order_are_written_at_once() {
    let (mut pipeline, numbers) = waiting(&["a", "b"]);
    let mut out = Vec::new();
    complete(&mut pipeline, numbers[0], &mut out);
    assert_eq!(out, b"END\r\n");
    pipeline.push_ready(|bytes| bytes.extend_from_slice(b"x\r\n"));
    assert_eq!(out, b"END\r\n");
    complete(&mut pipeline, numbers[1], &mut out);
    assert_eq!(out, b"END\r\nEND\r\nx\r\n");
}

#[test]
fn a_full_turn_of_the_queue_keeps_order_and_room() {
    let mut pipeline = Pipeline::default();
    let mut out = Vec::new();
    let mut oldest = std::collections::VecDeque::new();
    for i in 0..5000u32 {
        oldest.push_back(wait(&mut pipeline, &format!("get key-number-{i}")));
        pipeline.push_ready(|bytes| bytes.extend_from_slice(format!("{i}\r\n").as_bytes()));
        if oldest.len() > 7 {
            complete(&mut pipeline, oldest.pop_front().unwrap(), &mut out);
        }
    }
    while let Some(number) = oldest.pop_front() {
        complete(&mut pipeline, number, &mut out);
    }
    let expected: String = (0..5000).map(|i| format!("END\r\n{i}\r\n")).collect();
    assert_eq!(out, expected.as_bytes());
    assert_eq!(pipeline.bytes_held(), 0);
    assert!(pipeline.bytes.capacity() <= BYTES_KEPT);
}

#[test]
fn early_answers_come_into_room_that_earlier_ones_had() {
    let (mut pipeline, mut out) = (Pipeline::default(), Vec::new());
    let mut rooms = Vec::new();
    for _ in 0..3 {
        let numbers: Vec<_> = (0..30).map(|i| wait(&mut pipeline, &format!("get {i}"))).collect();
        numbers.iter().rev().for_each(|&number| complete(&mut pipeline, number, &mut out));
        assert!(pipeline.is_empty());
        rooms.push(pipeline.spare.iter().map(|room| room.as_ptr()).collect::<BTreeSet<_>>());
    }
    assert_eq!(out, b"END\r\n".repeat(90));
    assert_eq!(rooms[0].len(), 29, "the first is never early");
    assert_eq!(rooms[0], rooms[2]);
}

const REQUESTS_MAX: usize = 1024;
const BYTES_MAX: usize = 1 << 20;

/// Lets one more read go, as far as the pipeline is concerned; returns its number and allowance.
fn read(pipeline: &mut Pipeline, key: &str) -> (u32, Allowed) {
    let allowed = pipeline.allowance(BYTES_MAX, |_, _| true);
    let (limits, scratch) = (Limits::default(), Bump::new());
    let secret = HashSecret::of_seed(0);
    let context = Context { limits: &limits, now: NOW, hash_secret: &secret, scratch: &scratch };
    let line = format!("get {key}\r\n");
    match Decoder::default().next(line.as_bytes(), &context) {
        Step::Request { reply, request, .. } => {
            (pipeline.reserve_limited(&reply, allowed, (request.hash, false)), allowed)
        }
        step => panic!("no request: {step:?}"),
    }
}

fn hit(pipeline: &mut Pipeline, number: u32, bytes: usize, out: &mut Vec<u8>) {
    let value = vec![b'v'; bytes];
    let hit = Hit { value: Value::Whole(&value), ..short_hit() };
    pipeline.complete(number, Completion::Response(&Response::Hit(hit)), NOW, out);
}

fn too_long(pipeline: &mut Pipeline, number: u32, bytes: u32) {
    let response = Response::OverAllowance { value_bytes: bytes, request: b"the request" };
    pipeline.complete(number, Completion::Response(&response), NOW, &mut Vec::new());
}

#[test]
fn long_answers_let_few_requests_go_and_short_ones_many() {
    let mut pipeline = Pipeline::default();
    let mut out = Vec::new();
    let room = |pipeline: &Pipeline| pipeline.room(REQUESTS_MAX, BYTES_MAX);
    assert_eq!(room(&pipeline), 52, "nothing is known yet");
    let (number, allowed) = read(&mut pipeline, "long");
    assert_eq!((allowed.bytes as usize, allowed.alone), (BYTES_MAX, true));
    assert_eq!(room(&pipeline), 51);
    hit(&mut pipeline, number, 100_000, &mut out);
    assert_eq!(room(&pipeline), 6);
    let mut rooms = Vec::new();
    for _ in 0..1000 {
        let (number, _) = read(&mut pipeline, "short");
        hit(&mut pipeline, number, 10, &mut out);
        rooms.push(room(&pipeline));
    }
    assert!(rooms.is_sorted() && *rooms.last().unwrap() == REQUESTS_MAX, "{rooms:?}");
    let (number, _) = read(&mut pipeline, "huge");
    hit(&mut pipeline, number, 1 << 20, &mut out);
    assert_eq!(room(&pipeline), 2, "one, and one that is on its way with it");
}

#[test]
fn allowances_together_stay_within_the_bound_and_the_first_comes_on_top() {
    let mut pipeline = Pipeline::default();
    let mut allowances = Vec::new();
    while pipeline.room(REQUESTS_MAX, BYTES_MAX) > 0 {
        allowances.push(read(&mut pipeline, "k").1.bytes as usize);
    }
    assert_eq!(allowances[0], BYTES_MAX);
    let others: usize = allowances[1..].iter().sum();
    assert!(others <= BYTES_MAX && others > BYTES_MAX / 2, "{others}");
    assert_eq!(pipeline.bytes_reserved(), BYTES_MAX + others);
}

#[test]
fn without_room_a_request_takes_the_least_allowance_and_reserves_nothing() {
    let pipeline = Pipeline::default();
    let allowed = pipeline.allowance(BYTES_MAX, |_, _| false);
    assert_eq!(allowed.bytes as usize, ALLOWANCE_BYTES_MIN);
    assert_eq!(allowed.reserved, 0);
}

#[test]
fn what_is_too_long_waits_and_is_made_again() {
    let mut pipeline = Pipeline::default();
    let mut out = Vec::new();
    let numbers: Vec<u32> = ["a", "b", "c"].map(|key| read(&mut pipeline, key).0).to_vec();
    too_long(&mut pipeline, numbers[1], 500_000);
    too_long(&mut pipeline, numbers[0], 2_000_000);
    hit(&mut pipeline, numbers[2], 3, &mut out);
    assert!(out.is_empty() && pipeline.bytes_held() < 1000);
    assert_eq!(pipeline.next_deferred(0), Some(0));
    assert_eq!(pipeline.deferred(0).value_bytes, Some(2_000_000));
    assert_eq!(pipeline.room(REQUESTS_MAX, BYTES_MAX), 0, "the surprise counts at once");
    assert!(pipeline.may_have(0, 2_000_000, BYTES_MAX), "the oldest can always be had");
    assert!(!pipeline.may_have(1, 2_000_000, BYTES_MAX));
    assert!(pipeline.may_have(1, 500_000, BYTES_MAX));
    for (position, bytes) in [(0, 2_000_000), (1, 500_000)] {
        let allowed = Allowed { bytes, reserved: bytes, alone: position == 0 };
        let (number, deferred) = pipeline.undefer(position, allowed, true);
        assert_eq!((number, &deferred.request[..]), (numbers[position], &b"the request"[..]));
    }
    assert!(!pipeline.has_deferred());
    hit(&mut pipeline, numbers[1], 500_000, &mut out);
    hit(&mut pipeline, numbers[0], 2_000_000, &mut out);
    assert!(pipeline.is_empty() && pipeline.bytes_reserved() == 0);
    assert_eq!(out.iter().filter(|&&byte| byte == b'v').count(), 2_500_003);
    assert!(out.ends_with(b"vvv\r\nEND\r\n"), "in order");
}

#[test]
fn a_change_waits_for_reads_of_its_key_and_nothing_else_does() {
    let mut pipeline = Pipeline::default();
    let hash = |key: &str| KeyHash::of(key.as_bytes(), &HashSecret::of_seed(0));
    let (first, _) = read(&mut pipeline, "a");
    assert!(pipeline.conflicts(hash("a"), true));
    assert!(!pipeline.conflicts(hash("a"), false), "reads may pass reads");
    assert!(!pipeline.conflicts(hash("b"), true));
    let reply = Reply { form: text_form(), key: b"a", tail: b"" };
    pipeline.defer(&reply, (hash("a"), true), None, b"a change".to_vec());
    assert!(pipeline.conflicts(hash("a"), false), "but not a change that waits");
    assert_eq!(pipeline.room(REQUESTS_MAX, BYTES_MAX), 0, "no more while one waits for another");
    assert!(pipeline.is_behind(1));
    too_long(&mut pipeline, first, 100);
    assert!(pipeline.is_behind(1) && !pipeline.is_behind(0));
    let allowed = Allowed { bytes: 100, reserved: 0, alone: true };
    pipeline.undefer(0, allowed, true);
    let mut out = Vec::new();
    hit(&mut pipeline, first, 100, &mut out);
    assert!(!pipeline.is_behind(0));
    let (number, _) = pipeline.undefer(0, Allowed::default(), false);
    assert!(!pipeline.conflicts(hash("a"), false));
    complete(&mut pipeline, number, &mut out);
    assert!(pipeline.is_empty());
}

#[test]
fn reads_are_compared_with_changes_only() {
    let mut pipeline = Pipeline::default();
    let hash = |key: &str| KeyHash::of(key.as_bytes(), &HashSecret::of_seed(0));
    let reads: Vec<_> = (0..500).map(|_| read(&mut pipeline, "a").0).collect();
    assert_eq!(
        pipeline.sums.changing_filter, 0,
        "a line of one key is no walk for each of its keys"
    );
    let reply = Reply { form: text_form(), key: b"a", tail: b"" };
    pipeline.defer(&reply, (hash("a"), true), None, b"a change".to_vec());
    assert!(pipeline.conflicts(hash("a"), false));
    let mut out = Vec::new();
    for number in reads {
        hit(&mut pipeline, number, 1, &mut out);
    }
    let (number, _) = pipeline.undefer(0, Allowed::default(), false);
    assert_eq!((pipeline.sums.changing, pipeline.sums.changing_filter), (0, 0));
    complete(&mut pipeline, number, &mut out);
    assert!(pipeline.is_empty());
}

fn text_form() -> ReplyForm {
    ReplyForm::Text(crate::text::TextForm::Delete { noreply: false })
}

fn short_hit() -> Hit<'static> {
    Hit {
        item: None,
        key: b"k",
        value: Value::Whole(b""),
        flags: 0,
        cas: 1,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        idle_seconds: 0,
        marks: Marks::default(),
        class: 1,
        item_bytes: 50,
    }
}

#[test]
#[should_panic(expected = "not in the pipeline")]
fn completing_twice_is_a_broken_invariant() {
    let (mut pipeline, numbers) = waiting(&["a"]);
    complete(&mut pipeline, numbers[0], &mut Vec::new());
    complete(&mut pipeline, numbers[0], &mut Vec::new());
}
