//! What must hold: for every answer at once, and for all replicas once the faults are over.

use std::collections::HashMap;

use ringlane::time::Instant;

/// One write to a register, from being asked for to being acknowledged.
#[derive(Clone, Debug)]
struct Write {
    /// What a read shows after it: `None` after a deletion, and before the first write.
    value: Option<u64>,
    asked: Instant,
    /// `None` until acknowledged, and for ever when its outcome is not known.
    acknowledged: Option<Instant>,
}

/// Everything clients did to a key that holds one value at a time.
#[derive(Debug)]
pub struct Register {
    writes: Vec<Write>,
}

impl Default for Register {
    fn default() -> Self {
        let began = Instant::default();
        Self { writes: vec![Write { value: None, asked: began, acknowledged: Some(began) }] }
    }
}

impl Register {
    /// A client asks for a write; the number names it.
    pub fn ask(&mut self, value: Option<u64>, now: Instant) -> usize {
        self.writes.push(Write { value, asked: now, acknowledged: None });
        self.writes.len() - 1
    }

    pub fn acknowledge(&mut self, write: usize, now: Instant) {
        self.writes[write].acknowledged = Some(now);
    }

    /// The write certainly never happened.
    pub fn withdraw(&mut self, write: usize) {
        self.writes[write].asked = Instant::from_millis(u64::MAX);
    }

    /// Whether a read asked for at `asked` may show `value` at `answered`: some write of it began
    /// before the answer, and no write that began after that one's end was acknowledged before the
    /// read began.
    pub fn may_show(
        &self,
        value: Option<u64>,
        asked: Instant,
        answered: Instant,
    ) -> Result<(), String> {
        let candidates =
            self.writes.iter().filter(|write| write.value == value && write.asked <= answered);
        let mut stale = None;
        for candidate in candidates {
            let later = self.writes.iter().find(|other| {
                let after = candidate.acknowledged.is_some_and(|end| other.asked > end);
                after && other.acknowledged.is_some_and(|end| end < asked)
            });
            match later {
                None => return Ok(()),
                Some(later) => stale = Some(later),
            }
        }
        Err(match stale {
            Some(later) => format!("a read shows {value:?}, older than the acknowledged {later:?}"),
            None => format!("a read shows {value:?}, which nobody wrote"),
        })
    }
}

/// Everything clients did to a key that only grows by one, by `incr` or by compare and store.
#[derive(Debug, Default)]
pub struct Counter {
    /// When each step was asked for.
    asked: Vec<Instant>,
    /// Steps acknowledged: when, and the number they led to.
    acknowledged: Vec<(Instant, u64)>,
    numbers: HashMap<u64, u32>,
}

impl Counter {
    pub fn ask(&mut self, now: Instant) {
        self.asked.push(now);
    }

    /// A step was acknowledged with `number`; no other may have led to the same.
    pub fn acknowledge(&mut self, number: u64, now: Instant) -> Result<(), String> {
        self.acknowledged.push((now, number));
        let times = self.numbers.entry(number).or_default();
        *times += 1;
        if *times > 1 { Err(format!("two steps led to {number}")) } else { Ok(()) }
    }

    /// Whether a read may show `number`: every step acknowledged before it began is in it, and
    /// nothing that was not asked for.
    pub fn may_show(&self, number: u64, asked: Instant, answered: Instant) -> Result<(), String> {
        let least = self.acknowledged.iter().filter(|(at, _)| *at < asked).map(|(_, n)| *n).max();
        let most = self.asked.iter().filter(|at| **at <= answered).count() as u64;
        if number < least.unwrap_or(0) {
            return Err(format!("a read shows {number} after {least:?} was acknowledged"));
        }
        if number > most {
            return Err(format!("a read shows {number} after {most} steps were asked for"));
        }
        Ok(())
    }
}
