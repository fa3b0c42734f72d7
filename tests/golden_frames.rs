//! `docs/protocol.md` against the code: every golden frame in it is what the client writes and
//! the server reads, and what the server answers and the client reads. The tables of commands,
//! statuses and HELLO tags are compared row by row.

use bumpalo::Bump;
use ringlane::hash::HashSecret;
use ringlane::protocol::compact::client::{EntryWriter, Frame, ResponseFrame as Received};
use ringlane::protocol::compact::opcode::{NODE_TO_NODE, request_flags};
use ringlane::protocol::compact::topology::TAGS;
use ringlane::protocol::compact::{
    NodeState, OPCODES, Opcode, OpcodeSpec, RingFacts, STATUSES, Status, Topology, TopologyNode,
    encode_topology,
};
use ringlane::protocol::{
    AdminAnswer, AdminCommand, Answer, Context, Decoder, Limits, Reply, ReplyForm, Step, encode,
    encode_admin, encode_stat, encode_stats_end,
};
use ringlane::request::Consistency;
use ringlane::request::{
    Allowance, Arithmetic, Delete, Get, Hit, Marks, Number, Operation, Purpose, Response, Store,
    StoreMode, Value,
};
use ringlane::time::{Deadline, Instant};

const DOCUMENT: &str = include_str!("../docs/protocol.md");
const NOW: Instant = Instant::from_millis(1_700_000_000_000);

/// What the server makes of one step of a golden frame, and the shard's or node's answer to it.
enum Expect<'a> {
    /// A request for this key, answered so.
    Request(&'a [u8], Operation<'a>, Response<'a>),
    /// The decoder answers by itself.
    Answer,
    /// A command for the node, which answers by writing.
    Node(AdminCommand<'a>, fn(&Reply<'_>, &mut Vec<u8>)),
}

/// One golden example: what a client means, what it means to the server, what comes back.
struct Case<'a> {
    /// Title of the example in the document.
    name: &'static str,
    /// The frames as the client helper writes them.
    sent: Vec<u8>,
    /// What the server reads.
    expect: Vec<Expect<'a>>,
    /// What the client reads.
    received: Vec<Received<'a>>,
}

/// A response as a client reads it, with nothing optional.
fn received(opcode: Opcode, status: Status, opaque: u32) -> Received<'static> {
    Received {
        opcode,
        status,
        opaque,
        more: false,
        index: None,
        client_flags: 0,
        ttl_millis: None,
        version: None,
        key: b"",
        value: b"",
    }
}

fn bytes(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut out));
    out
}

/// A frame for the key `key` with this opcode and opaque.
fn keyed(opcode: Opcode, opaque: u32) -> Frame<'static> {
    Frame { key: b"key", ..Frame::new(opcode, opaque) }
}

fn hit(value: &[u8]) -> Hit<'_> {
    Hit {
        item: None,
        key: b"key",
        value: Value::Whole(value),
        flags: 0,
        cas: 0x0102_0304_0506_0708,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        idle_seconds: 0,
        marks: Marks::default(),
        class: 1,
        item_bytes: 64,
    }
}

fn number(value: u64) -> Response<'static> {
    Response::Number(Number {
        value,
        key: b"key",
        cas: 9,
        deadline: Deadline::NEVER,
        deadline_before: Deadline::NEVER,
        created: false,
        binary_key: false,
    })
}

const STORED: Response<'_> = Response::Stored { cas: 0x0102_0304_0506_0708, value_bytes: 5 };
const UNUSED: Get = Get {
    allowance: Allowance::FULL,
    purpose: Purpose::Inspect,
    touch: None,
    no_use: true,
    lease: false,
    vivify: None,
    refresh_below_seconds: None,
    refresh_first: false,
};

fn in_millis(millis: u64) -> Deadline {
    Deadline::from_millis(NOW.as_millis() + millis)
}

fn topology() -> Topology<'static> {
    Topology {
        server: "ringlane 0.1.0",
        hash_seed: 0x1122_3344_5566_7788,
        core_count: 4,
        core: 2,
        port: 11211,
        shard_ports: Some(21000),
        item_bytes_max: 1 << 20,
        ..Topology::default()
    }
}

/// The same node as one of two; the other has no shard ports.
fn clustered() -> Topology<'static> {
    let a = TopologyNode {
        id: "a",
        state: NodeState::Alive,
        weight: 1,
        boot: 1_700_000_000_000,
        core_count: 4,
        hash_seed: 0x1122_3344_5566_7788,
        ip: Some([10, 0, 0, 1].into()),
        port: 11211,
        shard_ports: Some(21000),
    };
    let b = TopologyNode {
        id: "b",
        state: NodeState::Suspect,
        weight: 2,
        hash_seed: 0x99aa_bbcc_ddee_ff00,
        ip: Some([10, 0, 0, 2].into()),
        shard_ports: None,
        ..a
    };
    Topology {
        ring: Some(RingFacts { points_per_weight: 150, replicas: 1, hash: "md5" }),
        epoch: 2,
        this_node: "a",
        nodes: vec![a, b],
        ..topology()
    }
}

/// A request for `key` that succeeds without anything to say.
fn plain(
    name: &'static str,
    frame: Frame<'static>,
    operation: Operation<'static>,
    response: Response<'static>,
) -> Case<'static> {
    Case {
        name,
        sent: bytes(&[frame]),
        expect: vec![Expect::Request(b"key", operation, response)],
        received: vec![received(frame.opcode, Status::Ok, frame.opaque)],
    }
}

fn reads() -> Vec<Case<'static>> {
    let get = Operation::Get(Get::default());
    let touched = |millis, get| Operation::Get(Get { touch: Some(in_millis(millis)), ..get });
    let ok = |opcode, opaque| received(opcode, Status::Ok, opaque);
    let found = Response::Hit(hit(b"value"));
    let mut many = Vec::new();
    let mut entries = EntryWriter::new(&Frame::new(Opcode::Mget, 5), &mut many);
    entries.get(b"key");
    entries.get(b"none");
    entries.finish();
    vec![
        Case {
            name: "GET, found",
            sent: bytes(&[Frame::get(b"key", 1)]),
            expect: vec![Expect::Request(b"key", get, found)],
            received: vec![Received { value: b"value", ..ok(Opcode::Get, 1) }],
        },
        Case {
            name: "GET, not found",
            sent: bytes(&[Frame::get(b"key", 2)]),
            expect: vec![Expect::Request(b"key", get, Response::Miss)],
            received: vec![received(Opcode::Get, Status::NotFound, 2)],
        },
        Case {
            name: "GET with details of an item with client flags and 1.5 s left",
            sent: bytes(&[Frame { flags: request_flags::DETAILS, ..Frame::get(b"key", 3) }]),
            expect: vec![Expect::Request(
                b"key",
                get,
                Response::Hit(Hit { flags: 7, deadline: in_millis(1500), ..hit(b"value") }),
            )],
            received: vec![Received {
                client_flags: 7,
                ttl_millis: Some(1500),
                version: Some(0x0102_0304_0506_0708),
                value: b"value",
                ..ok(Opcode::Get, 3)
            }],
        },
        Case {
            name: "Two quiet GETs that miss, in any order, and a NOOP",
            sent: bytes(&[
                Frame {
                    flags: request_flags::QUIET | request_flags::ANY_ORDER,
                    ..Frame::get(b"a", 4)
                },
                Frame {
                    flags: request_flags::QUIET | request_flags::ANY_ORDER,
                    ..Frame::get(b"b", 5)
                },
                Frame::new(Opcode::Noop, 6),
            ]),
            expect: vec![
                Expect::Request(b"a", get, Response::Miss),
                Expect::Request(b"b", get, Response::Miss),
                Expect::Answer,
            ],
            received: vec![ok(Opcode::Noop, 6)],
        },
        Case {
            name: "MGET of two keys, one of them missing",
            sent: many,
            expect: vec![
                Expect::Request(b"key", get, found),
                Expect::Request(b"none", get, Response::Miss),
            ],
            received: vec![
                Received { more: true, index: Some(0), value: b"value", ..ok(Opcode::Mget, 5) },
                Received { index: Some(1), ..received(Opcode::Mget, Status::NotFound, 5) },
            ],
        },
        Case {
            name: "GAT with a new TTL of one minute",
            sent: bytes(&[Frame { ttl_millis: Some(60_000), ..keyed(Opcode::Gat, 6) }]),
            expect: vec![Expect::Request(
                b"key",
                touched(60_000, Get { purpose: Purpose::Touch, ..Get::default() }),
                found,
            )],
            received: vec![Received { value: b"value", ..ok(Opcode::Gat, 6) }],
        },
        plain("EXISTS", keyed(Opcode::Exists, 7), Operation::Get(UNUSED), found),
        Case {
            name: "TTL of an item with 1.5 s left",
            sent: bytes(&[keyed(Opcode::Ttl, 8)]),
            expect: vec![Expect::Request(
                b"key",
                Operation::Get(UNUSED),
                Response::Hit(Hit { deadline: in_millis(1500), ..hit(b"value") }),
            )],
            received: vec![Received { ttl_millis: Some(1500), ..ok(Opcode::Ttl, 8) }],
        },
    ]
}

fn stores() -> Vec<Case<'static>> {
    let store = |mode| {
        let refusal_removes = mode == StoreMode::Set;
        Operation::Store(Store { mode, refusal_removes, ..Store::set(b"value") })
    };
    let with_value = |opcode, opaque| Frame { value: b"value", ..keyed(opcode, opaque) };
    let compared = |flags, deadline| {
        Operation::Store(Store {
            flags,
            deadline,
            compare: Some(0x0102_0304_0506_0707),
            refusal_removes: false,
            ..Store::set(b"value")
        })
    };
    let mut many = Vec::new();
    let mut entries = EntryWriter::new(&Frame::new(Opcode::Mset, 16), &mut many);
    entries.set(&Frame { ttl_millis: Some(1500), ..Frame::set(b"key", b"value", 0) });
    entries.set(&Frame::set(b"other", b"", 0));
    entries.finish();
    let version = Some(0x0102_0304_0506_0707);
    vec![
        plain("SET", with_value(Opcode::Set, 10), store(StoreMode::Set), STORED),
        Case {
            name: "SET with every field and details",
            sent: bytes(&[Frame {
                flags: request_flags::DETAILS,
                client_flags: 7,
                ttl_millis: Some(1500),
                version,
                consistency: Consistency::Quorum,
                ..with_value(Opcode::Set, 11)
            }]),
            expect: vec![Expect::Request(b"key", compared(7, in_millis(1500)), STORED)],
            received: vec![Received {
                version: Some(0x0102_0304_0506_0708),
                ..received(Opcode::Set, Status::Ok, 11)
            }],
        },
        plain("ADD", with_value(Opcode::Add, 12), store(StoreMode::Add), STORED),
        Case {
            name: "REPLACE of a missing key",
            sent: bytes(&[with_value(Opcode::Replace, 13)]),
            expect: vec![Expect::Request(b"key", store(StoreMode::Replace), Response::NotStored)],
            received: vec![received(Opcode::Replace, Status::NotStored, 13)],
        },
        plain("APPEND", with_value(Opcode::Append, 14), store(StoreMode::Append), STORED),
        plain("PREPEND", with_value(Opcode::Prepend, 15), store(StoreMode::Prepend), STORED),
        Case {
            name: "MSET of two items, the first with a TTL",
            sent: many,
            expect: vec![
                Expect::Request(
                    b"key",
                    Operation::Store(Store { deadline: in_millis(1500), ..Store::set(b"value") }),
                    STORED,
                ),
                Expect::Request(b"other", Operation::Store(Store::set(b"")), STORED),
            ],
            received: vec![
                Received { more: true, index: Some(0), ..received(Opcode::Mset, Status::Ok, 16) },
                Received { index: Some(1), ..received(Opcode::Mset, Status::Ok, 16) },
            ],
        },
        Case {
            name: "CAS with a version that is no longer the item's",
            sent: bytes(&[Frame { version, ..with_value(Opcode::Cas, 17) }]),
            expect: vec![Expect::Request(b"key", compared(0, Deadline::NEVER), Response::Exists)],
            received: vec![received(Opcode::Cas, Status::Exists, 17)],
        },
    ]
}

fn changes() -> Vec<Case<'static>> {
    let touched = |millis, get| Operation::Get(Get { touch: Some(in_millis(millis)), ..get });
    let found = Response::Hit(hit(b"value"));
    let by_five = Arithmetic { create: Some((100, in_millis(60_000))), ..Arithmetic::by(5, false) };
    vec![
        plain(
            "DELETE",
            keyed(Opcode::Delete, 20),
            Operation::Delete(Delete::default()),
            Response::Deleted,
        ),
        Case {
            name: "INCR by 5, or create with 100 for a minute",
            sent: bytes(&[Frame {
                ttl_millis: Some(60_000),
                value: &[5, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0],
                ..keyed(Opcode::Incr, 21)
            }]),
            expect: vec![Expect::Request(b"key", Operation::Arithmetic(by_five), number(105))],
            received: vec![Received {
                value: &[105, 0, 0, 0, 0, 0, 0, 0],
                ..received(Opcode::Incr, Status::Ok, 21)
            }],
        },
        Case {
            name: "DECR by 1 of something that is no number",
            sent: bytes(&[keyed(Opcode::Decr, 22)]),
            expect: vec![Expect::Request(
                b"key",
                Operation::Arithmetic(Arithmetic::by(1, true)),
                Response::NonNumeric,
            )],
            received: vec![received(Opcode::Decr, Status::NonNumeric, 22)],
        },
        plain(
            "TOUCH",
            Frame { ttl_millis: Some(60_000), ..keyed(Opcode::Touch, 23) },
            touched(60_000, Get { purpose: Purpose::Touch, ..Get::default() }),
            found,
        ),
        plain(
            "EXPIRE",
            Frame { ttl_millis: Some(1), ..keyed(Opcode::Expire, 24) },
            touched(1, UNUSED),
            found,
        ),
        plain(
            "PERSIST",
            keyed(Opcode::Persist, 25),
            Operation::Get(Get { touch: Some(Deadline::NEVER), ..UNUSED }),
            found,
        ),
    ]
}

fn node_commands<'a>(list: &'a [u8], clustered_list: &'a [u8]) -> Vec<Case<'a>> {
    let ok = |opcode, opaque| received(opcode, Status::Ok, opaque);
    let flush_at = Instant::from_millis(NOW.as_millis() + 2000);
    vec![
        Case {
            name: "HELLO",
            sent: bytes(&[Frame::new(Opcode::Hello, 30)]),
            expect: vec![Expect::Node(AdminCommand::Hello, |reply, out| {
                let ReplyForm::Compact(form) = reply.form else { panic!("{reply:?}") };
                encode_topology(form, &topology(), out);
            })],
            received: vec![Received { value: list, ..ok(Opcode::Hello, 30) }],
        },
        Case {
            name: "HELLO to one of two nodes",
            sent: bytes(&[Frame::new(Opcode::Hello, 34)]),
            expect: vec![Expect::Node(AdminCommand::Hello, |reply, out| {
                let ReplyForm::Compact(form) = reply.form else { panic!("{reply:?}") };
                encode_topology(form, &clustered(), out);
            })],
            received: vec![Received { value: clustered_list, ..ok(Opcode::Hello, 34) }],
        },
        Case {
            name: "FLUSH in two seconds",
            sent: bytes(&[Frame { ttl_millis: Some(2000), ..Frame::new(Opcode::Flush, 31) }]),
            expect: vec![Expect::Node(AdminCommand::FlushAll { at: flush_at }, |reply, out| {
                encode_admin(reply, AdminAnswer::Done, out);
            })],
            received: vec![ok(Opcode::Flush, 31)],
        },
        Case {
            name: "STATS",
            sent: bytes(&[Frame::new(Opcode::Stats, 32)]),
            expect: vec![Expect::Node(AdminCommand::Stats { argument: b"" }, |reply, out| {
                encode_stat(reply, b"pid", b"42", out);
                encode_stats_end(reply, out);
            })],
            received: vec![
                Received { more: true, key: b"pid", value: b"42", ..ok(Opcode::Stats, 32) },
                ok(Opcode::Stats, 32),
            ],
        },
        Case {
            name: "GET without a key, which is a mistake",
            sent: bytes(&[Frame::new(Opcode::Get, 33)]),
            expect: vec![Expect::Answer],
            received: vec![Received {
                value: b"key length out of bounds for this opcode",
                ..received(Opcode::Get, Status::Invalid, 33)
            }],
        },
    ]
}

/// The document's examples: title, bytes sent, bytes answered.
fn examples() -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let mut examples = Vec::new();
    for block in DOCUMENT.split("```frames\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a fence that ends");
        let mut lines = block.lines();
        let title = lines.next().and_then(|line| line.strip_prefix("# ")).expect("a title");
        let (mut sent, mut answered) = (Vec::new(), Vec::new());
        let mut into = &mut sent;
        for line in lines {
            let (line, _comment) = line.split_once(';').unwrap_or((line, ""));
            let hex = match line.split_at_checked(2) {
                Some(("> ", hex)) => {
                    into = &mut sent;
                    hex
                }
                Some(("< ", hex)) => {
                    into = &mut answered;
                    hex
                }
                _ => line,
            };
            let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
            for pair in digits.chunks(2) {
                let pair = std::str::from_utf8(pair).expect("ASCII");
                into.push(u8::from_str_radix(pair, 16).unwrap_or_else(|_| panic!("{line}")));
            }
        }
        examples.push((title.to_string(), sent, answered));
    }
    examples
}

/// Feeds `sent` to the server's decoder and answers as `case` says.
fn serve(sent: &[u8], case: &Case<'_>) -> Vec<u8> {
    let (limits, scratch) = (Limits::default(), Bump::new());
    let context = Context {
        limits: &limits,
        now: NOW,
        hash_secret: &HashSecret::of_seed(1),
        scratch: &scratch,
    };
    let (mut decoder, mut at, mut out) = (Decoder::default(), 0, Vec::new());
    for expect in &case.expect {
        match (decoder.next(&sent[at..], &context), expect) {
            (Step::Request { consumed, request, reply, .. }, Expect::Request(key, as_, answer)) => {
                assert_eq!(request.key, *key, "{}", case.name);
                assert_eq!(format!("{:?}", request.operation), format!("{as_:?}"), "{}", case.name);
                at += consumed;
                encode(&reply, answer, NOW, &mut out);
            }
            (Step::Answer { consumed, answer, skip }, Expect::Answer) => {
                at += consumed + skip as usize;
                if let Answer::Bytes(bytes) = answer {
                    out.extend_from_slice(bytes);
                }
            }
            (Step::Admin { consumed, command, reply }, Expect::Node(expected, answer)) => {
                assert_eq!(command, *expected, "{}", case.name);
                at += consumed;
                answer(&reply, &mut out);
            }
            (step, _) => panic!("{}: {step:?}", case.name),
        }
    }
    assert_eq!(at, sent.len(), "{}: bytes left over", case.name);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x} ")).collect()
}

#[test]
fn golden_frames_are_what_client_and_server_write_and_read() {
    let list = topology().to_bytes();
    let clustered_list = clustered().to_bytes();
    let node_commands = node_commands(&list, &clustered_list);
    let cases = [reads(), stores(), changes(), node_commands].concat_all();
    let examples = examples();
    for case in &cases {
        let Some((_, sent, answered)) = examples.iter().find(|(title, ..)| title == case.name)
        else {
            panic!("no example '{}', which would be\n> {}", case.name, hex(&case.sent));
        };
        assert_eq!(hex(sent), hex(&case.sent), "client writes: {}", case.name);
        assert_eq!(hex(answered), hex(&serve(sent, case)), "server answers: {}", case.name);
        let (mut at, mut read) = (0, Vec::new());
        while let Some((response, length)) = Received::decode(&answered[at..]).expect("known codes")
        {
            at += length;
            read.push(response);
        }
        assert_eq!(at, answered.len(), "{}: bytes left over", case.name);
        assert_eq!(read, case.received, "client reads: {}", case.name);
    }
    for (title, ..) in &examples {
        assert!(cases.iter().any(|case| case.name == title), "nothing checks '{title}'");
    }
    for spec in OPCODES {
        let code = spec.opcode as u8;
        let shown = examples.iter().any(|(_, sent, _)| sent.first() == Some(&code));
        assert!(shown || spec.opcode == Opcode::Noop, "no golden frame for {}", spec.name);
    }
    assert_eq!(Topology::from_bytes(&list), Ok(topology()));
    assert_eq!(Topology::from_bytes(&clustered_list), Ok(clustered()));
}

/// Joins lists of cases.
trait ConcatAll<'a> {
    fn concat_all(self) -> Vec<Case<'a>>;
}

impl<'a, const N: usize> ConcatAll<'a> for [Vec<Case<'a>>; N] {
    fn concat_all(self) -> Vec<Case<'a>> {
        self.into_iter().flatten().collect()
    }
}

/// The row of a command in the document.
fn row(spec: &OpcodeSpec) -> String {
    let lengths = |min: u64, max: u64| match (min, max) {
        (_, 0) => "none".to_string(),
        (0, max) if max == u64::from(u32::MAX) => "any".to_string(),
        (1, max) if max == u64::from(u32::MAX) => "entries".to_string(),
        (min, max) => format!("{min} to {max}"),
    };
    let key = lengths(spec.key_bytes_min.into(), spec.key_bytes_max.into());
    let value = match spec.opcode {
        Opcode::Incr | Opcode::Decr => "none, 8 or 16".to_string(),
        _ => lengths(spec.value_bytes_min.into(), spec.value_bytes_max.into()),
    };
    let flags = [
        (request_flags::CLIENT_FLAGS, "CLIENT_FLAGS"),
        (request_flags::TTL, "TTL"),
        (request_flags::VERSION, "VERSION"),
        (request_flags::CONSISTENCY, "C"),
        (request_flags::DETAILS, "D"),
        (request_flags::ANY_ORDER, "A"),
        (request_flags::QUIET, "Q"),
    ];
    let names: Vec<String> = flags
        .iter()
        .filter(|(flag, _)| spec.flags_allowed & flag != 0)
        .map(|&(flag, name)| match spec.flags_needed & flag {
            0 => name.to_string(),
            _ => format!("**{name}**"),
        })
        .collect();
    let flags = if names.is_empty() { "none".to_string() } else { names.join(" ") };
    format!("| {} | {:#04x} | {key} | {value} | {flags} |", spec.name, spec.opcode as u8)
}

#[test]
fn the_document_has_the_tables_of_the_code() {
    for spec in OPCODES {
        assert!(DOCUMENT.contains(&row(spec)), "missing or different:\n{}", row(spec));
    }
    for (status, name) in STATUSES {
        let row = format!("| {:#04x} | {name} | ", *status as u8);
        assert!(DOCUMENT.contains(&row), "missing or different:\n{row}");
    }
    for (tag, name, content) in TAGS {
        let row = format!("| {tag} | {name} | {content} | ");
        assert!(DOCUMENT.contains(&row), "missing or different:\n{row}");
    }
    let reserved = format!("{:#04x} to {:#04x}", NODE_TO_NODE.start(), NODE_TO_NODE.end());
    assert!(DOCUMENT.contains(&reserved), "the document does not say {reserved}");
}
