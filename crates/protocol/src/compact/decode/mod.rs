//! Request frames to steps.
//!
//! A frame is validated by its header alone, so a faulty one is answered before its rest arrives
//! and the rest is dropped. MGET and MSET yield one request per entry; between two entries the
//! decoder stores only the remaining length of the frame.

use super::opcode::{HEADER_BYTES, REQUEST_FIELD_BYTES, request_flags, response_flags};
use super::{CompactForm, Entry, Kind, Opcode, OpcodeSpec};
use crate::{AdminCommand, Answer, Context, Step};
use ringlane_types::request::{Body, Consistency, Get, KEY_BYTES_MAX, Operation};

mod entries;
mod error;
mod operation;

use entries::{Entries, inner_key, read_mget_entry, read_mset_entry};
pub use error::FrameError;
use error::error_frame;
use operation::{Fields, operation, reply, request, store};

/// Maximum bytes of a faulty frame that are dropped to keep the connection, unless they are the
/// value of a store. A frame that claims more counts as lost synchronization.
const FAULTY_BYTES_MAX: u64 = 1 << 20;

/// State of one connection's decoder.
#[derive(Debug, Default)]
pub struct CompactDecoder {
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// A frame starts here.
    #[default]
    Frame,
    /// An entry of this frame starts here.
    Entries(Entries),
    /// A fatal error has been answered.
    Closing,
}

/// A store up to its key.
struct Head<'b> {
    /// Start of the value in the input.
    value_at: usize,
    value_bytes: u32,
    key: &'b [u8],
    fields: Fields,
}

impl CompactDecoder {
    /// Takes the next step from `input`.
    #[inline]
    pub fn next<'b>(&mut self, input: &'b [u8], context: &Context<'b>) -> Step<'b> {
        if matches!(self.state, State::Frame)
            && let Some(step) = plain_get(input, context)
        {
            return step;
        }
        self.next_slow(input, context)
    }

    /// Everything but a whole GET without fields.
    #[inline(never)]
    fn next_slow<'b>(&mut self, input: &'b [u8], context: &Context<'b>) -> Step<'b> {
        match &mut self.state {
            State::Frame => self.frame(input, context),
            State::Entries(entries) => {
                if let Some(step) = inner_key(entries, input, context) {
                    return step;
                }
                let entries = *entries;
                self.entry(entries, 0, input, context)
            }
            State::Closing => Step::Close,
        }
    }

    fn frame<'b>(&mut self, input: &'b [u8], context: &Context<'b>) -> Step<'b> {
        let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Step::Incomplete };
        let [code, flags, k0, k1, v0, v1, v2, v3, o0, o1, o2, o3] = *header;
        let key_bytes = u16::from_le_bytes([k0, k1]);
        let value_bytes = u32::from_le_bytes([v0, v1, v2, v3]);
        let opaque = u32::from_le_bytes([o0, o1, o2, o3]);
        let spec = match validate(code, flags, key_bytes, value_bytes) {
            Ok(spec) => spec,
            Err(error) => return self.refuse(error, header, context),
        };
        let fields_bytes = REQUEST_FIELD_BYTES[(flags & request_flags::FIELDS) as usize] as usize;
        let key_at = HEADER_BYTES + fields_bytes;
        let value_at = key_at + key_bytes as usize;
        let Some(key) = input.get(key_at..value_at) else { return Step::Incomplete };
        let fields = Fields::read(flags, &input[HEADER_BYTES..key_at]);
        let Some(consistency) = Consistency::from_code(fields.consistency) else {
            return self.refuse(FrameError::Consistency, header, context);
        };
        let form = CompactForm {
            opcode: spec.opcode,
            opaque,
            index: 0,
            flags,
            consistency,
            entry: Entry::Only,
        };
        let head = Head { value_at, value_bytes, key, fields };
        match spec.kind {
            Kind::Store => store_step(form, head, input, context),
            Kind::Read | Kind::Write => {
                let Some(value) = input.get(value_at..value_at + value_bytes as usize) else {
                    return Step::Incomplete;
                };
                match operation(spec.opcode, &fields, value, context) {
                    Ok(operation) => Step::Request {
                        consumed: value_at + value.len(),
                        request: request(key, operation, context),
                        reply: reply(form),
                        skip: 0,
                    },
                    Err(error) => self.refuse(error, header, context),
                }
            }
            Kind::ReadMany | Kind::StoreMany => {
                let entries = Entries {
                    opcode: spec.opcode,
                    flags,
                    consistency,
                    opaque,
                    bytes_left: value_bytes.into(),
                    index: 0,
                };
                self.entry(entries, value_at, input, context)
            }
            Kind::Node => {
                let consumed = value_at + value_bytes as usize;
                if input.len() < consumed {
                    return Step::Incomplete;
                }
                admin_step(form, consumed, key, &fields, context)
            }
        }
    }

    /// Decodes the entry that starts at `at`. Only a whole entry advances the decoder, so an
    /// incomplete first one is decoded again from the header.
    fn entry<'b>(
        &mut self,
        mut entries: Entries,
        at: usize,
        input: &'b [u8],
        context: &Context<'b>,
    ) -> Step<'b> {
        let index = entries.index;
        let (head, fault) = match entries.opcode.spec().kind {
            Kind::ReadMany => read_mget_entry(&entries, &input[at..]),
            _ => read_mset_entry(&entries, &input[at..]),
        };
        let Some(mut head) = head else {
            if !fault || input.is_empty() {
                return Step::Incomplete;
            }
            self.state = State::Frame;
            let consumed = at.max(1);
            let skip = entries.bytes_left - (consumed - at) as u64;
            let bytes = error_frame(
                FrameError::Entry,
                [entries.opcode as u8, response_flags::INDEX],
                entries.opaque,
                Some(index),
                context,
            );
            return Step::Answer { consumed, answer: Answer::Bytes(bytes), skip };
        };
        let entry_bytes = head.value_at as u64 + u64::from(head.value_bytes);
        head.value_at += at;
        entries.bytes_left -= entry_bytes;
        let last = entries.bytes_left == 0;
        let form = entries.form(if last { Entry::Last } else { Entry::Inner });
        entries.index += 1;
        let step = match entries.opcode {
            Opcode::Mget => Step::Request {
                consumed: head.value_at,
                request: request(head.key, Operation::Get(Get::default()), context),
                reply: reply(form),
                skip: 0,
            },
            _ => store_step(form, head, input, context),
        };
        if !matches!(step, Step::Incomplete) {
            self.state = if last { State::Frame } else { State::Entries(entries) };
        }
        step
    }

    /// Answers a faulty frame and drops it, or closes the connection.
    #[cold]
    fn refuse<'b>(
        &mut self,
        error: FrameError,
        header: &[u8; HEADER_BYTES],
        context: &Context<'b>,
    ) -> Step<'b> {
        let fields = (header[1] & request_flags::FIELDS) as usize;
        let value_bytes = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let length = u64::from(REQUEST_FIELD_BYTES[fields])
            + u64::from(u16::from_le_bytes([header[2], header[3]]))
            + u64::from(value_bytes);
        let is_store = OpcodeSpec::of_code(header[0])
            .is_some_and(|spec| matches!(spec.kind, Kind::Store | Kind::StoreMany));
        let error = match error {
            FrameError::NoFrame => error,
            _ if length > FAULTY_BYTES_MAX && !is_store => FrameError::TooLong,
            _ => error,
        };
        let opaque = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let bytes = error_frame(error, [header[0], 0], opaque, None, context);
        let answer = Answer::Bytes(bytes);
        if matches!(error, FrameError::NoFrame | FrameError::TooLong) {
            self.state = State::Closing;
            // The rest of the header stays, so that the caller calls again and gets the close.
            return Step::Answer { consumed: 1, answer, skip: 0 };
        }
        Step::Answer { consumed: HEADER_BYTES, answer, skip: length }
    }
}

/// A whole GET without fields, by far the most common request. `None` means undetermined: the frame
/// may be incomplete, invalid or another command.
#[inline]
fn plain_get<'b>(input: &'b [u8], context: &Context<'b>) -> Option<Step<'b>> {
    const ALLOWED: u8 = request_flags::DETAILS | request_flags::ANY_ORDER | request_flags::QUIET;
    let &[code, flags, k0, k1, v0, v1, v2, v3, o0, o1, o2, o3] = input.first_chunk()?;
    let key_bytes = u16::from_le_bytes([k0, k1]) as usize;
    if code != Opcode::Get as u8
        || flags & !ALLOWED != 0
        || key_bytes.wrapping_sub(1) >= KEY_BYTES_MAX
        || [v0, v1, v2, v3] != [0; 4]
    {
        return None;
    }
    let key = input.get(HEADER_BYTES..HEADER_BYTES + key_bytes)?;
    let form = CompactForm {
        opcode: Opcode::Get,
        opaque: u32::from_le_bytes([o0, o1, o2, o3]),
        index: 0,
        flags,
        consistency: Consistency::Configured,
        entry: Entry::Only,
    };
    Some(Step::Request {
        consumed: HEADER_BYTES + key_bytes,
        request: request(key, Operation::Get(Get::default()), context),
        reply: reply(form),
        skip: 0,
    })
}

/// Whether the opcode allows this header.
#[inline]
fn validate(
    code: u8,
    flags: u8,
    key_bytes: u16,
    value_bytes: u32,
) -> Result<&'static OpcodeSpec, FrameError> {
    let Some(spec) = OpcodeSpec::of_code(code) else {
        let is_frame = code >= 0x82;
        return Err(if is_frame { FrameError::UnknownOpcode } else { FrameError::NoFrame });
    };
    if flags & !spec.flags_allowed != 0 {
        return Err(FrameError::FlagNotAllowed);
    }
    if flags & spec.flags_needed != spec.flags_needed {
        return Err(FrameError::FieldMissing);
    }
    if key_bytes < spec.key_bytes_min || key_bytes > spec.key_bytes_max {
        return Err(FrameError::KeyLength);
    }
    if value_bytes < spec.value_bytes_min || value_bytes > spec.value_bytes_max {
        return Err(FrameError::ValueLength);
    }
    Ok(spec)
}

/// A store whose key has arrived: refused, waiting for its value, streamed or whole.
fn store_step<'b>(
    form: CompactForm,
    head: Head<'b>,
    input: &'b [u8],
    context: &Context<'b>,
) -> Step<'b> {
    let Head { value_at, value_bytes, key, fields } = head;
    let limits = context.limits;
    let arrived = input.get(value_at..).and_then(|rest| rest.get(..value_bytes as usize));
    let (body, skip) = match arrived {
        _ if !limits.item_fits(key.len(), fields.client_flags, value_bytes.into()) => {
            (Body::Refused(value_bytes.into()), value_bytes.into())
        }
        Some(value) => (Body::Bytes(value), 0),
        None if value_bytes >= limits.body_bytes_streamed => {
            let operation = store(form.opcode, &fields, Body::Bytes(&[]), context);
            return Step::StoreHeader {
                consumed: value_at,
                request: request(key, operation, context),
                reply: reply(form),
                value_bytes,
                trailer_bytes: 0,
            };
        }
        None => return Step::Incomplete,
    };
    let taken = if let Body::Bytes(value) = body { value.len() } else { 0 };
    Step::Request {
        consumed: value_at + taken,
        request: request(key, store(form.opcode, &fields, body, context), context),
        reply: reply(form),
        skip,
    }
}

fn admin_step<'b>(
    form: CompactForm,
    consumed: usize,
    key: &'b [u8],
    fields: &Fields,
    context: &Context<'b>,
) -> Step<'b> {
    let command = match form.opcode {
        Opcode::Hello => AdminCommand::Hello,
        Opcode::Flush => {
            let delay = std::time::Duration::from_millis(fields.ttl_millis.unwrap_or(0));
            AdminCommand::FlushAll { at: context.now.after(delay) }
        }
        Opcode::Stats => AdminCommand::Stats { argument: key },
        _ => {
            let mut frame = [0; HEADER_BYTES];
            frame[0] = form.opcode as u8;
            frame[8..].copy_from_slice(&form.opaque.to_le_bytes());
            let answer = Answer::Bytes(context.scratch.alloc(frame));
            return Step::Answer { consumed, answer, skip: 0 };
        }
    };
    Step::Admin { consumed, command, reply: reply(form) }
}
