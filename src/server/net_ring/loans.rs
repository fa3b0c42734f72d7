//! Owner tags: track which memory the kernel may touch, in builds with debug assertions.
//!
//! A net ring records the memory that it hands to the kernel and removes it with the completion.
//! Code about to reuse, free or return memory checks first; memory still lent fails the test there,
//! not a thousand requests later with one client's bytes in another's answer. Each core is one
//! thread with one net ring, so the records are thread-local. In release builds all of this
//! compiles to nothing.

#[cfg(debug_assertions)]
pub(crate) use noted::{assert_free, end, end_all, lend};
#[cfg(not(debug_assertions))]
pub(crate) use unnoted::{assert_free, end, end_all, lend};

/// What the kernel may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read it; others may read it as well.
    Read,
    /// Read or write it exclusively.
    Sole,
}

#[cfg(debug_assertions)]
mod noted {
    use std::cell::RefCell;
    use std::ops::Range;

    use super::Access;

    struct Loan {
        ring: i32,
        name: u64,
        memory: Range<usize>,
        access: Access,
    }

    thread_local! {
        static LOANS: RefCell<Vec<Loan>> = const { RefCell::new(Vec::new()) };
    }

    /// Records that operation `name` of `ring` holds this memory from now on.
    ///
    /// # Panics
    /// If another operation holds it in a conflicting way.
    pub(crate) fn lend(ring: i32, name: u64, start: *const u8, bytes: usize, access: Access) {
        let memory = start.addr()..start.addr() + bytes;
        LOANS.with_borrow_mut(|loans| {
            let other = loans.iter().find(|loan| {
                overlap(&loan.memory, &memory)
                    && (access, loan.access) != (Access::Read, Access::Read)
            });
            if let Some(Loan { name: other, .. }) = other {
                panic!("operation {name:016x} is given memory that {other:016x} has");
            }
            loans.push(Loan { ring, name, memory, access });
        });
    }

    /// Removes everything that operation `name` of `ring` held.
    pub(crate) fn end(ring: i32, name: u64) {
        LOANS.with_borrow_mut(|loans| loans.retain(|loan| (loan.ring, loan.name) != (ring, name)));
    }

    /// Removes everything that `ring` held.
    pub(crate) fn end_all(ring: i32) {
        LOANS.with_borrow_mut(|loans| loans.retain(|loan| loan.ring != ring));
    }

    /// # Panics
    /// If the kernel holds any of this memory.
    pub(crate) fn assert_free(start: *const u8, bytes: usize, purpose: &str) {
        let memory = start.addr()..start.addr() + bytes;
        LOANS.with_borrow(|loans| {
            let loan = loans.iter().find(|loan| overlap(&loan.memory, &memory));
            if let Some(Loan { name, access, .. }) = loan {
                panic!("{purpose}: operation {name:016x} has that memory ({access:?})");
            }
        });
    }

    fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
        one.start < other.end && other.start < one.end
    }
}

#[cfg(not(debug_assertions))]
mod unnoted {
    use super::Access;

    #[inline(always)]
    pub(crate) fn lend(_: i32, _: u64, _: *const u8, _: usize, _: Access) {}
    #[inline(always)]
    pub(crate) fn end(_: i32, _: u64) {}
    #[inline(always)]
    pub(crate) fn end_all(_: i32) {}
    #[inline(always)]
    pub(crate) fn assert_free(_: *const u8, _: usize, _: &str) {}
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    /// Whether the outcome of `attempt` is a panic.
    fn panics(attempt: impl FnOnce()) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt)).is_err()
    }

    #[test]
    fn what_is_lent_is_not_lent_for_writing_nor_free() {
        let memory = [0u8; 64];
        let at = |offset: usize| memory[offset..].as_ptr();
        lend(5, 1, at(0), 16, Access::Read);
        lend(5, 2, at(8), 16, Access::Read);
        lend(5, 3, at(32), 16, Access::Sole);
        assert!(panics(|| lend(5, 4, at(15), 1, Access::Sole)));
        assert!(panics(|| lend(5, 4, at(47), 1, Access::Read)));
        assert!(panics(|| assert_free(at(20), 13, "a test")));
        assert_free(at(24), 8, "between two loans");
        end(6, 2);
        assert!(panics(|| assert_free(at(20), 1, "a test")), "another ring's operation");
        end(5, 2);
        assert_free(at(16), 16, "struck off");
        end_all(5);
        assert_free(at(0), 64, "struck off");
    }
}
