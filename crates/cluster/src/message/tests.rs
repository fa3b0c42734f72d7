use proptest::prelude::*;

use super::super::roster_consensus;
use super::*;
use ringlane_types::hash::{HashSecret, KeyHash};
use ringlane_types::request::{Delete, Get, Operation, Request};

fn all() -> Vec<Message<'static>> {
    let operation = OperationId(77);
    let live = Live {
        deadline: Deadline::from_millis(5),
        flags: 6,
        marks: 7,
        value: Value::Whole(b"value"),
    };
    let full = Record { version: Version(9), content: Content::Live(live) };
    let plain = Record::live(Version(9), b"", Deadline::NEVER);
    let gone = Record::deleted(Version(9));
    let guard = Some(Version(1));
    let mut messages = vec![
        Message::Write { operation, stamp: 3, guard, key: b"k", record: full },
        Message::Write { operation, stamp: 3, guard: None, key: &[b'k'; 250], record: gone },
        Message::Read { operation, stamp: 3, known: Version(4), promise: Version(5), key: b"k" },
        Message::Fetch { operation, epoch: 5, key: b"k" },
        Message::Merge { ticket: 6, key: b"k", record: plain },
        Message::Merged { ticket: 6 },
        Message::Forward(Forward {
            operation,
            stamp: 3,
            consistency: Consistency::All,
            point: Point(10),
            after: Version(6),
            request: b"ask",
        }),
    ];
    for outcome in [
        WriteOutcome::Applied,
        WriteOutcome::Superseded(Version(8)),
        WriteOutcome::Conflict(Version(8)),
        WriteOutcome::NotReady,
        WriteOutcome::OtherView(8),
        WriteOutcome::TooLarge,
        WriteOutcome::NoMemory,
        WriteOutcome::ClockAhead,
    ] {
        messages.push(Message::WriteReply { operation, outcome });
    }
    for outcome in [
        ReadOutcome::Record(full),
        ReadOutcome::Record(plain),
        ReadOutcome::Record(gone),
        ReadOutcome::Same,
        ReadOutcome::Older(Version(8)),
        ReadOutcome::Promised(Version(9)),
        ReadOutcome::Nothing,
        ReadOutcome::NotReady,
        ReadOutcome::OtherView(8),
    ] {
        messages.push(Message::ReadReply { operation, outcome });
    }
    for outcome in [
        ForwardOutcome::Answered,
        ForwardOutcome::QuorumNotReached { needed: 2, reached: 1 },
        ForwardOutcome::Unknown,
        ForwardOutcome::NotBegun,
    ] {
        let (version, response) = (Version(3), &b"answer"[..]);
        messages.push(Message::ForwardReply { operation, outcome, version, response });
    }
    messages
}

fn all_of_nodes() -> Vec<NodeMessage<'static>> {
    vec![
        NodeMessage::Consensus(roster_consensus::ConsensusMessage::RequestChain { digest: 1 }),
        NodeMessage::Status { stamp: 1, epoch: 2, settled: 3, flushed: Version(4) },
        NodeMessage::Pull { epoch: 1, cursor: 2, bytes_max: 3 },
        NodeMessage::Pulled { epoch: 1, cursor: 2, next: Some(3), merges: b"m" },
        NodeMessage::Pulled { epoch: 1, cursor: 2, next: None, merges: b"" },
        NodeMessage::Compare {
            round: 1,
            stamp: 2,
            cutoff: Version(3),
            horizon: Version(4),
            segments: b"segments",
        },
        NodeMessage::Listing { round: 1, segments: b"s", complete: true, entries: b"e" },
        NodeMessage::Want { round: 1, keys: b"k" },
        NodeMessage::Compared { round: 1 },
        NodeMessage::Flush { version: Version(1) },
    ]
}

#[test]
fn every_message_survives_the_wire() {
    let mut body = Vec::new();
    all().iter().for_each(|message| message.write(&mut body));
    all_of_nodes().iter().for_each(|message| message.write(&mut body));
    let read: Vec<&[u8]> = Messages::new(&body).collect::<Result<_, _>>().unwrap();
    assert_eq!(read.len(), all().len() + all_of_nodes().len());
    for (bytes, written) in read.iter().zip(all()) {
        assert!(!NodeMessage::is_one(bytes));
        assert_eq!(format!("{:?}", Message::read(bytes).unwrap()), format!("{written:?}"));
    }
    for (bytes, written) in read[all().len()..].iter().zip(all_of_nodes()) {
        assert!(NodeMessage::is_one(bytes));
        assert_eq!(NodeMessage::read(bytes).unwrap(), written);
    }
}

#[test]
fn a_key_no_client_could_have_is_refused() {
    for key in [&b""[..], &[b'k'; 251]] {
        let message = Message::Read {
            operation: OperationId(1),
            stamp: 2,
            known: Version::NONE,
            promise: Version::NONE,
            key,
        };
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        assert!(Message::read(&bytes[4..]).is_err());
    }
}

#[test]
fn the_key_to_fetch_from_memory_is_that_of_the_message() {
    let get = Request {
        key: b"asked for",
        hash: KeyHash::of(b"asked for", &HashSecret::of_seed(1)),
        operation: Operation::Get(Get::default()),
    };
    let delete = Request { operation: Operation::Delete(Delete::default()), ..get };
    let forward = |request: &Request<'_>| {
        let mut bytes = vec![0; codec::encoded_request_bytes(request)];
        codec::encode_request(request, &mut bytes);
        let mut message = Vec::new();
        Message::Forward(Forward {
            operation: OperationId(1),
            stamp: 3,
            consistency: Consistency::All,
            point: Point(10),
            after: Version(6),
            request: &bytes,
        })
        .write(&mut message);
        message
    };
    for message in [forward(&get), forward(&delete)] {
        assert_eq!(Message::key_of(&message[4..]), Some(&b"asked for"[..]));
        assert_eq!(Message::key_of(&message[4..message.len() - 1]), None, "cut off");
    }
    let operation = OperationId(77);
    for message in all() {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        let expected = match message {
            Message::Write { key, .. }
            | Message::Read { key, .. }
            | Message::Fetch { key, .. }
            | Message::Merge { key, .. } => Some(key),
            _ => None,
        };
        assert_eq!(Message::key_of(&bytes[4..]), expected, "{message:?}");
        let answered = matches!(message, Message::ReadReply { .. }).then_some(operation);
        assert_eq!(Message::answered_read(&bytes[4..]), answered, "{message:?}");
    }
}

#[test]
fn a_body_cut_anywhere_yields_whole_messages_and_then_an_error() {
    let mut body = Vec::new();
    all().iter().for_each(|message| message.write(&mut body));
    for cut in 0..body.len() {
        let mut messages = Messages::new(&body[..cut]);
        let whole = messages.by_ref().take_while(|message| message.is_ok()).count();
        assert!(whole < all().len());
        assert!(messages.next().is_none(), "stops after an error");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_taken_without_panic(bytes: Vec<u8>) {
        let _ = Message::read(&bytes);
        let _ = (Message::key_of(&bytes), Message::answered_read(&bytes));
        let _ = NodeMessage::read(&bytes);
        Messages::new(&bytes).for_each(drop);
    }

    #[test]
    fn a_changed_message_is_taken_without_panic(index: prop::sample::Index, at: prop::sample::Index, byte: u8) {
        let mut bytes = Vec::new();
        index.get(&all()).write(&mut bytes);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = Message::read(&bytes[4..]);
    }
}
