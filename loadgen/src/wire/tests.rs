//! The readers of all protocols against answers as servers write them, whole and in pieces.

use super::*;
use crate::workload::tests::workload;
use crate::workload::values::Stamp;

const TEXTUAL: [Protocol; 2] = [Protocol::Text, Protocol::Meta];
const PROTOCOLS: [Protocol; 3] = [Protocol::Text, Protocol::Meta, Protocol::Binary];

fn wanted(keys: &[u64]) -> Vec<Wanted> {
    keys.iter().map(|&key| Wanted { key, version: 0 }).collect()
}

fn value(workload: &Workload, key: u64) -> Vec<u8> {
    let mut value = Vec::new();
    workload.values.write(key, Stamp { writer: 1, version: 2 }, &mut value);
    value
}

/// What a server answers to a get or multiget of `asked` that finds `found`.
fn values_answer(protocol: Protocol, workload: &Workload, asked: &[u64], found: &[u64]) -> Vec<u8> {
    if protocol == Protocol::Binary {
        return binary_answer(workload, asked, found);
    }
    let multi = asked.len() > 1;
    let mut answer = Vec::new();
    for &key in found {
        let (name, value) = (workload.keys.name(key), value(workload, key));
        let head = match (protocol, multi) {
            (Protocol::Binary, _) => unreachable!("answered above"),
            (Protocol::Text, _) => format!("VALUE {name} 0 {}\r\n", value.len()),
            (Protocol::Meta, true) => format!("VA {} k{name}\r\n", value.len()),
            (Protocol::Meta, false) => format!("VA {}\r\n", value.len()),
        };
        answer.extend_from_slice(head.as_bytes());
        answer.extend_from_slice(&value);
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(match (protocol, multi, found) {
        (Protocol::Binary, ..) => unreachable!("answered above"),
        (Protocol::Text, ..) => b"END\r\n",
        (Protocol::Meta, true, _) => b"MN\r\n",
        (Protocol::Meta, false, []) => b"EN\r\n",
        (Protocol::Meta, false, _) => b"",
    });
    answer
}

/// Frames as `docs/protocol.md` draws them, for a quiet multiget or a plain get.
fn binary_answer(workload: &Workload, asked: &[u64], found: &[u64]) -> Vec<u8> {
    let multi = asked.len() > 1;
    let mut answer = Vec::new();
    let mut frame = |status: u8, index: usize, more: bool, value: &[u8]| {
        let flags = if multi { 0x08 } else { 0 } | if more { 0x10 } else { 0 };
        answer.extend_from_slice(&[if multi { 0x89 } else { 0x88 }, flags, status, 0]);
        answer.extend_from_slice(&(value.len() as u32).to_le_bytes());
        answer.extend_from_slice(&(asked[0] as u32).to_le_bytes());
        if multi {
            answer.extend_from_slice(&(index as u32).to_le_bytes());
        }
        answer.extend_from_slice(value);
    };
    let mut at = 0;
    for &key in found {
        // A key out of turn, for the tests of that, gets the entry it has.
        let after = asked[at..].iter().position(|&other| other == key).map(|place| at + place);
        let index = after.or(asked.iter().position(|&other| other == key)).unwrap_or(asked.len());
        frame(0, index, index + 1 < asked.len(), &value(workload, key));
        at = index + 1;
    }
    if at < asked.len() {
        frame(1, asked.len() - 1, false, &[]);
    }
    answer
}

/// Reads `answer` as it comes in pieces of at most `piece` bytes, with the next answer behind it.
fn read(
    protocol: Protocol,
    workload: &Workload,
    command: WorkloadCommand,
    keys: &[Wanted],
    answer: &[u8],
    piece: usize,
) -> Result<AnswerOutcome, Trouble> {
    let asked = Asked { command, keys };
    let mut decoder = AnswerDecoder::default();
    let mut kept = Vec::new();
    for bytes in answer.chunks(piece) {
        kept.extend_from_slice(bytes);
        match decoder.next(protocol, workload, &asked, &kept)? {
            Decoded::More { consumed } => _ = kept.drain(..consumed),
            Decoded::Done { consumed, outcome } => {
                assert_eq!(consumed, kept.len(), "the answer is used up");
                assert_eq!((decoder.hits, decoder.position), (0, 0), "ready for the next");
                return Ok(outcome);
            }
        }
    }
    panic!("the answer {:?} has no end", answer.escape_ascii().to_string());
}

fn read_all_ways(
    protocol: Protocol,
    workload: &Workload,
    command: WorkloadCommand,
    keys: &[Wanted],
    answer: &[u8],
) -> Result<AnswerOutcome, Trouble> {
    let whole = read(protocol, workload, command, keys, answer, answer.len());
    for piece in [1, 2, 3, 7, 16, 61, 100] {
        let pieces = read(protocol, workload, command, keys, answer, piece);
        match (&whole, &pieces) {
            (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces, "in pieces of {piece}"),
            (Err(_), Err(_)) => {}
            _ => panic!("whole {whole:?}, in pieces of {piece} {pieces:?}"),
        }
    }
    whole
}

#[test]
fn hits_and_misses_are_told_apart_in_all_pieces() {
    for sizes in ["32", "0", "5", "16", "4000"] {
        let mut workload = workload(1000);
        workload.values = crate::workload::values::Values::new(sizes.parse().unwrap());
        for protocol in PROTOCOLS {
            let answer = values_answer(protocol, &workload, &[7], &[7]);
            let outcome =
                read_all_ways(protocol, &workload, WorkloadCommand::Get, &wanted(&[7]), &answer);
            assert_eq!(outcome, Ok(AnswerOutcome::Hit(1)), "{protocol:?} {sizes}");
            let answer = values_answer(protocol, &workload, &[7], &[]);
            let outcome =
                read_all_ways(protocol, &workload, WorkloadCommand::Get, &wanted(&[7]), &answer);
            assert_eq!(outcome, Ok(AnswerOutcome::Miss));
        }
    }
}

#[test]
fn a_multiget_may_miss_any_of_its_keys_and_repeat_some() {
    let workload = workload(1000);
    let keys = wanted(&[3, 1, 4, 1, 5]);
    for protocol in PROTOCOLS {
        for found in [&[3, 1, 4, 1, 5][..], &[3, 5], &[1, 1], &[5], &[1], &[]] {
            let answer = values_answer(protocol, &workload, &[3, 1, 4, 1, 5], found);
            let outcome =
                read_all_ways(protocol, &workload, WorkloadCommand::Multiget, &keys, &answer);
            let due = match found.len() {
                0 => AnswerOutcome::Miss,
                hits => AnswerOutcome::Hit(hits as u32),
            };
            assert_eq!(outcome, Ok(due), "{protocol:?} {found:?}");
        }
    }
}

#[test]
fn a_value_out_of_turn_is_wrong() {
    let workload = workload(1000);
    let keys = wanted(&[3, 1, 4]);
    for protocol in PROTOCOLS {
        for found in [&[1, 3][..], &[9]] {
            let answer = values_answer(protocol, &workload, &[3, 1, 4], found);
            let outcome =
                read_all_ways(protocol, &workload, WorkloadCommand::Multiget, &keys, &answer);
            assert!(matches!(outcome, Err(Trouble::Wrong(_))), "{protocol:?} {outcome:?}");
        }
    }
}

#[test]
fn another_keys_value_is_wrong_and_both_are_shown() {
    let workload = workload(1000);
    for protocol in PROTOCOLS {
        let answer = values_answer(protocol, &workload, &[7], &[7]);
        let (right, other) = (value(&workload, 7), value(&workload, 8));
        let at = answer.windows(32).position(|bytes| bytes == right).unwrap();
        let mut answer = answer.clone();
        answer[at..at + 32].copy_from_slice(&other);
        let keys = wanted(&[7]);
        let outcome = read_all_ways(protocol, &workload, WorkloadCommand::Get, &keys, &answer);
        let Err(Trouble::Wrong(wrong)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(wrong.key, "key:000000000007");
        assert_eq!(wrong.what, "the value of key number 8");
        assert_ne!(wrong.expected, wrong.received);
    }
}

#[test]
fn a_stale_value_is_wrong_only_if_it_was_overwritten_before_the_read() {
    let mut workload = workload(10);
    workload.versions = Some(std::sync::Arc::new(crate::workload::versions::Versions::new(10, 0)));
    let get = |workload: &Workload, wanted: Wanted, stamp: Stamp| {
        let mut answer = b"VALUE key:000000000003 0 32\r\n".to_vec();
        workload.values.write(3, stamp, &mut answer);
        answer.extend_from_slice(b"\r\nEND\r\n");
        read_all_ways(Protocol::Text, workload, WorkloadCommand::Get, &[wanted], &answer)
    };
    let foreign = Stamp { writer: 1234, version: 1 };
    let early = workload.wanted(WorkloadCommand::Get, 3);
    assert!(get(&workload, early, foreign).is_ok(), "nothing was written yet");
    for version in 1..=2 {
        assert_eq!(workload.wanted(WorkloadCommand::Set, 3), Wanted { key: 3, version });
        workload.written(3);
    }
    let late = workload.wanted(WorkloadCommand::Get, 3);
    assert!(get(&workload, early, workload.stamp(1)).is_ok(), "overwritten after it was asked");
    assert!(get(&workload, late, workload.stamp(2)).is_ok());
    let wrong = |outcome| match outcome {
        Err(Trouble::Wrong(wrong)) => wrong.what,
        other => panic!("{other:?}"),
    };
    assert!(wrong(get(&workload, late, workload.stamp(1))).contains("stale: version 1"));
    assert!(wrong(get(&workload, late, foreign)).contains("stale: from before this run"));
    assert!(wrong(get(&workload, late, workload.stamp(3))).contains("never written"));
}

#[test]
fn one_line_answers_are_read() {
    use WorkloadCommand::{Create, Delete, Incr, Set};
    let workload = workload(1000);
    let hit = AnswerOutcome::Hit(1);
    for (protocol, command, answer, outcome) in [
        (Protocol::Text, Set, "STORED\r\n", &hit),
        (Protocol::Text, Create, "STORED\r\n", &hit),
        (Protocol::Text, Create, "NOT_STORED\r\n", &AnswerOutcome::Miss),
        (Protocol::Text, Delete, "DELETED\r\n", &hit),
        (Protocol::Text, Delete, "NOT_FOUND\r\n", &AnswerOutcome::Miss),
        (Protocol::Text, Incr, "17\r\n", &hit),
        (Protocol::Text, Incr, "NOT_FOUND\r\n", &AnswerOutcome::Miss),
        (Protocol::Meta, Set, "HD\r\n", &hit),
        (Protocol::Meta, Create, "NS\r\n", &AnswerOutcome::Miss),
        (Protocol::Meta, Delete, "HD\r\n", &hit),
        (Protocol::Meta, Delete, "NF\r\n", &AnswerOutcome::Miss),
        (Protocol::Meta, Incr, "VA 2\r\n17\r\n", &hit),
        (Protocol::Meta, Incr, "NF\r\n", &AnswerOutcome::Miss),
    ] {
        let read = read_all_ways(protocol, &workload, command, &wanted(&[1]), answer.as_bytes());
        assert_eq!(read.as_ref(), Ok(outcome), "{protocol:?} {command:?} {answer:?}");
    }
}

#[test]
fn error_lines_are_answers() {
    let workload = workload(1000);
    for protocol in TEXTUAL {
        for command in WorkloadCommand::ALL {
            for line in ["ERROR", "SERVER_ERROR out of memory storing object", "CLIENT_ERROR x"] {
                let answer = format!("{line}\r\n");
                let keys = wanted(&[1, 2]);
                let read = read_all_ways(protocol, &workload, command, &keys, answer.as_bytes());
                assert_eq!(
                    read,
                    Ok(AnswerOutcome::Refused(line.into())),
                    "{protocol:?} {command:?}"
                );
            }
        }
    }
}

#[test]
fn what_is_not_the_protocol_is_said_to_be() {
    let workload = workload(1000);
    for protocol in PROTOCOLS {
        for command in WorkloadCommand::ALL {
            for answer in ["SSH-2.0-OpenSSH\r\n", "+OK\r\n", "HTTP/1.1 400 Bad Request\r\n", "x\n"]
            {
                let keys = wanted(&[1, 2]);
                let read = read_all_ways(protocol, &workload, command, &keys, answer.as_bytes());
                let Err(Trouble::Unspoken { received, .. }) = read else {
                    panic!("{protocol:?} {command:?} {answer:?}: {read:?}")
                };
                assert!(received.starts_with(&answer[..1]));
            }
        }
    }
}

#[test]
fn an_endless_line_is_not_waited_for() {
    let workload = workload(1000);
    for protocol in TEXTUAL {
        let asked = Asked { command: WorkloadCommand::Get, keys: &wanted(&[1]) };
        let read = AnswerDecoder::default().next(protocol, &workload, &asked, &[b'V'; 4096]);
        assert!(matches!(read, Err(Trouble::Unspoken { .. })), "{read:?}");
    }
}

#[test]
fn binary_answers_are_read_by_status() {
    let workload = workload(1000);
    let answer = |opcode: u8, status: u8, value: &[u8]| {
        let mut answer = vec![opcode, 0, status, 0, value.len() as u8, 0, 0, 0, 5, 0, 0, 0];
        answer.extend_from_slice(value);
        answer
    };
    use WorkloadCommand::{Create, Delete, Get, Incr, Multiget, Set};
    let refused = |words: &str| AnswerOutcome::Refused(words.into());
    for (command, answer, outcome) in [
        (Set, answer(0x90, 0, b""), AnswerOutcome::Hit(1)),
        (Delete, answer(0x98, 0, b""), AnswerOutcome::Hit(1)),
        (Delete, answer(0x98, 1, b""), AnswerOutcome::Miss),
        (Incr, answer(0x99, 0, &17u64.to_le_bytes()), AnswerOutcome::Hit(1)),
        (Incr, answer(0x99, 1, b""), AnswerOutcome::Miss),
        (Create, answer(0x92, 0, b""), AnswerOutcome::Hit(1)),
        (Create, answer(0x92, 3, b""), AnswerOutcome::Miss),
        (Set, answer(0x90, 6, b""), refused("OutOfMemory")),
        (Get, answer(0x88, 0x51, b"nobody there"), refused("Unavailable nobody there")),
        (Multiget, answer(0x89, 0x41, b"bad"), refused("Invalid bad")),
    ] {
        let keys = wanted(&[5]);
        let read = read_all_ways(Protocol::Binary, &workload, command, &keys, &answer);
        assert_eq!(read, Ok(outcome), "{command:?}");
    }
    let other = read_all_ways(
        Protocol::Binary,
        &workload,
        Get,
        &wanted(&[6]),
        &binary_answer(&workload, &[5], &[5]),
    );
    let Err(Trouble::Wrong(wrong)) = other else { panic!("{other:?}") };
    assert!(wrong.what.contains("another request"), "{}", wrong.what);
}

#[test]
fn binary_requests_are_frames_of_the_specification() {
    let workload = workload(1000);
    let bytes = |command, keys: &[u64], ttl_seconds| {
        let mut out = Vec::new();
        let keys = &wanted(keys);
        encode(Protocol::Binary, &workload, &WireRequest { command, keys, ttl_seconds }, &mut out);
        out
    };
    let get = bytes(WorkloadCommand::Get, &[3], 0);
    assert_eq!(get[..12], [0x88, 0, 16, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(&get[12..], b"key:000000000003");
    let set = bytes(WorkloadCommand::Set, &[3], 2);
    assert_eq!(set[..12], [0x90, 2, 16, 0, 32, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(set[12..20], 2000u64.to_le_bytes());
    assert_eq!(set.len(), 12 + 8 + 16 + 32);
    let multiget = bytes(WorkloadCommand::Multiget, &[3, 4], 0);
    assert_eq!(multiget[..12], [0x89, 0x80, 0, 0, 36, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(multiget[12..14], [16, 0]);
    let create = bytes(WorkloadCommand::Create, &[3], 0);
    assert_eq!(create[..12], [0x92, 0, 16, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(&create[12..], b"key:n000000000030");
}

#[test]
fn increments_must_grow_their_counter() {
    let mut workload = workload(10);
    workload.versions = Some(std::sync::Arc::new(crate::workload::versions::Versions::new(10, 10)));
    let incr = |wanted: Wanted, answer: &[u8]| {
        read(Protocol::Text, &workload, WorkloadCommand::Incr, &[wanted], answer, 100)
    };
    let first = workload.wanted(WorkloadCommand::Incr, 3);
    assert!(incr(first, b"5\r\n").is_ok());
    let second = workload.wanted(WorkloadCommand::Incr, 3);
    let Err(Trouble::Wrong(wrong)) = incr(second, b"5\r\n") else { panic!("5 twice") };
    assert_eq!((&*wrong.key, &*wrong.received), ("key:n00000000003", "5"));
    assert!(incr(second, b"6\r\n").is_ok());
}

#[test]
fn requests_are_written_as_servers_read_them() {
    let workload = workload(1000);
    let text = |protocol, command, keys: &[u64]| {
        let mut out = Vec::new();
        let keys = &wanted(keys);
        encode(protocol, &workload, &WireRequest { command, keys, ttl_seconds: 9 }, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    };
    use WorkloadCommand::{Create, Delete, Get, Incr, Multiget, Set};
    assert_eq!(text(Protocol::Text, Get, &[1]), "get key:000000000001\r\n");
    assert_eq!(
        text(Protocol::Text, Multiget, &[1, 2]),
        "get key:000000000001 key:000000000002\r\n"
    );
    assert_eq!(text(Protocol::Text, Delete, &[1]), "delete key:000000000001\r\n");
    assert_eq!(text(Protocol::Text, Incr, &[1]), "incr key:n00000000001 1\r\n");
    assert_eq!(text(Protocol::Text, Create, &[1]), "add key:n00000000001 0 0 1\r\n0\r\n");
    assert!(text(Protocol::Text, Set, &[1]).starts_with("set key:000000000001 0 9 32\r\n"));
    assert_eq!(text(Protocol::Meta, Get, &[1]), "mg key:000000000001 v\r\n");
    assert_eq!(
        text(Protocol::Meta, Multiget, &[1, 2]),
        "mg key:000000000001 k q v\r\nmg key:000000000002 k q v\r\nmn\r\n"
    );
    assert_eq!(text(Protocol::Meta, Delete, &[1]), "md key:000000000001\r\n");
    assert_eq!(text(Protocol::Meta, Incr, &[1]), "ma key:n00000000001 v\r\n");
    assert_eq!(text(Protocol::Meta, Create, &[1]), "ms key:n00000000001 1 MA\r\n0\r\n");
    assert!(text(Protocol::Meta, Set, &[1]).starts_with("ms key:000000000001 32 T9\r\n"));
}
