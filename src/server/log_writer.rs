//! Writes the log without ever blocking the thread that logs.
//!
//! stderr may be a full pipe: a write would then block a core, or the executor that gossips, until
//! the other members consider the node dead. So lines go into a bounded buffer and a dedicated
//! thread writes them. A line that finds no room is dropped and counted, and the next one written
//! reports the count.

use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Maximum bytes waiting to be written; a line beyond is dropped.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Longest wait of an exiting process for its last lines to be read.
const PATIENCE: Duration = Duration::from_secs(1);

/// The log's buffer. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LogWriter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Signals that lines are waiting, or that all have been written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines dropped since the last report.
    dropped: u64,
    /// The thread is writing.
    writing: bool,
}

impl LogWriter {
    /// Starts the thread, which writes to `target` as long as the process runs.
    ///
    /// # Errors
    /// If no further thread is allowed.
    pub fn start(target: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self::default();
        let shared = writer.shared.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || write(&shared, target))?;
        Ok(writer)
    }

    /// Waits until everything is written, at most a second.
    pub fn flush_within_patience(&self) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.lock();
        while state.writing || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

/// Says `text` on stderr and waits no longer than a second for its reader: last words must not keep
/// a process from ending.
pub fn say(text: &str) {
    match LogWriter::start(io::stderr()) {
        Ok(mut writer) => {
            let _ = writer.write_all(text.as_bytes());
            writer.flush_within_patience();
        }
        // Without a thread for it: said, and waited for.
        Err(_) => drop(io::stderr().write_all(text.as_bytes())),
    }
}

impl Write for LogWriter {
    /// Buffers the line, or drops it; never waits for a reader.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.shared.lock();
        if state.waiting.len() + line.len() > WAITING_BYTES_MAX {
            state.dropped += 1;
        } else {
            state.waiting.extend_from_slice(line);
            drop(state);
            self.shared.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// A panic elsewhere must not prevent its own message from being written.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn write(shared: &Shared, mut target: impl Write) {
    let mut lines = Vec::new();
    loop {
        let mut state = shared.lock();
        state.writing = false;
        if state.waiting.is_empty() {
            shared.changed.notify_all();
        }
        while state.waiting.is_empty() {
            state = shared.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.writing = true;
        mem::swap(&mut state.waiting, &mut lines);
        let dropped = mem::take(&mut state.dropped);
        drop(state);
        // An error means that the log has no reader: there is nowhere to report it.
        let _ = target.write_all(&lines);
        lines.clear();
        if dropped > 0 {
            let _ = writeln!(
                target,
                "[WARN] {dropped} log lines were dropped: the reader was too slow"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A reader that takes what it is given when it is told to.
    struct Gate {
        open: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.open.recv();
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_found_no_room_is_counted() {
        let (open, gate) = mpsc::channel();
        let (written, read) = mpsc::channel();
        let mut log = LogWriter::start(Gate { open: gate, written }).expect("a thread");
        let line = [b'x'; 1024];
        // Twice as much as may wait; with the gate shut this would hang if it waited.
        let count = 2 * WAITING_BYTES_MAX / line.len();
        for _ in 0..count {
            log.write_all(&line).expect("lines are always taken");
        }
        assert!(log.shared.lock().waiting.len() <= WAITING_BYTES_MAX);
        drop(open);
        log.flush_within_patience();
        let text: Vec<u8> = read.try_iter().flatten().collect();
        let lines = text.iter().filter(|byte| **byte == b'x').count() / line.len();
        let text = String::from_utf8_lossy(&text);
        let said = text.split("[WARN] ").nth(1).expect("the loss is told");
        let dropped: usize = said.split(' ').next().and_then(|n| n.parse().ok()).expect("a count");
        assert!(dropped > 0 && lines + dropped == count, "{lines} and {dropped} of {count}");
    }

    #[test]
    fn a_process_that_ends_does_not_wait_for_ever_for_its_reader() {
        let (_shut, gate) = mpsc::channel();
        let (written, _read) = mpsc::channel();
        let mut log = LogWriter::start(Gate { open: gate, written }).expect("a thread");
        log.write_all(b"last words\n").expect("lines are always taken");
        let begun = Instant::now();
        log.flush_within_patience();
        assert!(begun.elapsed() >= PATIENCE, "it gave up before its time");
    }
}
