//! What the targets share: a connection that feeds a decoder in pieces and keeps what it said.
//!
//! The same bytes in one piece and in small ones must ask for the same things, each step must use
//! up input, and no answer to what was asked may upset its encoder.

mod choices;
pub mod frames;
pub mod node;
pub mod peers;

use bumpalo::Bump;
use ringlane::hash::HashSecret;
use ringlane::protocol::{
    AdminAnswer, Answer, Context, Decoder, Limits, Output, Reply, ReplyForm, Step, encode,
    encode_admin, encode_stat, encode_stats_end, text,
};
use ringlane::request::{
    Body, Hit, ItemRef, Marks, Number, Operation, Request, Response, Span, Value,
};
use ringlane::time::{Deadline, Instant};

/// The moment at which everything happens.
pub const NOW: Instant = Instant::from_millis(1_700_000_000_000);

/// Limits small enough for short inputs to pass them. A text line is only refused for its length
/// when it arrives in pieces, so that its limit must be out of reach.
fn limits() -> Limits {
    Limits {
        item_bytes_max: 2048,
        line_bytes_max: 1 << 20,
        multiget_line_bytes_max: 1 << 20,
        body_bytes_streamed: 64,
    }
}

/// Decodes `input` in one piece, byte by byte and in pieces of the first byte's choice, and
/// compares.
pub fn check(decoder: fn() -> Decoder, input: &[u8]) {
    let Some((&piece, input)) = input.split_first() else { return };
    let mut connection = Connection::new(decoder());
    connection.thorough = true;
    let whole = connection.feed(input, input.len().max(1));
    for piece in [1, 1 + usize::from(piece % 61)] {
        let pieces = Connection::new(decoder()).feed(input, piece);
        assert_eq!(whole, pieces, "in pieces of {piece}");
    }
}

/// One connection and what its client asked for so far.
struct Connection {
    decoder: Decoder,
    said: Vec<String>,
    out: Vec<u8>,
    /// Also relays every request and encodes every answer to it.
    thorough: bool,
}

impl Connection {
    fn new(decoder: Decoder) -> Self {
        Self { decoder, said: Vec::new(), out: Vec::new(), thorough: false }
    }

    /// Shows `input` in pieces, always with what is left of earlier ones before it.
    fn feed(mut self, input: &[u8], piece: usize) -> Vec<String> {
        let limits = limits();
        let (mut start, mut end) = (0, 0);
        loop {
            let scratch = Bump::new();
            let context = Context {
                limits: &limits,
                now: NOW,
                hash_secret: &HashSecret::of_seed(7),
                scratch: &scratch,
            };
            let step = if start < end {
                self.decoder.next(&input[start..end], &context)
            } else {
                Step::Incomplete
            };
            let before = start;
            match step {
                Step::Incomplete => {
                    if end >= input.len() {
                        return self.said;
                    }
                    end = (end.max(start) + piece).min(input.len());
                    start = start.min(input.len());
                    continue;
                }
                Step::Close => {
                    self.said.push("close".to_string());
                    return self.said;
                }
                Step::Request { consumed, request, reply, skip } => {
                    self.request(&request, &reply);
                    start += consumed + usize::try_from(skip).expect("64 bits");
                }
                Step::StoreHeader { consumed, request, reply, value_bytes, trailer_bytes } => {
                    start += consumed;
                    let value_end = start + value_bytes as usize;
                    let block_end = value_end + trailer_bytes as usize;
                    // In one piece the decoder sees that the block is not all there; here it is
                    // the input's end that cuts it.
                    let Some(trailer) = input.get(value_end..block_end) else {
                        return self.said;
                    };
                    if self.decoder.trailer_is_valid(trailer) {
                        let mut request = request;
                        let Operation::Store(store) = &mut request.operation else {
                            panic!("a body for {request:?}");
                        };
                        store.value = Body::Bytes(&input[start..value_end]);
                        self.request(&request, &reply);
                    } else {
                        self.answer(text::bad_data_chunk(&reply));
                    }
                    start = block_end;
                }
                Step::Answer { consumed, answer, skip } => {
                    self.answer(answer);
                    start += consumed + usize::try_from(skip).expect("64 bits");
                }
                Step::Admin { consumed, command, reply } => {
                    self.said.push(format!("{command:?} {reply:?}"));
                    encode_stat(&reply, b"name", b"value", &mut self.out);
                    encode_stats_end(&reply, &mut self.out);
                    encode_admin(&reply, AdminAnswer::Done, &mut self.out);
                    encode_admin(&reply, AdminAnswer::Unknown, &mut self.out);
                    start += consumed;
                }
            }
            assert!(start > before, "no progress at {start} of {end}");
        }
    }

    fn answer(&mut self, answer: Answer<'_>) {
        self.said.push(format!("{answer:?}"));
        if let (Answer::Bytes(bytes), Decoder::Compact(_)) = (answer, &self.decoder) {
            assert!(!bytes.is_empty());
        }
    }

    /// Takes note of a request.
    fn request(&mut self, request: &Request<'_>, reply: &Reply<'_>) {
        self.said.push(format!("{request:?} {reply:?}"));
        if !self.thorough {
            return;
        }
        // What crosses to another core must come back the same.
        assert_eq!(relay_request(request), format!("{request:?}"));
        for response in responses(request.key) {
            self.out.clear();
            encode(reply, &response, NOW, &mut Checked { out: &mut self.out });
            check_answer(reply, &self.out);
        }
    }
}

fn relay_request(request: &Request<'_>) -> String {
    use ringlane::codec::{decode_request, encode_request, encoded_request_bytes};
    let mut message = vec![0; encoded_request_bytes(request)];
    encode_request(request, &mut message);
    format!("{:?}", decode_request(&message).expect("own encoding"))
}

/// A writer that also takes chained values.
struct Checked<'o> {
    out: &'o mut Vec<u8>,
}

impl Output for Checked<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn value(&mut self, value: &Value<'_>, item: Option<ItemRef>) {
        // Only the number that arithmetic answers is a value without an item.
        assert!(item == Some(ItemRef(5)) || value.len() == 8, "the item of a hit is known");
        self.out.extend_from_slice(&value.to_vec());
    }
}

/// One of each answer, and hits of several kinds.
fn responses(key: &[u8]) -> Vec<Response<'_>> {
    const SPANS: &[Span] = &[Span { offset: 2, bytes: 3 }, Span { offset: 0, bytes: 1 }];
    let chained = ringlane::request::Chained { memory: b"chained value", spans: SPANS };
    let hit = Hit {
        item: Some(ItemRef(5)),
        key,
        value: Value::Whole(b"value\r\n"),
        flags: u32::MAX,
        cas: u64::MAX,
        deadline: Deadline::from_millis(NOW.as_millis() + 1),
        deadline_before: Deadline::NEVER,
        idle_seconds: u32::MAX,
        marks: Marks { fetched: true, stale: true, won: true, win_sent: true, binary_key: true },
        class: 63,
        item_bytes: u32::MAX,
    };
    let number = Number {
        value: u64::MAX,
        key,
        cas: u64::MAX,
        deadline: Deadline::PAST,
        deadline_before: Deadline::NEVER,
        created: true,
        binary_key: true,
    };
    vec![
        Response::Hit(hit),
        Response::Hit(Hit {
            value: Value::Chained(chained),
            flags: 0,
            marks: Marks::default(),
            deadline: Deadline::NEVER,
            ..hit
        }),
        Response::Miss,
        Response::Stored { cas: u64::MAX, value_bytes: u32::MAX },
        Response::NotStored,
        Response::Exists,
        Response::NotFound,
        Response::Deleted,
        Response::Number(number),
        Response::NonNumeric,
        Response::TooLarge,
        Response::OutOfMemory,
        Response::NotCreated,
    ]
}

/// An answer is whole frames, or whole lines.
fn check_answer(reply: &Reply<'_>, answer: &[u8]) {
    match reply.form {
        ReplyForm::Compact(form) => {
            let mut rest = answer;
            while !rest.is_empty() {
                use ringlane::protocol::compact::client::ResponseFrame as Received;
                let (received, bytes) =
                    Received::decode(rest).expect("known codes").expect("a whole frame");
                assert_eq!((received.opcode, received.opaque), (form.opcode, form.opaque));
                rest = &rest[bytes..];
            }
        }
        ReplyForm::MemcachedBinary(_) => {
            let mut rest = answer;
            while !rest.is_empty() {
                assert_eq!(rest[0], 0x81);
                let body = u32::from_be_bytes(*rest[8..].first_chunk().expect("a header"));
                rest = &rest[24 + body as usize..];
            }
        }
        ReplyForm::Text(_) | ReplyForm::Meta(_) => {
            assert!(answer.is_empty() || answer.ends_with(b"\r\n"));
        }
    }
}
