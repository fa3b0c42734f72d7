//! The compact binary protocol, from the client's side.
//!
//! The opaque of a request is the lower half of its (first) key's number, which reveals an answer
//! to another request. Multigets are quiet: missing keys are not answered, as in the text protocol.

use ringlane_protocol::compact::client::{EntryWriter, Frame, ResponseFrame};
use ringlane_protocol::compact::opcode::request_flags;
use ringlane_protocol::compact::{Opcode, Status};

use super::{
    AnswerDecoder, AnswerOutcome, Asked, Decoded, Stage, Trouble, WireRequest, WrongAnswer, shrunk,
    unspoken,
};
use crate::workload::keys::KEY_BYTES_MAX;
use crate::workload::mix::WorkloadCommand;
use crate::workload::{Wanted, Workload};

/// Appends a request.
#[inline]
pub fn encode(workload: &Workload, request: &WireRequest<'_>, out: &mut Vec<u8>) {
    let Wanted { key: number, version } = request.keys[0];
    let opaque = number as u32;
    let mut spelled = [0; KEY_BYTES_MAX];
    let key = match request.command {
        WorkloadCommand::Incr | WorkloadCommand::Create => {
            workload.keys.spell_counter(number, &mut spelled)
        }
        _ => workload.keys.spell(number, &mut spelled),
    };
    match request.command {
        WorkloadCommand::Get => Frame::get(key, opaque).encode_head(0, out),
        WorkloadCommand::Set => {
            let millis = u64::from(request.ttl_seconds) * 1000;
            let ttl_millis = (millis > 0).then_some(millis);
            let frame = Frame { key, ttl_millis, ..Frame::new(Opcode::Set, opaque) };
            frame.encode_head(workload.values.value_bytes(number) as u32, out);
            workload.values.write(number, workload.stamp(version), out);
        }
        WorkloadCommand::Delete => {
            Frame { key, ..Frame::new(Opcode::Delete, opaque) }.encode_head(0, out)
        }
        WorkloadCommand::Incr => {
            Frame { key, ..Frame::new(Opcode::Incr, opaque) }.encode_head(0, out)
        }
        WorkloadCommand::Create => {
            Frame { key, value: b"0", ..Frame::new(Opcode::Add, opaque) }.encode(out);
        }
        WorkloadCommand::Multiget => {
            let flags = request_flags::QUIET;
            let frame = Frame { flags, ..Frame::new(Opcode::Mget, opaque) };
            let mut entries = EntryWriter::new(&frame, out);
            for wanted in request.keys {
                entries.get(workload.keys.spell(wanted.key, &mut spelled));
            }
            entries.finish();
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
    let opcode = match asked.command {
        WorkloadCommand::Get => Opcode::Get,
        WorkloadCommand::Set => Opcode::Set,
        WorkloadCommand::Delete => Opcode::Delete,
        WorkloadCommand::Incr => Opcode::Incr,
        WorkloadCommand::Create => Opcode::Add,
        WorkloadCommand::Multiget => Opcode::Mget,
    };
    let mut at = 0;
    loop {
        let rest = &input[at..];
        match decoder.stage {
            Stage::Line => {
                // Checked at once: a server of another protocol may send less than a header.
                if rest.first().is_some_and(|&byte| byte != opcode as u8) {
                    return Err(unspoken("an answer with the request's opcode", rest));
                }
                let head =
                    ResponseFrame::decode_head(rest).map_err(|_| unspoken("an answer", rest))?;
                let Some((head, value_at, value_bytes)) = head else {
                    return Ok(Decoded::More { consumed: at });
                };
                let (body, value_bytes) = (&rest[value_at..], value_bytes as usize);
                if head.opaque != asked.keys[0].key as u32 {
                    return Err(of_another(workload, asked, &head));
                }
                let is_value = head.status == Status::Ok
                    && matches!(asked.command, WorkloadCommand::Get | WorkloadCommand::Multiget);
                if is_value {
                    let before = decoder.position;
                    let wanted = decoder.at_index(workload, asked, head.index)?;
                    match decoder.begin_value(workload, &wanted, value_bytes, body)? {
                        Some(taken) => at += value_at + taken,
                        None => {
                            decoder.position = before;
                            return Ok(Decoded::More { consumed: at });
                        }
                    }
                    decoder.more = head.more;
                    continue;
                }
                // All other answers are short and decoded whole.
                let Some(value) = body.get(..value_bytes) else {
                    return Ok(Decoded::More { consumed: at });
                };
                at += value_at + value_bytes;
                let outcome = match (asked.command, head.status) {
                    (WorkloadCommand::Multiget, Status::NotFound) => {
                        if head.more {
                            continue;
                        }
                        return Ok(decoder.finish(at));
                    }
                    (WorkloadCommand::Incr, Status::Ok) => {
                        let Ok(number) = value.try_into().map(u64::from_le_bytes) else {
                            return Err(unspoken("a number of 8 bytes", rest));
                        };
                        if !workload.counted(&asked.keys[0], number) {
                            return Err(shrunk(workload, &asked.keys[0], number));
                        }
                        AnswerOutcome::Hit(1)
                    }
                    (_, Status::Ok) => AnswerOutcome::Hit(1),
                    (_, Status::NotFound) => AnswerOutcome::Miss,
                    (WorkloadCommand::Create, Status::NotStored) => AnswerOutcome::Miss,
                    (_, status) => {
                        let words = String::from_utf8_lossy(value);
                        AnswerOutcome::Refused(format!("{status:?} {words}").trim_end().to_owned())
                    }
                };
                return Ok(decoder.done(at, outcome));
            }
            Stage::Value => {
                if rest.is_empty() {
                    return Ok(Decoded::More { consumed: at });
                }
                let key = asked.keys[decoder.position - 1].key;
                at += decoder.proceed_value(workload, key, rest)?;
            }
            Stage::AfterValue => {
                decoder.stage = Stage::Line;
                if !decoder.more {
                    return Ok(decoder.finish(at));
                }
            }
        }
    }
}

impl AnswerDecoder {
    /// The entry of a multiget that an answer names; the one key of a get.
    #[inline]
    fn at_index(
        &mut self,
        workload: &Workload,
        asked: &Asked<'_>,
        index: Option<u32>,
    ) -> Result<Wanted, Trouble> {
        let index = index.unwrap_or(0) as usize;
        match asked.keys.get(index) {
            Some(wanted) if index >= self.position => {
                self.position = index + 1;
                Ok(*wanted)
            }
            _ => Err(Trouble::Wrong(WrongAnswer {
                key: workload.keys.name(asked.keys[0].key),
                what: "the answer is for an entry that was not requested, or out of order".into(),
                expected: format!("entry {} of {}", self.position, asked.keys.len()),
                received: format!("entry {index}"),
            })),
        }
    }
}

#[cold]
fn of_another(workload: &Workload, asked: &Asked<'_>, head: &ResponseFrame<'_>) -> Trouble {
    Trouble::Wrong(WrongAnswer {
        key: workload.keys.name(asked.keys[0].key),
        what: "the answer belongs to another request".into(),
        expected: format!("opaque {}", asked.keys[0].key as u32),
        received: format!("opaque {}", head.opaque),
    })
}
