//! Requests and answers in each of the server's protocols, in one vocabulary.

use ringlane::protocol::compact::client::{Frame, ResponseFrame};
use ringlane::protocol::compact::opcode::request_flags::DETAILS;
use ringlane::protocol::compact::{Opcode, Status};

use crate::model::{Kind, Outcome, Piece, Request, Value, flags_of};
use crate::pipe::Pipe;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Text,
    Meta,
    Classic,
    Compact,
}

pub const PROTOCOLS: [Protocol; 4] =
    [Protocol::Text, Protocol::Meta, Protocol::Classic, Protocol::Compact];

/// What a storing request carries: flags, TTL and the value.
struct Load {
    flags: u32,
    ttl: u32,
    value: Vec<u8>,
}

fn load(key: u32, kind: Kind) -> Option<Load> {
    let of = |piece: Piece, ttl| {
        let value = Value::Pieces(vec![piece]).bytes(key);
        Some(Load { flags: flags_of(piece.version), ttl, value })
    };
    match kind {
        Kind::Set(piece, ttl) | Kind::Add(piece, ttl) | Kind::Replace(piece, ttl) => of(piece, ttl),
        Kind::Cas(_, piece, ttl) => of(piece, ttl),
        Kind::Append(piece) | Kind::Prepend(piece) => of(piece, 0),
        Kind::SetNumber(number, ttl) => {
            Some(Load { flags: 0, ttl, value: number.to_string().into_bytes() })
        }
        _ => None,
    }
}

impl Protocol {
    /// Appends the request for `name`, whose values are made from `key`.
    pub fn encode(self, key: u32, name: &str, request: Request, out: &mut Vec<u8>) {
        match self {
            Protocol::Text => text(key, name, request, out),
            Protocol::Meta => meta(key, name, request.kind, out),
            Protocol::Classic => classic(key, name, request.kind, out),
            Protocol::Compact => compact(key, name, request.kind, out),
        }
    }

    /// Reads the answer to a request of this kind.
    pub fn decode(self, pipe: &mut Pipe, name: &str, kind: Kind) -> Outcome {
        match self {
            Protocol::Text => text_answer(pipe, name, kind),
            Protocol::Meta => meta_answer(pipe, kind),
            Protocol::Classic => classic_answer(pipe, kind),
            Protocol::Compact => compact_answer(pipe, kind),
        }
    }

    /// Forgets everything.
    pub fn flush(self, pipe: &mut Pipe) {
        match self {
            Protocol::Text | Protocol::Meta => {
                pipe.queue(b"flush_all\r\n");
                assert_eq!(pipe.line(), "OK");
            }
            Protocol::Classic => {
                let mut frame = Vec::new();
                classic_frame(0x08, b"", &[], b"", 0, &mut frame);
                pipe.queue(&frame);
                assert_eq!(pipe.take(24)[6..8], [0, 0], "a flush is carried out");
            }
            Protocol::Compact => {
                let mut frame = Vec::new();
                Frame::new(Opcode::Flush, 9).encode(&mut frame);
                pipe.queue(&frame);
                let (status, ..) = compact_response(pipe);
                assert_eq!(status, Status::Ok);
            }
        }
    }
}

/// Whether this protocol's requests may be quiet here.
pub fn may_be_quiet(protocol: Protocol, kind: Kind) -> bool {
    let writes = !matches!(kind, Kind::Get | Kind::Gets | Kind::GetAndTouch(_));
    protocol == Protocol::Text && writes
}

fn text(key: u32, name: &str, request: Request, out: &mut Vec<u8>) {
    let noreply = if request.quiet { " noreply" } else { "" };
    let line = match request.kind {
        Kind::Get => format!("get {name}"),
        Kind::Gets => format!("gets {name}"),
        Kind::GetAndTouch(ttl) => format!("gat {ttl} {name}"),
        Kind::Increment(by) => format!("incr {name} {by}{noreply}"),
        Kind::Decrement(by) => format!("decr {name} {by}{noreply}"),
        Kind::Touch(ttl) => format!("touch {name} {ttl}{noreply}"),
        Kind::Delete => format!("delete {name}{noreply}"),
        storing => {
            let Load { flags, ttl, value } = load(key, storing).expect("the others store");
            let (verb, token) = match storing {
                Kind::Add(..) => ("add", String::new()),
                Kind::Replace(..) => ("replace", String::new()),
                Kind::Append(_) => ("append", String::new()),
                Kind::Prepend(_) => ("prepend", String::new()),
                Kind::Cas(token, ..) => ("cas", format!(" {token}")),
                _ => ("set", String::new()),
            };
            let head = format!("{verb} {name} {flags} {ttl} {}{token}{noreply}\r\n", value.len());
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(&value);
            String::new()
        }
    };
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The answers of the text protocol that are one word.
fn word(line: &str) -> Outcome {
    match line {
        "STORED" => Outcome::Stored,
        "NOT_STORED" | "SERVER_ERROR object too large for cache" => Outcome::NotStored,
        "EXISTS" => Outcome::Exists,
        "NOT_FOUND" => Outcome::NotFound,
        "DELETED" | "TOUCHED" => Outcome::Done,
        "END" => Outcome::Missed,
        number if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            Outcome::Number(number.parse().unwrap_or(u64::MAX))
        }
        other => Outcome::Refused(other.to_owned()),
    }
}

fn text_answer(pipe: &mut Pipe, name: &str, kind: Kind) -> Outcome {
    let line = pipe.line();
    if !matches!(kind, Kind::Get | Kind::Gets | Kind::GetAndTouch(_)) {
        return word(&line);
    }
    let words: Vec<&str> = line.split(' ').collect();
    let ["VALUE", key, flags, bytes, token @ ..] = &words[..] else { return word(&line) };
    let value = pipe.take(bytes.parse().expect("a length"));
    let end = (pipe.line(), pipe.line());
    if end != (String::new(), "END".to_owned()) || *key != name {
        return Outcome::Refused(format!("{line}, then {end:?}"));
    }
    let token = token.first().map(|token| token.parse().expect("a token"));
    Outcome::Found { flags: flags.parse().expect("flags"), token, value }
}

fn meta(key: u32, name: &str, kind: Kind, out: &mut Vec<u8>) {
    let line = match kind {
        Kind::Get => format!("mg {name} f v"),
        Kind::Gets => format!("mg {name} f c v"),
        Kind::GetAndTouch(ttl) => format!("mg {name} f v T{ttl}"),
        Kind::Increment(by) => format!("ma {name} D{by} v"),
        Kind::Decrement(by) => format!("ma {name} MD D{by} v"),
        Kind::Touch(ttl) => format!("mg {name} T{ttl}"),
        Kind::Delete => format!("md {name}"),
        storing => {
            let Load { flags, ttl, value } = load(key, storing).expect("the others store");
            let mode = match storing {
                Kind::Add(..) => " ME",
                Kind::Replace(..) => " MR",
                Kind::Append(_) => " MA",
                Kind::Prepend(_) => " MP",
                Kind::Cas(token, ..) => &format!(" C{token}"),
                _ => "",
            };
            let grows = matches!(storing, Kind::Append(_) | Kind::Prepend(_));
            let fields = if grows { String::new() } else { format!(" F{flags} T{ttl}") };
            let head = format!("ms {name} {}{fields}{mode}\r\n", value.len());
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(&value);
            String::new()
        }
    };
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn meta_answer(pipe: &mut Pipe, kind: Kind) -> Outcome {
    let line = pipe.line();
    let mut words = line.split(' ');
    let reads = matches!(kind, Kind::Get | Kind::Gets | Kind::GetAndTouch(_));
    match (words.next().unwrap_or_default(), kind) {
        ("VA", _) => {
            let value = pipe.take(words.next().and_then(|n| n.parse().ok()).expect("a length"));
            let end = pipe.line();
            if !end.is_empty() {
                return Outcome::Refused(format!("{line}, then {end}"));
            }
            if !reads {
                return word(&String::from_utf8_lossy(&value));
            }
            let figure = |letter: char| {
                let mut words = line.split(' ').skip(2);
                words.find_map(|word| word.strip_prefix(letter)).map(|n| n.parse::<u64>())
            };
            let flags = figure('f').and_then(Result::ok).expect("flags were asked for") as u32;
            let token = figure('c').map(|token| token.expect("a token"));
            Outcome::Found { flags, token, value }
        }
        ("HD", Kind::Touch(_) | Kind::Delete) => Outcome::Done,
        ("HD", _) => Outcome::Stored,
        ("NS", _) => Outcome::NotStored,
        ("SERVER_ERROR", _) => word(&line),
        ("EX", _) => Outcome::Exists,
        ("EN", Kind::Touch(_)) => Outcome::NotFound,
        ("EN", _) => Outcome::Missed,
        ("NF", _) => Outcome::NotFound,
        _ => Outcome::Refused(line),
    }
}

/// One frame of memcached's binary protocol.
pub fn classic_frame(
    opcode: u8,
    key: &[u8],
    extras: &[u8],
    value: &[u8],
    token: u64,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&[0x80, opcode]);
    out.extend_from_slice(&(key.len() as u16).to_be_bytes());
    out.extend_from_slice(&[extras.len() as u8, 0, 0, 0]);
    out.extend_from_slice(&((extras.len() + key.len() + value.len()) as u32).to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&token.to_be_bytes());
    [extras, key, value].iter().for_each(|part| out.extend_from_slice(part));
}

fn classic(key: u32, name: &str, kind: Kind, out: &mut Vec<u8>) {
    let name = name.as_bytes();
    let amount = |by: u32| {
        // The deadline that means: do not create it.
        [&u64::from(by).to_be_bytes()[..], &[0; 8], &[0xff; 4]].concat()
    };
    match kind {
        Kind::Get | Kind::Gets => classic_frame(0x00, name, &[], b"", 0, out),
        Kind::GetAndTouch(ttl) => classic_frame(0x1d, name, &ttl.to_be_bytes(), b"", 0, out),
        Kind::Touch(ttl) => classic_frame(0x1c, name, &ttl.to_be_bytes(), b"", 0, out),
        Kind::Delete => classic_frame(0x04, name, &[], b"", 0, out),
        Kind::Increment(by) => classic_frame(0x05, name, &amount(by), b"", 0, out),
        Kind::Decrement(by) => classic_frame(0x06, name, &amount(by), b"", 0, out),
        storing => {
            let Load { flags, ttl, value } = load(key, storing).expect("the others store");
            let extras = [flags.to_be_bytes(), ttl.to_be_bytes()].concat();
            let (opcode, extras, token) = match storing {
                Kind::Add(..) => (0x02, &extras[..], 0),
                Kind::Replace(..) => (0x03, &extras[..], 0),
                Kind::Append(_) => (0x0e, &[][..], 0),
                Kind::Prepend(_) => (0x0f, &[][..], 0),
                Kind::Cas(token, ..) => (0x01, &extras[..], token),
                _ => (0x01, &extras[..], 0),
            };
            classic_frame(opcode, name, extras, &value, token, out);
        }
    }
}

fn classic_answer(pipe: &mut Pipe, kind: Kind) -> Outcome {
    let header = pipe.take(24);
    let number = |from: usize, bytes: usize| {
        header[from..from + bytes].iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))
    };
    let (key, extras, status) = (number(2, 2) as usize, header[4] as usize, number(6, 2));
    let body = pipe.take(number(8, 4) as usize);
    if header[0] != 0x81 || body.len() < key + extras {
        return Outcome::Refused(format!("no answer: {header:?}"));
    }
    let reads = matches!(kind, Kind::Get | Kind::Gets | Kind::GetAndTouch(_));
    match (status, kind) {
        (0, _) if reads => {
            let flags = u32::from_be_bytes(body[..4].try_into().expect("flags"));
            Outcome::Found { flags, token: Some(number(16, 8)), value: body[extras + key..].into() }
        }
        (0, Kind::Increment(_) | Kind::Decrement(_)) => {
            Outcome::Number(u64::from_be_bytes(body[..].try_into().expect("a number")))
        }
        (0, Kind::Touch(_) | Kind::Delete) => Outcome::Done,
        (0, _) => Outcome::Stored,
        (1, _) if reads => Outcome::Missed,
        (1..=3 | 5, Kind::Add(..) | Kind::Replace(..) | Kind::Append(_) | Kind::Prepend(_)) => {
            Outcome::NotStored
        }
        (1, _) => Outcome::NotFound,
        (2, _) => Outcome::Exists,
        _ => Outcome::Refused(format!("status {status}: {}", String::from_utf8_lossy(&body))),
    }
}

fn compact(key: u32, name: &str, kind: Kind, out: &mut Vec<u8>) {
    let millis = |ttl: u32| Some(u64::from(ttl) * 1000);
    let frame = |opcode| Frame { key: name.as_bytes(), ..Frame::new(opcode, key) };
    let amount;
    match kind {
        Kind::Get => frame(Opcode::Get).encode(out),
        Kind::Gets => Frame { flags: DETAILS, ..frame(Opcode::Get) }.encode(out),
        Kind::GetAndTouch(ttl) => {
            Frame { ttl_millis: millis(ttl), ..frame(Opcode::Gat) }.encode(out);
        }
        Kind::Touch(ttl) => Frame { ttl_millis: millis(ttl), ..frame(Opcode::Touch) }.encode(out),
        Kind::Delete => frame(Opcode::Delete).encode(out),
        Kind::Increment(by) => {
            amount = u64::from(by).to_le_bytes();
            Frame { value: &amount, ..frame(Opcode::Incr) }.encode(out);
        }
        Kind::Decrement(by) => {
            amount = u64::from(by).to_le_bytes();
            Frame { value: &amount, ..frame(Opcode::Decr) }.encode(out);
        }
        storing => {
            let Load { flags, ttl, value } = load(key, storing).expect("the others store");
            let ttl_millis = (ttl > 0).then(|| u64::from(ttl) * 1000);
            let whole =
                |opcode| Frame { client_flags: flags, ttl_millis, value: &value, ..frame(opcode) };
            match storing {
                Kind::Add(..) => whole(Opcode::Add).encode(out),
                Kind::Replace(..) => whole(Opcode::Replace).encode(out),
                Kind::Append(_) => Frame { value: &value, ..frame(Opcode::Append) }.encode(out),
                Kind::Prepend(_) => Frame { value: &value, ..frame(Opcode::Prepend) }.encode(out),
                Kind::Cas(token, ..) => {
                    Frame { version: Some(token), ..whole(Opcode::Cas) }.encode(out);
                }
                _ => whole(Opcode::Set).encode(out),
            }
        }
    }
}

/// The next whole response: status, flags, version, value and its opaque.
fn compact_response(pipe: &mut Pipe) -> (Status, u32, Option<u64>, Vec<u8>, u32) {
    loop {
        let decoded = ResponseFrame::decode(pipe.arrived()).expect("known codes");
        if let Some((response, length)) = decoded {
            let ResponseFrame { status, client_flags, version, opaque, .. } = response;
            let value = response.value.to_vec();
            pipe.consume(length);
            return (status, client_flags, version, value, opaque);
        }
        pipe.await_more();
    }
}

fn compact_answer(pipe: &mut Pipe, kind: Kind) -> Outcome {
    let (status, flags, token, value, _) = compact_response(pipe);
    let reads = matches!(kind, Kind::Get | Kind::Gets | Kind::GetAndTouch(_));
    let counts = matches!(kind, Kind::Increment(_) | Kind::Decrement(_));
    match status {
        Status::Ok if reads => Outcome::Found { flags, token, value },
        Status::Ok if counts => {
            Outcome::Number(u64::from_le_bytes(value[..].try_into().expect("a number")))
        }
        Status::Ok if matches!(kind, Kind::Touch(_) | Kind::Delete) => Outcome::Done,
        Status::Ok => Outcome::Stored,
        Status::NotFound if reads => Outcome::Missed,
        Status::NotFound => Outcome::NotFound,
        Status::Exists => Outcome::Exists,
        Status::NotStored | Status::TooLarge => Outcome::NotStored,
        other => Outcome::Refused(format!("{other:?}: {}", String::from_utf8_lossy(&value))),
    }
}
