//! A naive shard: a map, and the rules as plainly as they can be written.
//!
//! It knows nothing of memory. What it answers is what the shard must answer, with two exceptions
//! that `run` allows for: an item may be missing when the shard has evicted since it was stored,
//! and a store may find no memory. CAS tokens that the shard chooses are learnt from its answers
//! and checked to be fresh.

mod run;

pub use run::{run, run_colliding};

use ringlane_shard::counters::Counters;
use ringlane_types::request::{
    Arithmetic, Body, Delete, Get, Marks, Operation, Purpose, Response, Store, StoreMode, Value,
};
use ringlane_types::time::{Deadline, Instant};
use std::collections::HashMap;

/// A CAS token as the model knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cas {
    /// This one.
    Exactly(u64),
    /// One that the shard chooses now.
    Fresh,
}

/// What a shard answered, or the model expects, in owned form.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Hit(Found),
    Miss,
    Stored {
        cas: Cas,
        value_bytes: u32,
    },
    NotStored,
    Exists,
    NotFound,
    Deleted,
    Number {
        value: u64,
        cas: Cas,
        deadline: Deadline,
        deadline_before: Deadline,
        created: bool,
        binary_key: bool,
    },
    NonNumeric,
    TooLarge,
    OutOfMemory,
    NotCreated,
}

/// A value that shows only its beginning.
#[derive(Clone, PartialEq, Eq)]
struct Shown(Vec<u8>);

impl std::fmt::Debug for Shown {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = self.0[..self.0.len().min(12)].escape_ascii();
        write!(formatter, "{} bytes {start}", self.0.len())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    value: Shown,
    flags: u32,
    cas: Cas,
    deadline: Deadline,
    deadline_before: Deadline,
    idle_seconds: u32,
    marks: Marks,
}

impl Answer {
    /// What `response` says; also checks what it says about the key.
    fn of(response: &Response<'_>, key: &[u8]) -> Self {
        match response {
            Response::Hit(hit) => {
                assert_eq!(hit.key, key);
                let pieces = hit.value.parts().map(<[u8]>::len).sum::<usize>();
                assert_eq!(hit.value.len(), pieces);
                assert!(hit.item_bytes as usize >= key.len() + hit.value.len() + 16);
                assert!(!matches!(hit.value, Value::Whole(bytes) if bytes.len() > 32 << 10));
                Answer::Hit(Found {
                    value: Shown(hit.value.to_vec()),
                    flags: hit.flags,
                    cas: Cas::Exactly(hit.cas),
                    deadline: hit.deadline,
                    deadline_before: hit.deadline_before,
                    idle_seconds: hit.idle_seconds,
                    marks: hit.marks,
                })
            }
            Response::Miss => Answer::Miss,
            Response::Stored { cas, value_bytes } => {
                Answer::Stored { cas: Cas::Exactly(*cas), value_bytes: *value_bytes }
            }
            Response::NotStored => Answer::NotStored,
            Response::Exists => Answer::Exists,
            Response::NotFound => Answer::NotFound,
            Response::Deleted => Answer::Deleted,
            Response::Number(number) => {
                assert_eq!(number.key, key);
                Answer::Number {
                    value: number.value,
                    cas: Cas::Exactly(number.cas),
                    deadline: number.deadline,
                    deadline_before: number.deadline_before,
                    created: number.created,
                    binary_key: number.binary_key,
                }
            }
            Response::NonNumeric => Answer::NonNumeric,
            Response::TooLarge => Answer::TooLarge,
            Response::OutOfMemory => Answer::OutOfMemory,
            Response::NotCreated => Answer::NotCreated,
            Response::QuorumNotReached { .. } | Response::Uncertain | Response::Busy => {
                unreachable!("a shard knows of no other replicas")
            }
            Response::OverAllowance { .. } => unreachable!("the model's reads are not limited"),
        }
    }

    fn cas(&self) -> Option<Cas> {
        match self {
            Answer::Hit(found) => Some(found.cas),
            Answer::Stored { cas, .. } | Answer::Number { cas, .. } => Some(*cas),
            _ => None,
        }
    }

    /// The same answer as if the CAS token and the deadlines of `other` had been expected, where
    /// they are what the model cannot know: a token the shard chose, or a far deadline that is kept
    /// in whole seconds.
    fn allowing_for(mut self, other: &Answer) -> Self {
        let seconds = |mine: &mut Deadline, theirs: &Deadline| {
            if mine.as_millis() / 1000 * 1000 == theirs.as_millis() {
                *mine = *theirs;
            }
        };
        match (&mut self, other) {
            (Answer::Hit(mine), Answer::Hit(theirs)) => {
                if mine.cas == Cas::Fresh {
                    mine.cas = theirs.cas;
                }
                seconds(&mut mine.deadline, &theirs.deadline);
                seconds(&mut mine.deadline_before, &theirs.deadline_before);
            }
            (Answer::Stored { cas: mine, .. }, Answer::Stored { cas: theirs, .. })
                if *mine == Cas::Fresh =>
            {
                *mine = *theirs;
            }
            (
                Answer::Number { cas: mine, deadline, deadline_before, .. },
                Answer::Number { cas: theirs, deadline: after, deadline_before: before, .. },
            ) => {
                if *mine == Cas::Fresh {
                    *mine = *theirs;
                }
                seconds(deadline, after);
                seconds(deadline_before, before);
            }
            _ => {}
        }
        self
    }
}

#[derive(Clone, Debug)]
struct ModelItem {
    value: Vec<u8>,
    flags: u32,
    deadline: Deadline,
    cas: Cas,
    fetched: bool,
    stale: bool,
    won: bool,
    binary_key: bool,
    used: Instant,
    /// The shard's evictions when the item was stored.
    evictions: u64,
}

/// The naive shard.
struct Model {
    items: HashMap<Vec<u8>, ModelItem>,
    item_bytes_max: u64,
    counters: Counters,
    flush_at: Option<Instant>,
    /// What the shard has evicted so far.
    evictions: u64,
    /// Bits of access times that are the policy's.
    frequency_mask: u32,
}

impl Model {
    fn new(item_bytes_max: u64, frequency_mask: u32) -> Self {
        Self {
            items: HashMap::new(),
            item_bytes_max,
            frequency_mask,
            counters: Counters::default(),
            flush_at: None,
            evictions: 0,
        }
    }

    fn flush_all(&mut self, at: Instant, now: Instant) {
        self.run_due_work(now);
        self.flush_at = Some(at);
        self.run_due_work(now);
    }

    fn run_due_work(&mut self, now: Instant) {
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            self.items.clear();
        }
        self.items.retain(|_, item| !item.deadline.is_past(now));
    }

    fn execute(&mut self, key: &[u8], operation: &Operation<'_>, now: Instant) -> Answer {
        self.run_due_work(now);
        let answer = match operation {
            Operation::Get(get) => self.get(key, get, now),
            Operation::Store(store) => self.store(key, store, now),
            Operation::Delete(delete) => self.delete(key, delete, now),
            Operation::Arithmetic(arithmetic) => self.arithmetic(key, arithmetic, now),
        };
        self.items.retain(|_, item| !item.deadline.is_past(now));
        answer
    }

    fn get(&mut self, key: &[u8], get: &Get, now: Instant) -> Answer {
        let mut created = false;
        if !self.items.contains_key(key)
            && let Some(vivify) = get.vivify
        {
            let mut item = self.item(b"", 0, vivify.deadline, vivify.cas, now);
            if vivify.cas == Some(0) {
                item.cas = Cas::Exactly(0);
            }
            item.binary_key = vivify.binary_key;
            self.items.insert(key.to_vec(), item);
            self.counters.total_items += 1;
            created = true;
        }
        let counters = &mut self.counters;
        let Some(item) = self.items.get_mut(key) else {
            match get.purpose {
                Purpose::Touch if !get.lease => {
                    counters.cmd_touch += 1;
                    counters.touch_misses += 1;
                }
                Purpose::Get | Purpose::Touch => {
                    counters.cmd_get += 1;
                    counters.get_misses += 1;
                }
                Purpose::Inspect => {}
                Purpose::Describe => self.counters.cmd_meta += 1,
            }
            return Answer::Miss;
        };
        match get.purpose {
            Purpose::Inspect => {}
            Purpose::Describe => self.counters.cmd_meta += 1,
            Purpose::Get if get.touch.is_none() || created => {
                counters.cmd_get += 1;
                counters.get_hits += 1;
            }
            Purpose::Get | Purpose::Touch => {
                counters.cmd_touch += 1;
                counters.touch_hits += 1;
            }
        }
        let before = item.clone();
        if let Some(touch) = get.touch
            && !created
        {
            item.deadline = touch;
        }
        let judged = if get.refresh_first { before.deadline } else { item.deadline };
        let soon = get
            .refresh_below_seconds
            .zip(judged.seconds_left(now))
            .is_some_and(|(below, left)| left < below as u64);
        let won = created || !item.won && (get.lease && item.stale || soon);
        item.won |= won;
        if !get.no_use {
            item.used = now;
            item.fetched = true;
        }
        // Some policies keep only the upper bits of it.
        let used = before.used.as_millis() >> 3 & !u64::from(self.frequency_mask);
        Answer::Hit(Found {
            value: Shown(item.value.clone()),
            flags: item.flags,
            cas: item.cas,
            deadline: item.deadline,
            deadline_before: if created { Deadline::NEVER } else { before.deadline },
            idle_seconds: ((now.as_millis() >> 3) - used) as u32 / 125,
            marks: Marks {
                fetched: before.fetched,
                stale: item.stale,
                won,
                win_sent: before.won,
                binary_key: item.binary_key,
            },
        })
    }

    fn store(&mut self, key: &[u8], store: &Store<'_>, now: Instant) -> Answer {
        let Body::Bytes(value) = store.value else { unreachable!("the model gets bytes") };
        if !self.fits(key, store.flags, value.len()) {
            self.counters.store_too_large += 1;
            if store.refusal_removes {
                self.items.remove(key);
            }
            return Answer::TooLarge;
        }
        self.counters.cmd_set += 1;
        let joins = matches!(store.mode, StoreMode::Append | StoreMode::Prepend);
        let compare = match store.mode {
            StoreMode::Add => None,
            _ => store.compare.filter(|&cas| cas != 0 || !joins),
        };
        let Some(old) = self.items.get(key).cloned() else {
            self.counters.cas_misses += u64::from(compare.is_some());
            return match store.mode {
                StoreMode::Set | StoreMode::Replace if compare.is_some() => Answer::NotFound,
                StoreMode::Replace => Answer::NotStored,
                StoreMode::Append | StoreMode::Prepend => match store.vivify {
                    Some(deadline) => self.place(key, store, value, deadline, now),
                    None => Answer::NotStored,
                },
                StoreMode::Set | StoreMode::Add => {
                    self.place(key, store, value, store.deadline, now)
                }
            };
        };
        if store.mode == StoreMode::Add {
            let item = self.items.get_mut(key).expect("it is there");
            item.used = now;
            item.fetched = true;
            return Answer::NotStored;
        }
        let mut stale = false;
        if let Some(cas) = compare {
            let Cas::Exactly(current) = old.cas else { unreachable!("tokens are learnt at once") };
            stale = !joins && store.accept_older && cas < current;
            if cas != current && !stale {
                self.counters.cas_badval += 1;
                return Answer::Exists;
            }
            self.counters.cas_hits += 1;
        }
        if !joins {
            let deadline = if stale { old.deadline } else { store.deadline };
            let answer = self.place(key, store, value, deadline, now);
            if let Some(item) = self.items.get_mut(key) {
                item.stale = stale;
                item.won = stale && old.won;
            }
            return answer;
        }
        let joined = match store.mode {
            StoreMode::Append => [&old.value, value].concat(),
            _ => [value, &old.value].concat(),
        };
        if !self.fits(key, old.flags, joined.len()) {
            return Answer::NotStored;
        }
        let kept = Store { flags: old.flags, ..*store };
        self.place(key, &kept, &joined, old.deadline, now)
    }

    fn place(
        &mut self,
        key: &[u8],
        store: &Store<'_>,
        value: &[u8],
        deadline: Deadline,
        now: Instant,
    ) -> Answer {
        let mut item = self.item(value, store.flags, deadline, store.cas, now);
        item.binary_key = store.binary_key;
        let answer = Answer::Stored { cas: item.cas, value_bytes: value.len() as u32 };
        self.items.insert(key.to_vec(), item);
        self.counters.total_items += 1;
        answer
    }

    fn item(
        &self,
        value: &[u8],
        flags: u32,
        deadline: Deadline,
        cas: Option<u64>,
        now: Instant,
    ) -> ModelItem {
        ModelItem {
            value: value.to_vec(),
            flags,
            deadline,
            cas: cas.filter(|&cas| cas != 0).map_or(Cas::Fresh, Cas::Exactly),
            fetched: false,
            stale: false,
            won: false,
            binary_key: false,
            used: now,
            evictions: self.evictions,
        }
    }

    fn delete(&mut self, key: &[u8], delete: &Delete, now: Instant) -> Answer {
        let Some(old) = self.items.get(key).cloned() else {
            self.counters.delete_misses += 1;
            return Answer::NotFound;
        };
        if delete.compare.is_some_and(|cas| cas == 0 || Cas::Exactly(cas) != old.cas) {
            self.counters.delete_misses += 1;
            return Answer::Exists;
        }
        self.counters.delete_hits += u64::from(!delete.invalidate);
        let asked = delete.cas.filter(|&cas| cas != 0);
        if let Some(flags) = delete.empty {
            let deadline = delete.deadline.unwrap_or(Deadline::NEVER);
            let mut item = self.item(b"", flags, deadline, asked, now);
            if asked.is_none() && !delete.invalidate {
                item.cas = old.cas;
            }
            item.stale = delete.invalidate;
            item.binary_key = old.binary_key;
            self.items.insert(key.to_vec(), item);
            self.counters.total_items += u64::from(!deadline.is_past(now));
        } else if delete.invalidate {
            let item = self.items.get_mut(key).expect("it is there");
            item.deadline = delete.deadline.unwrap_or(item.deadline);
            item.cas = asked.map_or(Cas::Fresh, Cas::Exactly);
            item.stale = true;
            item.won = false;
        } else {
            self.items.remove(key);
        }
        Answer::Deleted
    }

    fn arithmetic(&mut self, key: &[u8], arithmetic: &Arithmetic, now: Instant) -> Answer {
        let counters = &mut self.counters;
        let Some(old) = self.items.get(key).cloned() else {
            let Some((value, deadline)) = arithmetic.create else {
                match arithmetic.decrement {
                    true => counters.decr_misses += 1,
                    false => counters.incr_misses += 1,
                }
                return Answer::NotFound;
            };
            let text = value.to_string();
            let mut item = self.item(text.as_bytes(), 0, deadline, arithmetic.cas, now);
            if arithmetic.cas == Some(0) {
                item.cas = Cas::Exactly(0);
            }
            item.binary_key = arithmetic.binary_key;
            let (cas, binary_key) = (item.cas, item.binary_key);
            self.items.insert(key.to_vec(), item);
            self.counters.total_items += 1;
            return Answer::Number {
                value,
                cas,
                deadline,
                deadline_before: Deadline::NEVER,
                created: true,
                binary_key,
            };
        };
        // Values too long for half a page are chained. The driver's shards have pages of 64 KiB.
        let head = if old.flags == 0 { 36 } else { 40 };
        if old.value.is_empty() || head + key.len() + old.value.len() > 32 << 10 {
            return Answer::NonNumeric;
        }
        if arithmetic.compare.is_some_and(|cas| cas != 0 && Cas::Exactly(cas) != old.cas) {
            return Answer::Exists;
        }
        let Some(number) = number_in(&old.value) else { return Answer::NonNumeric };
        let value = match arithmetic.decrement {
            true => number.saturating_sub(arithmetic.delta),
            false => number.wrapping_add(arithmetic.delta),
        };
        match arithmetic.decrement {
            true => counters.decr_hits += 1,
            false => counters.incr_hits += 1,
        }
        let text = value.to_string();
        let grows = text.len() > old.value.len();
        counters.total_items += u64::from(grows);
        let item = self.items.get_mut(key).expect("it is there");
        item.value =
            format!("{text:width$}", width = if grows { 0 } else { old.value.len() }).into();
        item.cas = arithmetic.cas.filter(|&cas| cas != 0).map_or(Cas::Fresh, Cas::Exactly);
        item.used = now;
        if grows {
            (item.fetched, item.stale, item.won) = (false, false, false);
            item.evictions = self.evictions;
        }
        item.deadline = arithmetic.touch.unwrap_or(item.deadline);
        Answer::Number {
            value,
            cas: item.cas,
            deadline: item.deadline,
            deadline_before: old.deadline,
            created: false,
            binary_key: item.binary_key,
        }
    }

    fn fits(&self, key: &[u8], flags: u32, value_bytes: usize) -> bool {
        let flags = if flags != 0 { 4 } else { 0 };
        48 + 8 + (key.len() + 1) + flags + (value_bytes + 2) <= self.item_bytes_max as usize
    }
}

/// The number a value begins with, read another way than the shard reads it.
fn number_in(value: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(value);
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits = text.split([' ', '\t', '\n', '\x0b', '\x0c', '\r']).next()?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}
