//! memcached's meta commands, from the client's side: `mg`, `ms`, `md`, `ma`, `mn`.
//!
//! A multiget is a row of quiet gets that return their keys, ended by a no-op, as clients of this
//! protocol write it.

use super::{
    AnswerDecoder, AnswerOutcome, Asked, Decoded, Stage, Trouble, WireRequest, is_error_line,
    line_bytes, read_decimal, shrunk, unspoken, write_decimal,
};
use crate::workload::mix::WorkloadCommand;
use crate::workload::{Wanted, Workload};

/// Appends a request.
#[inline]
pub fn encode(workload: &Workload, request: &WireRequest<'_>, out: &mut Vec<u8>) {
    let Wanted { key, version } = request.keys[0];
    match request.command {
        WorkloadCommand::Get => {
            out.extend_from_slice(b"mg ");
            workload.keys.write(key, out);
            out.extend_from_slice(b" v\r\n");
        }
        WorkloadCommand::Multiget => {
            for wanted in request.keys {
                out.extend_from_slice(b"mg ");
                workload.keys.write(wanted.key, out);
                out.extend_from_slice(b" k q v\r\n");
            }
            out.extend_from_slice(b"mn\r\n");
        }
        WorkloadCommand::Set => {
            out.extend_from_slice(b"ms ");
            workload.keys.write(key, out);
            out.push(b' ');
            write_decimal(workload.values.value_bytes(key) as u64, out);
            if request.ttl_seconds > 0 {
                out.extend_from_slice(b" T");
                write_decimal(u64::from(request.ttl_seconds), out);
            }
            out.extend_from_slice(b"\r\n");
            workload.values.write(key, workload.stamp(version), out);
            out.extend_from_slice(b"\r\n");
        }
        WorkloadCommand::Delete => {
            out.extend_from_slice(b"md ");
            workload.keys.write(key, out);
            out.extend_from_slice(b"\r\n");
        }
        WorkloadCommand::Incr => {
            out.extend_from_slice(b"ma ");
            workload.keys.write_counter(key, out);
            out.extend_from_slice(b" v\r\n");
        }
        WorkloadCommand::Create => {
            out.extend_from_slice(b"ms ");
            workload.keys.write_counter(key, out);
            out.extend_from_slice(b" 1 MA\r\n0\r\n");
        }
    }
}

/// Reads an answer. See [`AnswerDecoder::next`].
#[inline]
pub fn decode(
    decoder: &mut AnswerDecoder,
    workload: &Workload,
    asked: &Asked<'_>,
    input: &[u8],
) -> Result<Decoded, Trouble> {
    match asked.command {
        WorkloadCommand::Get | WorkloadCommand::Multiget | WorkloadCommand::Incr => {
            values(decoder, workload, asked, input)
        }
        _ => line(decoder, asked, input),
    }
}

/// `VA <bytes> <flags>*`, the data; `EN` for a miss; `MN` at the end of a multiget.
#[inline]
fn values(
    decoder: &mut AnswerDecoder,
    workload: &Workload,
    asked: &Asked<'_>,
    input: &[u8],
) -> Result<Decoded, Trouble> {
    const WANTED: &str = "VA, EN or MN";
    let multiget = asked.command == WorkloadCommand::Multiget;
    let mut at = 0;
    loop {
        let rest = &input[at..];
        match decoder.stage {
            Stage::Line => {
                let Some(end) = line_bytes(rest, WANTED)? else {
                    return Ok(Decoded::More { consumed: at });
                };
                let line = &rest[..end];
                match line {
                    b"EN" if asked.command == WorkloadCommand::Get => {
                        return Ok(decoder.finish(at + 4));
                    }
                    b"NF" if asked.command == WorkloadCommand::Incr => {
                        return Ok(decoder.finish(at + 4));
                    }
                    b"MN" if multiget => return Ok(decoder.finish(at + 4)),
                    line if is_error_line(line) => {
                        let words = String::from_utf8_lossy(line).into_owned();
                        return Ok(decoder.done(at + end + 2, AnswerOutcome::Refused(words)));
                    }
                    _ => {}
                }
                let Some(tail) = line.strip_prefix(b"VA ") else {
                    return Err(unspoken(WANTED, rest));
                };
                let split = memchr::memchr(b' ', tail).unwrap_or(tail.len());
                let Some(value_bytes) = read_decimal(&tail[..split]) else {
                    return Err(unspoken("VA <bytes>", rest));
                };
                let (value_bytes, body) = (value_bytes as usize, &rest[end + 2..]);
                if asked.command == WorkloadCommand::Incr {
                    if body.len() < value_bytes + 2 {
                        return Ok(Decoded::More { consumed: at });
                    }
                    let Some(value) = read_decimal(&body[..value_bytes]) else {
                        return Err(unspoken("a number", body));
                    };
                    if !workload.counted(&asked.keys[0], value) {
                        return Err(shrunk(workload, &asked.keys[0], value));
                    }
                    return Ok(decoder.done(at + end + 2 + value_bytes + 2, AnswerOutcome::Hit(1)));
                }
                let position = decoder.position;
                let wanted = match tail[split..].strip_prefix(b" k") {
                    Some(key) => decoder.find_key(workload, asked, key)?,
                    None if multiget => return Err(unspoken("the key of the value", rest)),
                    None => {
                        decoder.position = 1;
                        asked.keys[0]
                    }
                };
                match decoder.begin_value(workload, &wanted, value_bytes, body)? {
                    Some(taken) => at += end + 2 + taken,
                    None => {
                        decoder.position = position;
                        return Ok(Decoded::More { consumed: at });
                    }
                }
            }
            Stage::Value => {
                if rest.is_empty() {
                    return Ok(Decoded::More { consumed: at });
                }
                let key = asked.keys[decoder.position - 1].key;
                at += decoder.proceed_value(workload, key, rest)?;
            }
            Stage::AfterValue => {
                if rest.len() < 2 {
                    return Ok(Decoded::More { consumed: at });
                }
                if !rest.starts_with(b"\r\n") {
                    return Err(unspoken("a line end after the value", rest));
                }
                at += 2;
                decoder.stage = Stage::Line;
                if !multiget {
                    return Ok(decoder.finish(at));
                }
            }
        }
    }
}

/// One line that says it all.
fn line(decoder: &mut AnswerDecoder, asked: &Asked<'_>, input: &[u8]) -> Result<Decoded, Trouble> {
    const WANTED: &str = "HD, NF or NS";
    let Some(end) = line_bytes(input, WANTED)? else {
        return Ok(Decoded::More { consumed: 0 });
    };
    let outcome = match (asked.command, &input[..end]) {
        (_, b"HD") => AnswerOutcome::Hit(1),
        (WorkloadCommand::Delete, b"NF") | (WorkloadCommand::Create, b"NS") => AnswerOutcome::Miss,
        (_, line) if is_error_line(line) => {
            AnswerOutcome::Refused(String::from_utf8_lossy(line).into_owned())
        }
        _ => return Err(unspoken(WANTED, input)),
    };
    Ok(decoder.done(end + 2, outcome))
}
