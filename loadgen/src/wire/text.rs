//! memcached's classic text commands, from the client's side.

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
            out.extend_from_slice(b"get ");
            workload.keys.write(key, out);
        }
        WorkloadCommand::Multiget => {
            out.extend_from_slice(b"get");
            for wanted in request.keys {
                out.push(b' ');
                workload.keys.write(wanted.key, out);
            }
        }
        WorkloadCommand::Set => {
            out.extend_from_slice(b"set ");
            workload.keys.write(key, out);
            out.extend_from_slice(b" 0 ");
            write_decimal(u64::from(request.ttl_seconds), out);
            out.push(b' ');
            write_decimal(workload.values.value_bytes(key) as u64, out);
            out.extend_from_slice(b"\r\n");
            workload.values.write(key, workload.stamp(version), out);
        }
        WorkloadCommand::Delete => {
            out.extend_from_slice(b"delete ");
            workload.keys.write(key, out);
        }
        WorkloadCommand::Incr => {
            out.extend_from_slice(b"incr ");
            workload.keys.write_counter(key, out);
            out.extend_from_slice(b" 1");
        }
        WorkloadCommand::Create => {
            out.extend_from_slice(b"add ");
            workload.keys.write_counter(key, out);
            out.extend_from_slice(b" 0 0 1\r\n0");
        }
    }
    out.extend_from_slice(b"\r\n");
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
        WorkloadCommand::Get | WorkloadCommand::Multiget => values(decoder, workload, asked, input),
        _ => line(decoder, workload, asked, input),
    }
}

/// `VALUE <key> <flags> <bytes>`, the data, and so on until `END`.
#[inline]
fn values(
    decoder: &mut AnswerDecoder,
    workload: &Workload,
    asked: &Asked<'_>,
    input: &[u8],
) -> Result<Decoded, Trouble> {
    const WANTED: &str = "VALUE or END";
    let mut at = 0;
    loop {
        let rest = &input[at..];
        match decoder.stage {
            Stage::Line if rest.starts_with(b"VALUE ") => {
                // The key has a known length, so the line's end is looked for behind it.
                let key_end = 6 + workload.keys.key_bytes();
                let Some(tail) = rest.get(key_end..) else {
                    return match memchr::memchr(b'\n', rest) {
                        Some(_) => Err(unspoken("a key of the requested length", rest)),
                        None => Ok(Decoded::More { consumed: at }),
                    };
                };
                let Some(tail_bytes) = line_bytes(tail, WANTED)? else {
                    return Ok(Decoded::More { consumed: at });
                };
                let Some(value_bytes) = value_length(&tail[..tail_bytes]) else {
                    return Err(unspoken("VALUE <key> <flags> <bytes>", rest));
                };
                let position = decoder.position;
                let wanted = decoder.find_key(workload, asked, &rest[6..key_end])?;
                let header = key_end + tail_bytes + 2;
                match decoder.begin_value(workload, &wanted, value_bytes, &rest[header..])? {
                    Some(taken) => at += header + taken,
                    None => {
                        decoder.position = position;
                        return Ok(Decoded::More { consumed: at });
                    }
                }
            }
            Stage::Line if rest.starts_with(b"END\r\n") => return Ok(decoder.finish(at + 5)),
            Stage::Line => {
                let Some(end) = line_bytes(rest, WANTED)? else {
                    return Ok(Decoded::More { consumed: at });
                };
                if !is_error_line(&rest[..end]) {
                    return Err(unspoken(WANTED, rest));
                }
                let words = String::from_utf8_lossy(&rest[..end]).into_owned();
                return Ok(decoder.done(at + end + 2, AnswerOutcome::Refused(words)));
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
            }
        }
    }
}

/// The length in ` <flags> <bytes>` or ` <flags> <bytes> <cas>`.
#[inline]
fn value_length(tail: &[u8]) -> Option<usize> {
    // Flags are always stored as 0 here.
    let digits = tail.strip_prefix(b" 0 ")?;
    read_decimal(digits).map(|bytes| bytes as usize)
}

/// One line that says it all.
fn line(
    decoder: &mut AnswerDecoder,
    workload: &Workload,
    asked: &Asked<'_>,
    input: &[u8],
) -> Result<Decoded, Trouble> {
    let expected = match asked.command {
        WorkloadCommand::Set => "STORED",
        WorkloadCommand::Create => "STORED or NOT_STORED",
        WorkloadCommand::Delete => "DELETED or NOT_FOUND",
        _ => "a number or NOT_FOUND",
    };
    let Some(end) = line_bytes(input, expected)? else {
        return Ok(Decoded::More { consumed: 0 });
    };
    let line = &input[..end];
    let outcome = match (asked.command, line) {
        (WorkloadCommand::Set | WorkloadCommand::Create, b"STORED") => AnswerOutcome::Hit(1),
        (WorkloadCommand::Delete, b"DELETED") => AnswerOutcome::Hit(1),
        (WorkloadCommand::Create, b"NOT_STORED") => AnswerOutcome::Miss,
        (WorkloadCommand::Delete | WorkloadCommand::Incr, b"NOT_FOUND") => AnswerOutcome::Miss,
        (WorkloadCommand::Incr, [b'0'..=b'9', ..]) => match read_decimal(line) {
            Some(value) if workload.counted(&asked.keys[0], value) => AnswerOutcome::Hit(1),
            Some(value) => return Err(shrunk(workload, &asked.keys[0], value)),
            None => return Err(unspoken(expected, input)),
        },
        (_, line) if is_error_line(line) => {
            AnswerOutcome::Refused(String::from_utf8_lossy(line).into_owned())
        }
        _ => return Err(unspoken(expected, input)),
    };
    Ok(decoder.done(end + 2, outcome))
}
