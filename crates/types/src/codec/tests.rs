//! Everything the vocabulary can say survives the trip, and no bytes upset the decoders.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::request::ask;
use super::response::answer;
use super::*;
use crate::hash::{HashSecret, KeyHash};
use crate::request::{
    Allowance, Arithmetic, Body, Delete, Get, Hit, ItemRef, KEY_BYTES_MAX, Marks, Number,
    Operation, Purpose, Request, Response, Span, Store, StoreMode, Value, Vivify,
};
use crate::time::Deadline;

fn request_bytes(request: &Request<'_>) -> Vec<u8> {
    let mut message = vec![0xee; encoded_request_bytes(request)];
    encode_request(request, &mut message);
    message
}

fn response_bytes(response: &Response<'_>) -> Vec<u8> {
    let mut message = vec![0xee; encoded_response_bytes(response)];
    encode_response(response, &mut message);
    message
}

fn plain_get(key: &[u8]) -> Request<'_> {
    Request {
        key,
        hash: KeyHash::of(key, &HashSecret::of_seed(7)),
        operation: Operation::Get(Get::default()),
    }
}

fn deadline() -> impl Strategy<Value = Deadline> {
    prop_oneof![
        Just(Deadline::NEVER),
        Just(Deadline::PAST),
        any::<u64>().prop_map(Deadline::from_millis)
    ]
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..=KEY_BYTES_MAX)
}

fn get_options() -> impl Strategy<Value = Get> {
    let purpose = prop_oneof![
        Just(Purpose::Get),
        Just(Purpose::Touch),
        Just(Purpose::Inspect),
        Just(Purpose::Describe)
    ];
    let vivify = (deadline(), option::of(any::<u64>()), any::<bool>())
        .prop_map(|(deadline, cas, binary_key)| Vivify { deadline, cas, binary_key });
    let parts = (
        purpose,
        option::of(deadline()),
        any::<bool>(),
        any::<bool>(),
        option::of(vivify),
        option::of(any::<u32>()),
        any::<bool>(),
        option::of(any::<u32>()),
    );
    parts.prop_map(
        |(purpose, touch, no_use, lease, vivify, refresh_below_seconds, refresh_first, bytes)| {
            Get {
                allowance: bytes.map_or(Allowance::FULL, Allowance),
                purpose,
                touch,
                no_use,
                lease,
                vivify,
                refresh_below_seconds,
                refresh_first,
            }
        },
    )
}

/// A store of everything but its value, and the length of a refused one.
fn store_options() -> impl Strategy<Value = (Store<'static>, Option<u64>)> {
    let mode = prop_oneof![
        Just(StoreMode::Set),
        Just(StoreMode::Add),
        Just(StoreMode::Replace),
        Just(StoreMode::Append),
        Just(StoreMode::Prepend)
    ];
    let parts = (
        (mode, prop_oneof![Just(0), any::<u32>()], deadline(), option::of(any::<u64>())),
        (any::<bool>(), option::of(any::<u64>()), option::of(deadline())),
        (any::<bool>(), any::<bool>(), option::of(any::<u64>())),
    );
    parts.prop_map(|(first, second, third)| {
        let (mode, flags, deadline, compare) = first;
        let (accept_older, cas, vivify) = second;
        let (refusal_removes, binary_key, refused) = third;
        let store = Store {
            mode,
            value: Body::Bytes(&[]),
            flags,
            deadline,
            compare,
            accept_older,
            cas,
            vivify,
            refusal_removes,
            binary_key,
        };
        (store, refused)
    })
}

fn delete_options() -> impl Strategy<Value = Delete> {
    let parts = (
        option::of(any::<u64>()),
        any::<bool>(),
        option::of(deadline()),
        option::of(any::<u32>()),
        option::of(any::<u64>()),
    );
    parts.prop_map(|(compare, invalidate, deadline, empty, cas)| Delete {
        compare,
        invalidate,
        deadline,
        empty,
        cas,
    })
}

fn arithmetic_options() -> impl Strategy<Value = Arithmetic> {
    let parts = (
        (any::<bool>(), any::<u64>(), option::of(any::<u64>())),
        option::of((any::<u64>(), deadline())),
        (option::of(deadline()), option::of(any::<u64>()), any::<bool>()),
    );
    parts.prop_map(|((decrement, delta, compare), create, (touch, cas, binary_key))| Arithmetic {
        decrement,
        delta,
        compare,
        create,
        touch,
        cas,
        binary_key,
    })
}

fn marks() -> impl Strategy<Value = Marks> {
    any::<[bool; 5]>().prop_map(|[fetched, stale, won, win_sent, binary_key]| Marks {
        fetched,
        stale,
        won,
        win_sent,
        binary_key,
    })
}

fn assert_request_survives(request: &Request<'_>) {
    let message = request_bytes(request);
    let arrived = decode_request(&message).expect("own encoding");
    assert_eq!(format!("{arrived:?}"), format!("{request:?}"));
    // Cutting a message with a value only shortens the value; any other cut must be noticed.
    let fixed = match request.operation {
        Operation::Store(Store { value: Body::Bytes(value), .. }) => message.len() - value.len(),
        _ => message.len(),
    };
    for cut in 0..fixed {
        assert!(decode_request(&message[..cut]).is_err(), "cut at {cut} of {fixed}");
    }
}

fn assert_response_survives(response: &Response<'_>) {
    let message = response_bytes(response);
    let arrived = decode_response(&message).expect("own encoding");
    assert_eq!(format!("{arrived:?}"), format!("{response:?}"));
    let fixed = match response {
        Response::Hit(hit) => message.len() - hit.value.len(),
        Response::OverAllowance { request, .. } => message.len() - request.len(),
        _ => message.len(),
    };
    for cut in 0..fixed {
        assert!(decode_response(&message[..cut]).is_err(), "cut at {cut} of {fixed}");
    }
}

proptest! {
    #[test]
    fn every_get_survives(key in key(), hash: u64, get in get_options()) {
        let hash = KeyHash::from_bits(hash);
        assert_request_survives(&Request { key: &key, hash, operation: Operation::Get(get) });
    }

    #[test]
    fn every_store_survives(
        key in key(),
        hash: u64,
        options in store_options(),
        value in vec(any::<u8>(), 0..600),
    ) {
        let (mut store, refused) = options;
        store.value = refused.map_or(Body::Bytes(&value), Body::Refused);
        let hash = KeyHash::from_bits(hash);
        assert_request_survives(&Request { key: &key, hash, operation: Operation::Store(store) });
    }

    #[test]
    fn every_delete_survives(key in key(), hash: u64, delete in delete_options()) {
        let hash = KeyHash::from_bits(hash);
        assert_request_survives(&Request { key: &key, hash, operation: Operation::Delete(delete) });
    }

    #[test]
    fn every_arithmetic_survives(key in key(), hash: u64, options in arithmetic_options()) {
        let operation = Operation::Arithmetic(options);
        assert_request_survives(&Request { key: &key, hash: KeyHash::from_bits(hash), operation });
    }

    #[test]
    fn every_hit_survives(
        key in key(),
        value in vec(any::<u8>(), 0..600),
        times in (deadline(), deadline(), any::<bool>()),
        numbers in (prop_oneof![Just(0), any::<u32>()], any::<u64>(), any::<u32>(), any::<u32>()),
        marks in marks(),
        class: u8,
    ) {
        let (deadline, other, touched) = times;
        let (flags, cas, idle_seconds, item_bytes) = numbers;
        assert_response_survives(&Response::Hit(Hit {
            item: None,
            key: &key,
            value: Value::Whole(&value),
            flags,
            cas,
            deadline,
            deadline_before: if touched { other } else { deadline },
            idle_seconds,
            marks,
            class,
            item_bytes,
        }));
    }

    #[test]
    fn every_number_survives(
        key in key(),
        numbers: (u64, u64),
        times in (deadline(), deadline()),
        created: bool,
        binary_key: bool,
    ) {
        assert_response_survives(&Response::Number(Number {
            value: numbers.0,
            key: &key,
            cas: numbers.1,
            deadline: times.0,
            deadline_before: times.1,
            created,
            binary_key,
        }));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(mut bytes in vec(any::<u8>(), 0..80), tag in 0u8..6) {
        if let Some(first) = bytes.first_mut() {
            *first = if tag == 0 { *first } else { tag };
        }
        if let Ok(request) = decode_request(&bytes) {
            // What is accepted means one thing: written again it reads the same.
            assert_request_survives(&request);
        }
        if let Ok(response) = decode_response(&bytes) {
            assert_response_survives(&response);
        }
    }
}

#[test]
fn answers_without_content_take_one_byte() {
    let responses = [
        Response::Miss,
        Response::NotStored,
        Response::Exists,
        Response::NotFound,
        Response::Deleted,
        Response::NonNumeric,
        Response::TooLarge,
        Response::OutOfMemory,
        Response::NotCreated,
        Response::Uncertain,
    ];
    for response in responses {
        assert_eq!(response_bytes(&response).len(), 1);
        assert_response_survives(&response);
    }
    assert_response_survives(&Response::QuorumNotReached { needed: 2, reached: 1 });
    assert_response_survives(&Response::Busy);
    assert_response_survives(&Response::Stored { cas: u64::MAX, value_bytes: u32::MAX });
    assert_response_survives(&Response::OverAllowance { value_bytes: 7, request: b"as it came" });
}

#[test]
fn a_plain_get_is_ten_bytes_and_its_key() {
    let message = request_bytes(&plain_get(b"key"));
    assert_eq!(message.len(), PLAIN_GET_HEAD_BYTES + 3);
    assert_request_survives(&plain_get(b"key"));
}

#[test]
fn a_plain_get_with_an_allowance_is_four_bytes_longer() {
    let get = Get { allowance: Allowance(1024), ..Get::default() };
    let request = Request { operation: Operation::Get(get), ..plain_get(b"key") };
    let message = request_bytes(&request);
    assert_eq!(message.len(), LIMITED_GET_HEAD_BYTES + 3);
    let (key, hash, allowance) = decode_plain_get(&message).expect("it is one");
    assert_eq!((key, hash, allowance), (&b"key"[..], request.hash, Allowance(1024)));
    assert_request_survives(&request);
    let cut = &message[..LIMITED_GET_HEAD_BYTES - 1];
    assert!(decode_plain_get(cut).is_none() && decode_request(cut).is_err());
}

#[test]
fn a_plain_hit_is_sixteen_bytes_its_key_and_its_value() {
    let hit = Hit {
        item: Some(ItemRef(9)),
        key: b"key",
        value: Value::Whole(b"value"),
        flags: 0,
        cas: 77,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        idle_seconds: 0,
        marks: Marks::default(),
        class: 3,
        item_bytes: 60,
    };
    let message = response_bytes(&Response::Hit(hit));
    assert_eq!(message.len(), 16 + 3 + 5);
    match decode_response(&message) {
        Ok(Response::Hit(arrived)) => assert_eq!(arrived.item, None, "only the owner knows it"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_chained_value_arrives_in_one_piece() {
    let spans = [Span { offset: 4, bytes: 3 }, Span { offset: 0, bytes: 2 }];
    let chained = crate::request::Chained { memory: b"ab--cde", spans: &spans };
    let hit = Hit {
        item: None,
        key: b"k",
        value: Value::Chained(chained),
        flags: 1,
        cas: 2,
        deadline: Deadline::PAST,
        deadline_before: Deadline::NEVER,
        idle_seconds: 4,
        marks: Marks::default(),
        class: 0,
        item_bytes: 0,
    };
    let message = response_bytes(&Response::Hit(hit));
    match decode_response(&message) {
        Ok(Response::Hit(Hit { value: Value::Whole(value), .. })) => assert_eq!(value, b"cdeab"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_behind_a_message_without_a_value_are_an_error() {
    let mut message = request_bytes(&plain_get(b"key"));
    message.push(0);
    assert_eq!(decode_request(&message).unwrap_err(), CodecError::Trailing);
    assert_eq!(decode_response(&[answer::MISS, 0]).unwrap_err(), CodecError::Trailing);
}

#[test]
fn keys_out_of_bounds_are_an_error() {
    let mut message = vec![0; PLAIN_GET_HEAD_BYTES];
    message[0] = ask::PLAIN_GET;
    assert_eq!(decode_request(&message).unwrap_err(), CodecError::Key);
    message[1] = KEY_BYTES_MAX as u8 + 1;
    message.resize(PLAIN_GET_HEAD_BYTES + KEY_BYTES_MAX + 1, b'k');
    assert_eq!(decode_request(&message).unwrap_err(), CodecError::Key);
}

#[test]
fn unknown_tags_and_options_are_errors() {
    let mut message = request_bytes(&plain_get(b"key"));
    message[0] = 0x77;
    assert_eq!(decode_request(&message).unwrap_err(), CodecError::Unknown);
    message[0] = ask::DELETE;
    message[11] = 0x80;
    assert_eq!(decode_request(&message).unwrap_err(), CodecError::Unknown);
    assert_eq!(decode_response(&[0xf0 | answer::MISS]).unwrap_err(), CodecError::Unknown);
}
