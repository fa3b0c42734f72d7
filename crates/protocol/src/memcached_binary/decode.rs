//! Request packets to steps.

use super::{HEADER_BYTES, MemcachedBinaryForm, REQUEST_MAGIC, Status, Verb, opcode};
use crate::{AdminCommand, Answer, Context, Reply, ReplyForm, Step};
use ringlane_types::hash::KeyHash;
use ringlane_types::request::{
    Arithmetic, Body, Delete, Get, KEY_BYTES_MAX, Operation, Purpose, Request, Store, StoreMode,
};
use ringlane_types::time::{Deadline, Instant};

/// The exptime that prevents an increment or decrement from creating a missing item.
const DO_NOT_CREATE: u32 = 0xffff_ffff;

/// The answer to VERSION, the same text as the text protocol's.
const VERSION: &[u8] = crate::VERSION.as_bytes();

/// An error in a packet. (A byte other than the magic at the start of a packet closes the
/// connection without an answer.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemcachedBinaryError {
    /// Key and extras longer than the body they are part of. Answered as an unknown command, then
    /// the connection is closed.
    Lengths,
    /// Extras, key or value of a length that the command does not allow, or a key of more than
    /// [`KEY_BYTES_MAX`] bytes. Answered "Invalid arguments", then the connection is closed.
    Arguments,
    /// An unsupported command. Its body is dropped and the connection stays open.
    Command,
}

/// State of one connection's decoder.
#[derive(Debug, Default)]
pub struct MemcachedBinaryDecoder {
    /// The final answer has been sent.
    closing: bool,
}

/// A request packet that has arrived up to its key.
#[derive(Clone, Copy)]
struct Packet<'b> {
    form: MemcachedBinaryForm,
    extras: &'b [u8],
    key: &'b [u8],
    /// Start of the value in the input.
    value_at: usize,
    value_bytes: u32,
    cas: Option<u64>,
}

impl MemcachedBinaryDecoder {
    /// Takes the next step from `input`.
    #[inline]
    pub fn next<'b>(&mut self, input: &'b [u8], context: &Context<'b>) -> Step<'b> {
        if self.closing {
            return Step::Close;
        }
        if input.first().is_some_and(|&magic| magic != REQUEST_MAGIC) {
            return Step::Close;
        }
        let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Step::Incomplete };
        let form = MemcachedBinaryForm {
            opcode: header[1],
            opaque: [header[12], header[13], header[14], header[15]],
        };
        let key_bytes = u16::from_be_bytes([header[2], header[3]]) as usize;
        let extras_bytes = header[4] as usize;
        let body_bytes = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        let cas = u64::from_be_bytes(*header.last_chunk().expect("a header is that long"));
        let Some(value_bytes) = body_bytes.checked_sub((key_bytes + extras_bytes) as u32) else {
            return self.refuse(MemcachedBinaryError::Lengths, header, form, context);
        };
        if let Err(error) = validate(form, extras_bytes, key_bytes, value_bytes) {
            return self.refuse(error, header, form, context);
        }
        let key_at = HEADER_BYTES + extras_bytes;
        let value_at = key_at + key_bytes;
        let Some(key) = input.get(key_at..value_at) else { return Step::Incomplete };
        let packet = Packet {
            form,
            extras: &input[HEADER_BYTES..key_at],
            key,
            value_at,
            value_bytes,
            cas: (cas != 0).then_some(cas),
        };
        match form.verb().expect("validated before") {
            Verb::Get => packet.request(Operation::Get(Get::default()), context),
            verb @ (Verb::Set | Verb::Add | Verb::Replace | Verb::Append | Verb::Prepend) => {
                packet.store(verb, input, context)
            }
            Verb::Touch | Verb::GetAndTouch => {
                let touch = Some(packet.deadline(0, context));
                let get = Get { purpose: Purpose::Touch, touch, ..Get::default() };
                packet.request(Operation::Get(get), context)
            }
            Verb::Delete => {
                let delete = Delete { compare: packet.cas, ..Delete::default() };
                packet.request(Operation::Delete(delete), context)
            }
            verb @ (Verb::Increment | Verb::Decrement) => packet.request(
                Operation::Arithmetic(packet.arithmetic(verb == Verb::Decrement, context)),
                context,
            ),
            Verb::Stat => packet.node(AdminCommand::Stats { argument: key }),
            Verb::Verbosity => packet.node(AdminCommand::Verbosity(packet.extra_u32(0))),
            Verb::Flush => {
                // An exptime of 0, like none, means now.
                let exptime = if extras_bytes == 0 { 0 } else { packet.extra_u32(0) };
                let deadline = Deadline::from_exptime(exptime.into(), context.now);
                let at = if deadline.is_never() {
                    context.now
                } else {
                    Instant::from_millis(deadline.as_millis())
                };
                packet.node(AdminCommand::FlushAll { at })
            }
            Verb::Noop => packet.answer(Status::Success, b"", context),
            Verb::Version => packet.answer(Status::Success, VERSION, context),
            Verb::Quit if form.opcode == opcode::QUITQ => Step::Close,
            Verb::Quit => self.close_after(packet.answer(Status::Success, b"", context)),
        }
    }

    /// Answers a faulty packet; all but an unknown command also end the connection.
    #[cold]
    fn refuse<'b>(
        &mut self,
        error: MemcachedBinaryError,
        header: &[u8; HEADER_BYTES],
        form: MemcachedBinaryForm,
        context: &Context<'b>,
    ) -> Step<'b> {
        let body_bytes = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        let answer = |status| Answer::Bytes(error_packet(form, status, context));
        let consumed = HEADER_BYTES;
        match error {
            MemcachedBinaryError::Command => {
                let answer = answer(Status::UnknownCommand);
                Step::Answer { consumed, answer, skip: body_bytes.into() }
            }
            MemcachedBinaryError::Lengths => {
                let answer = answer(Status::UnknownCommand);
                self.close_after(Step::Answer { consumed, answer, skip: 0 })
            }
            MemcachedBinaryError::Arguments => {
                let answer = answer(Status::InvalidArguments);
                self.close_after(Step::Answer { consumed, answer, skip: 0 })
            }
        }
    }

    /// Makes an answer the final one. A byte of its packet is left in the input, so that the caller
    /// calls again and gets the close.
    fn close_after<'b>(&mut self, step: Step<'b>) -> Step<'b> {
        self.closing = true;
        match step {
            Step::Answer { consumed, answer, .. } => {
                Step::Answer { consumed: consumed - 1, answer, skip: 0 }
            }
            other => other,
        }
    }
}

/// Whether a packet's lengths are those of its command.
#[inline]
fn validate(
    form: MemcachedBinaryForm,
    extras_bytes: usize,
    key_bytes: usize,
    value_bytes: u32,
) -> Result<(), MemcachedBinaryError> {
    if key_bytes > KEY_BYTES_MAX {
        return Err(MemcachedBinaryError::Arguments);
    }
    let has_key = key_bytes > 0;
    let has_value = value_bytes > 0;
    let good = match form.verb().ok_or(MemcachedBinaryError::Command)? {
        Verb::Get | Verb::Delete => extras_bytes == 0 && has_key && !has_value,
        Verb::Set | Verb::Add | Verb::Replace => extras_bytes == 8 && has_key,
        Verb::Append | Verb::Prepend => extras_bytes == 0 && has_key,
        Verb::Increment | Verb::Decrement => extras_bytes == 20 && has_key && !has_value,
        Verb::Touch | Verb::GetAndTouch => extras_bytes == 4 && has_key && !has_value,
        Verb::Flush => matches!(extras_bytes, 0 | 4) && !has_key && !has_value,
        Verb::Verbosity => extras_bytes == 4 && !has_key && !has_value,
        Verb::Noop | Verb::Version | Verb::Quit => extras_bytes == 0 && !has_key && !has_value,
        Verb::Stat => extras_bytes == 0 && !has_value,
    };
    if good { Ok(()) } else { Err(MemcachedBinaryError::Arguments) }
}

impl<'b> Packet<'b> {
    /// The number at `at` in the extras, whose length was validated.
    fn extra_u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(*self.extras[at..].first_chunk().expect("the extras were validated"))
    }

    /// The number at `at` in the extras, whose length was validated.
    fn extra_u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(*self.extras[at..].first_chunk().expect("the extras were validated"))
    }

    /// The exptime at `at` in the extras. Unsigned here, so that none is negative.
    fn deadline(&self, at: usize, context: &Context<'_>) -> Deadline {
        Deadline::from_exptime(self.extra_u32(at).into(), context.now)
    }

    fn reply(&self) -> Reply<'b> {
        // A key that is not repeated is not stored while another core works.
        let key = if self.form.repeats_key() { self.key } else { &[] };
        Reply { form: ReplyForm::MemcachedBinary(self.form), key, tail: &[] }
    }

    fn keyed(&self, operation: Operation<'b>, context: &Context<'b>) -> Request<'b> {
        Request { key: self.key, hash: KeyHash::of(self.key, context.hash_secret), operation }
    }

    /// A request without a value.
    fn request(&self, operation: Operation<'b>, context: &Context<'b>) -> Step<'b> {
        Step::Request {
            consumed: self.value_at,
            request: self.keyed(operation, context),
            reply: self.reply(),
            skip: 0,
        }
    }

    fn node(&self, command: AdminCommand<'b>) -> Step<'b> {
        Step::Admin { consumed: self.value_at, command, reply: self.reply() }
    }

    fn answer(&self, status: Status, body: &[u8], context: &Context<'b>) -> Step<'b> {
        let answer = Answer::Bytes(packet_bytes(self.form, status, body, context));
        Step::Answer { consumed: self.value_at, answer, skip: 0 }
    }

    fn arithmetic(&self, decrement: bool, context: &Context<'b>) -> Arithmetic {
        let creates = self.extra_u32(16) != DO_NOT_CREATE;
        Arithmetic {
            compare: self.cas,
            create: creates.then(|| (self.extra_u64(8), self.deadline(16, context))),
            ..Arithmetic::by(self.extra_u64(0), decrement)
        }
    }

    /// A store: refused, waiting for its value, streamed or whole.
    fn store(&self, verb: Verb, input: &'b [u8], context: &Context<'b>) -> Step<'b> {
        let Self { value_at, value_bytes, key, .. } = *self;
        let (mode, has_extras) = match verb {
            Verb::Append => (StoreMode::Append, false),
            Verb::Prepend => (StoreMode::Prepend, false),
            // A CAS token turns every one of these into the same compare-and-swap.
            Verb::Add if self.cas.is_none() => (StoreMode::Add, true),
            Verb::Replace if self.cas.is_none() => (StoreMode::Replace, true),
            _ => (StoreMode::Set, true),
        };
        let (flags, deadline) = if has_extras {
            (self.extra_u32(0), self.deadline(4, context))
        } else {
            (0, Deadline::NEVER)
        };
        let store = |value| {
            Operation::Store(Store {
                mode,
                value,
                flags,
                deadline,
                compare: self.cas,
                refusal_removes: verb == Verb::Set,
                ..Store::set(b"")
            })
        };
        if !context.limits.item_fits(key.len(), flags, value_bytes.into()) {
            return Step::Request {
                consumed: value_at,
                request: self.keyed(store(Body::Refused(value_bytes.into())), context),
                reply: self.reply(),
                skip: value_bytes.into(),
            };
        }
        if let Some(value) = input[value_at..].get(..value_bytes as usize) {
            return Step::Request {
                consumed: value_at + value.len(),
                request: self.keyed(store(Body::Bytes(value)), context),
                reply: self.reply(),
                skip: 0,
            };
        }
        if value_bytes >= context.limits.body_bytes_streamed {
            return Step::StoreHeader {
                consumed: value_at,
                request: self.keyed(store(Body::Bytes(&[])), context),
                reply: self.reply(),
                value_bytes,
                trailer_bytes: 0,
            };
        }
        Step::Incomplete
    }
}

fn error_packet<'b>(form: MemcachedBinaryForm, status: Status, context: &Context<'b>) -> &'b [u8] {
    packet_bytes(form, status, status.text().as_bytes(), context)
}

/// A response of a header and `body`, in the turn's scratch memory.
fn packet_bytes<'b>(
    form: MemcachedBinaryForm,
    status: Status,
    body: &[u8],
    context: &Context<'b>,
) -> &'b [u8] {
    let header = form.header(status, 0, 0, body.len(), 0);
    let packet = context.scratch.alloc_slice_fill_copy(HEADER_BYTES + body.len(), 0);
    packet[..HEADER_BYTES].copy_from_slice(&header);
    packet[HEADER_BYTES..].copy_from_slice(body);
    packet
}
