//! Mailboxes for messages to another executor, which it reads in its next turn.
//!
//! For rare events: links that come and go, views, liveness. A reader that checks every turn pays
//! one load of a rarely changing cache line. The only bound is the number of events: a reader takes
//! all in each turn, and writers post once per link or change of the cluster.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A mailbox for messages of one type.
#[derive(Debug)]
pub struct Mailbox<T> {
    any: AtomicBool,
    messages: Mutex<Vec<T>>,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), messages: Mutex::new(Vec::new()) }
    }
}

impl<T> Mailbox<T> {
    /// Posts a message. Wake the reader afterwards.
    pub fn post(&self, message: T) {
        let mut messages = self.messages.lock().expect("a panic ends the process");
        messages.push(message);
        self.any.store(true, Ordering::Release);
    }

    /// Whether there is a message.
    #[inline]
    pub fn has_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Takes all messages, in the order in which they were posted.
    pub fn take(&self) -> Vec<T> {
        let mut messages = self.messages.lock().expect("a panic ends the process");
        self.any.store(false, Ordering::Relaxed);
        std::mem::take(&mut messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_taken_once_and_in_order() {
        let mailbox = Mailbox::default();
        assert!(!mailbox.has_any() && mailbox.take().is_empty());
        mailbox.post(1);
        mailbox.post(2);
        assert!(mailbox.has_any());
        assert_eq!(mailbox.take(), [1, 2]);
        assert!(!mailbox.has_any() && mailbox.take().is_empty());
    }
}
