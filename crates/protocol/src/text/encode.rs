//! Answers of the classic text commands.

use arrayvec::ArrayVec;

use super::TextForm;
use crate::{Output, Reply};
use ringlane_types::request::{Hit, Response};

/// Writes the answer to one request.
#[inline]
pub fn encode(form: TextForm, reply: &Reply<'_>, response: &Response<'_>, out: &mut impl Output) {
    match (form, response) {
        (TextForm::Retrieval { cas, last }, Response::Hit(hit)) => {
            value_line(reply.key, hit, cas, out);
            out.value(&hit.value, hit.item);
            out.bytes(if last { b"\r\nEND\r\n" } else { b"\r\n" });
        }
        (TextForm::Retrieval { last, .. }, Response::Miss) => {
            if last {
                out.bytes(b"END\r\n");
            }
        }
        _ => one_line(form, response, out),
    }
}

/// `VALUE <key> <flags> <bytes>[ <cas>]`.
#[inline]
fn value_line(key: &[u8], hit: &Hit<'_>, cas: bool, out: &mut impl Output) {
    out.bytes(b"VALUE ");
    out.bytes(key);
    let value_bytes = hit.value.len() as u32;
    let mut rest: LineBuffer<64> = LineBuffer::new();
    if hit.flags == 0 {
        rest.push(b" 0 ");
    } else {
        rest.push(b" ");
        rest.number(hit.flags);
        rest.push(b" ");
    }
    rest.number(value_bytes);
    if cas {
        rest.push(b" ");
        rest.number(hit.cas);
    }
    rest.push(b"\r\n");
    out.bytes(rest.as_bytes());
}

/// Answers that are one line for any request.
fn one_line(form: TextForm, response: &Response<'_>, out: &mut impl Output) {
    let (noreply, arithmetic) = match form {
        TextForm::Retrieval { .. } => (false, false),
        TextForm::Arithmetic { noreply } => (noreply, true),
        TextForm::Touch { noreply }
        | TextForm::Storage { noreply }
        | TextForm::Delete { noreply }
        | TextForm::Node { noreply } => (noreply, false),
    };
    if noreply {
        return;
    }
    out.bytes(match response {
        Response::Number(number) => {
            let mut line = LineBuffer::<24>::new();
            line.number(number.value);
            line.push(b"\r\n");
            return out.bytes(line.as_bytes());
        }
        Response::QuorumNotReached { needed, reached } => {
            return quorum_not_reached(*needed, *reached, out);
        }
        Response::Uncertain => UNCERTAIN,
        Response::OverAllowance { .. } => unreachable!("the pipeline asks again"),
        Response::Busy => BUSY,
        Response::Stored { .. } => b"STORED\r\n",
        Response::Hit(_) => b"TOUCHED\r\n",
        Response::Deleted => b"DELETED\r\n",
        Response::NotStored | Response::NotCreated => b"NOT_STORED\r\n",
        Response::Exists => b"EXISTS\r\n",
        Response::Miss | Response::NotFound => b"NOT_FOUND\r\n",
        Response::NonNumeric => b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
        Response::TooLarge => TOO_LARGE,
        Response::OutOfMemory if arithmetic => OUT_OF_MEMORY,
        Response::OutOfMemory => OUT_OF_MEMORY_STORING,
    });
}

/// Too few replicas participated, with the numbers that a caller acts on.
pub(crate) fn quorum_not_reached(needed: u8, reached: u8, out: &mut impl Output) {
    let mut line = LineBuffer::<80>::new();
    line.push(b"SERVER_ERROR quorum not reached: needed ");
    line.number(needed);
    line.push(b", reached ");
    line.number(reached);
    line.push(b"\r\n");
    out.bytes(line.as_bytes());
}

/// A request whose node went away.
pub(crate) const BUSY: &[u8] = b"SERVER_ERROR too much waits for other nodes, not performed\r\n";
pub(crate) const UNCERTAIN: &[u8] =
    b"SERVER_ERROR outcome unknown: the node that keeps the key went away\r\n";

/// A store that exceeds the item size limit.
pub(crate) const TOO_LARGE: &[u8] = b"SERVER_ERROR object too large for cache\r\n";

/// A store for which there is no memory.
pub(crate) const OUT_OF_MEMORY_STORING: &[u8] = b"SERVER_ERROR out of memory storing object\r\n";

/// Any other operation for which there is no memory.
pub(crate) const OUT_OF_MEMORY: &[u8] = b"SERVER_ERROR out of memory\r\n";

/// A line assembled on the stack, so that the output reserves space once. The default size holds
/// the longest `VALUE` line; overflow is a broken invariant.
pub(crate) struct LineBuffer<const BYTES: usize = 320>(ArrayVec<u8, BYTES>);

impl<const BYTES: usize> LineBuffer<BYTES> {
    #[inline]
    pub(crate) fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    #[inline]
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.try_extend_from_slice(bytes).expect("the buffer holds the longest line of its kind");
    }

    #[inline]
    pub(crate) fn number(&mut self, number: impl itoa::Integer) {
        self.push(itoa::Buffer::new().format(number).as_bytes());
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
