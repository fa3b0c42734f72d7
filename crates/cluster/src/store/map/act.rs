//! One client's request on one record, as plainly as the rules can be written.

use super::super::super::record::{Content, Live, Record, RecordBuf};
use super::super::super::version::Version;
use ringlane_types::codec;
use ringlane_types::request::{
    Arithmetic, Body, Delete, Get, Hit, Marks, Number, Operation, Request, Response, Store,
    StoreMode, Value,
};
use ringlane_types::time::{Deadline, Instant};

/// Performs `request` on the record that is there and appends the response. Returns the new record
/// if there is one; its version is `version` then.
pub(super) fn perform(
    request: &Request<'_>,
    there: Option<&Record<'_>>,
    version: Version,
    now: Instant,
    response: &mut Vec<u8>,
) -> Option<RecordBuf> {
    let live = there.and_then(|record| record.visible(now).copied());
    let cas = there.map_or(0, |record| record.version.0);
    let mut act = Act { key: request.key, cas, live, version, now, response, changed: None };
    match &request.operation {
        Operation::Get(get) => act.get(get),
        Operation::Store(store) => act.store(store),
        Operation::Delete(delete) => act.delete(delete),
        Operation::Arithmetic(arithmetic) => act.arithmetic(arithmetic),
    }
    act.changed
}

struct Act<'a> {
    key: &'a [u8],
    cas: u64,
    live: Option<Live<'a>>,
    version: Version,
    now: Instant,
    response: &'a mut Vec<u8>,
    changed: Option<RecordBuf>,
}

const NOTHING: Value<'static> = Value::Whole(b"");

fn binary_key(set: bool) -> u8 {
    if set { Marks::BINARY_KEY_BIT } else { 0 }
}

impl Act<'_> {
    fn answer(&mut self, response: &Response<'_>) {
        let start = self.response.len();
        self.response.resize(start + codec::encoded_response_bytes(response), 0);
        codec::encode_response(response, &mut self.response[start..]);
    }

    fn change(&mut self, live: Live<'_>) {
        let record = Record { version: self.version, content: Content::Live(live) };
        self.changed = Some(RecordBuf::copied(&record));
    }

    fn remove(&mut self) {
        self.changed = Some(RecordBuf::copied(&Record::deleted(self.version)));
    }

    fn get(&mut self, get: &Get) {
        if let Some(live) = self.live
            && live.value.len() > get.allowance.0 as usize
        {
            let value_bytes = live.value.len() as u32;
            return self.answer(&Response::OverAllowance { value_bytes, request: &[] });
        }
        let mut marks = Marks::default();
        let (before, after) = match (self.live, get.vivify) {
            (None, None) => return self.answer(&Response::Miss),
            (None, Some(vivify)) => {
                let bits = Marks::WON_BIT | binary_key(vivify.binary_key);
                let live =
                    Live { deadline: vivify.deadline, flags: 0, marks: bits, value: NOTHING };
                self.change(live);
                marks.won = true;
                (Live { deadline: Deadline::NEVER, ..live }, live)
            }
            (Some(live), _) => {
                let deadline = get.touch.unwrap_or(live.deadline);
                let judged = if get.refresh_first { live.deadline } else { deadline };
                let left = judged.seconds_left(self.now);
                let below = get.refresh_below_seconds.zip(left);
                let soon = below.is_some_and(|(below, left)| left < below as u64);
                let stale = live.marks & Marks::STALE_BIT != 0;
                marks.win_sent = live.marks & Marks::WON_BIT != 0;
                marks.won = !marks.win_sent && (get.lease && stale || soon);
                let bits = live.marks | if marks.won { Marks::WON_BIT } else { 0 };
                if deadline != live.deadline || marks.won {
                    self.change(Live { deadline, marks: bits, ..live });
                }
                (live, Live { deadline, ..live })
            }
        };
        marks.stale = after.marks & Marks::STALE_BIT != 0;
        marks.binary_key = after.marks & Marks::BINARY_KEY_BIT != 0;
        let hit = Hit {
            item: None,
            key: self.key,
            value: after.value,
            flags: after.flags,
            cas: if self.changed.is_some() { self.version.0 } else { self.cas },
            deadline: after.deadline,
            deadline_before: before.deadline,
            idle_seconds: 0,
            marks,
            class: 0,
            item_bytes: (self.key.len() + after.value.len()) as u32,
        };
        self.answer(&Response::Hit(hit));
    }

    fn store(&mut self, store: &Store<'_>) {
        let Body::Bytes(body) = store.value else {
            if store.refusal_removes && self.live.is_some() {
                self.remove();
            }
            return self.answer(&Response::TooLarge);
        };
        let joins = matches!(store.mode, StoreMode::Append | StoreMode::Prepend);
        let compare = match store.mode {
            StoreMode::Add => None,
            _ => store.compare.filter(|&token| token != 0 || !joins),
        };
        let older = compare.is_some_and(|token| token < self.cas && store.accept_older && !joins);
        let refusal = match (store.mode, self.live) {
            (StoreMode::Add, Some(_)) => Some(Response::NotStored),
            (_, Some(_)) if compare.is_some_and(|token| token != self.cas) && !older => {
                Some(Response::Exists)
            }
            (StoreMode::Set | StoreMode::Replace, None) if compare.is_some() => {
                Some(Response::NotFound)
            }
            (StoreMode::Set | StoreMode::Add, None) | (_, Some(_)) => None,
            (_, None) if joins && store.vivify.is_some() => None,
            (_, None) => Some(Response::NotStored),
        };
        if let Some(refusal) = refusal {
            return self.answer(&refusal);
        }
        let mut new = Live {
            deadline: store.vivify.filter(|_| joins).unwrap_or(store.deadline),
            flags: store.flags,
            marks: binary_key(store.binary_key),
            value: Value::Whole(body),
        };
        let mut joined = Vec::new();
        if let Some(old) = self.live {
            if joins {
                let value = old.value.to_vec();
                joined = match store.mode {
                    StoreMode::Append => [&value[..], body].concat(),
                    _ => [body, &value[..]].concat(),
                };
                (new.deadline, new.flags) = (old.deadline, old.flags);
            } else if older {
                new.deadline = old.deadline;
                new.marks |= Marks::STALE_BIT | old.marks & Marks::WON_BIT;
            }
        }
        if joins && self.live.is_some() {
            new.value = Value::Whole(&joined);
        }
        self.change(new);
        let value_bytes = new.value.len() as u32;
        self.answer(&Response::Stored { cas: self.version.0, value_bytes });
    }

    fn delete(&mut self, delete: &Delete) {
        let Some(live) = self.live else { return self.answer(&Response::NotFound) };
        if delete.compare.is_some_and(|token| token == 0 || token != self.cas) {
            return self.answer(&Response::Exists);
        }
        let stale = if delete.invalidate { Marks::STALE_BIT } else { 0 };
        if let Some(flags) = delete.empty {
            let deadline = delete.deadline.unwrap_or(Deadline::NEVER);
            let marks = live.marks & Marks::BINARY_KEY_BIT | stale;
            self.change(Live { deadline, flags, marks, value: NOTHING });
        } else if delete.invalidate {
            let deadline = delete.deadline.unwrap_or(live.deadline);
            let marks = live.marks & !Marks::WON_BIT | stale;
            self.change(Live { deadline, marks, ..live });
        } else {
            self.remove();
        }
        self.answer(&Response::Deleted);
    }

    fn arithmetic(&mut self, arithmetic: &Arithmetic) {
        let (number, before, mut after) = match (self.live, arithmetic.create) {
            (None, None) => return self.answer(&Response::NotFound),
            (None, Some((initial, deadline))) => {
                let marks = binary_key(arithmetic.binary_key);
                let live = Live { deadline, flags: 0, marks, value: NOTHING };
                (initial, Live { deadline: Deadline::NEVER, ..live }, live)
            }
            (Some(live), _) => {
                let differs = |token| token != 0 && token != self.cas;
                if !live.value.is_empty() && arithmetic.compare.is_some_and(differs) {
                    return self.answer(&Response::Exists);
                }
                let Some(old) = number_in(&live.value.to_vec()) else {
                    return self.answer(&Response::NonNumeric);
                };
                let number = match arithmetic.decrement {
                    true => old.saturating_sub(arithmetic.delta),
                    false => old.wrapping_add(arithmetic.delta),
                };
                let deadline = arithmetic.touch.unwrap_or(live.deadline);
                (number, live, Live { deadline, ..live })
            }
        };
        // A shorter number is padded, a longer one is a new value.
        let text = number.to_string();
        if text.len() > before.value.len() {
            after.marks &= Marks::BINARY_KEY_BIT;
        }
        let digits = format!("{text:width$}", width = before.value.len());
        after.value = Value::Whole(digits.as_bytes());
        self.change(after);
        let number = Number {
            value: number,
            key: self.key,
            cas: self.version.0,
            deadline: after.deadline,
            deadline_before: before.deadline,
            created: self.live.is_none(),
            binary_key: after.marks & Marks::BINARY_KEY_BIT != 0,
        };
        self.answer(&Response::Number(number));
    }
}

/// The number a value begins with, as memcached reads it: blanks, perhaps a plus, digits, and then
/// a blank or the end.
fn number_in(value: &[u8]) -> Option<u64> {
    let blank = |byte: u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = value.iter().position(|&byte| !blank(byte))?;
    let text = &value[start..];
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let digits = text.split(|&byte| blank(byte)).next()?;
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits.then(|| core::str::from_utf8(digits).ok()?.parse().ok())?
}
