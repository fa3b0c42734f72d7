//! One thread's sockets on one io_uring: the only module with `unsafe`.
//!
//! A [`Net`] owns every byte the kernel may touch: the receive buffers, lent to the kernel through
//! a provided buffer ring, and the send buffers, moved in by [`Net::send`] and moved out with
//! [`SocketEvent::Sent`]. A connection is a slot with a number. Receives are multishot, one request
//! for the life of a connection; sends go out one at a time per slot, so their bytes keep their
//! order; everything of a turn is submitted with the system call that waits for the next.
//!
//! Refused: an async runtime (its bookkeeping costs more per request than the whole budget of
//! 0.5 µs) and epoll (two system calls per connection and turn).

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::{Domain, SockAddr, Socket, Type};

/// What happened to a slot. Bytes received are lent until the next call of [`Net::next`].
#[derive(Debug)]
pub enum SocketEvent<'n> {
    /// The connection is open and being received from.
    Connected {
        /// Which connection.
        slot: usize,
    },
    /// Bytes arrived.
    Received {
        /// Which connection.
        slot: usize,
        /// The bytes, at least one.
        bytes: &'n [u8],
    },
    /// All of a buffer was handed to the kernel.
    Sent {
        /// Which connection.
        slot: usize,
        /// The buffer, cleared, for use again.
        buffer: Vec<u8>,
    },
    /// The connection failed or the other side closed it (no error). It must be closed now.
    Lost {
        /// Which connection.
        slot: usize,
        /// Why; `None` for an orderly close by the other side.
        error: Option<io::Error>,
    },
    /// After [`Net::close`]: the old connection is gone, the slot can be reopened.
    Closed {
        /// Which connection.
        slot: usize,
    },
}

/// How long [`Net::wait`] may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollWait {
    /// Do not wait: submit, and collect ready completions.
    None,
    /// Until something happens or this span is over.
    AtMost(Duration),
}

/// The sockets of one thread. See the module.
pub struct Net {
    ring: IoUring,
    /// `ManuallyDrop`, so that they can be leaked if the kernel does not release them.
    buffers: ManuallyDrop<Buffers>,
    slots: ManuallyDrop<Vec<Slot>>,
    connect_timeout: Box<Timespec>,
    /// Completions of this turn not yet turned into events, in reverse order.
    ready: Vec<Completion>,
    ready_at: usize,
    /// The receive buffer lent with the last event.
    lent: Option<u16>,
    /// Events without a completion.
    extra: Vec<usize>,
    /// Operations the kernel has not finished.
    in_flight: usize,
}

#[derive(Default)]
struct Slot {
    socket: Option<Socket>,
    address: Option<Box<SockAddr>>,
    sending: Option<Vec<u8>>,
    sent_bytes: usize,
    /// Operations of this slot the kernel has not finished.
    in_flight: u32,
    closing: bool,
    /// Whether [`SocketEvent::Lost`] has been reported for this connection.
    lost: bool,
}

struct Completion {
    slot: u32,
    kind: Kind,
    result: i32,
    flags: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connect,
    ConnectTimeout,
    Receive,
    Send,
    Cancel,
}

const KINDS: [Kind; 5] =
    [Kind::Connect, Kind::ConnectTimeout, Kind::Receive, Kind::Send, Kind::Cancel];

const BUFFER_GROUP: u16 = 0;
const SUBMISSIONS: u32 = 1024;

impl Net {
    /// Sockets for up to `slots` connections, received into `buffer_count` (a power of two)
    /// buffers of `buffer_bytes`. Belongs to the calling thread.
    pub fn new(slots: usize, buffer_count: u16, buffer_bytes: usize) -> io::Result<Self> {
        // A wake-up for an intended send time must not be rounded to the default 50 µs.
        // SAFETY: sets a number of the calling thread; no memory is involved.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(SUBMISSIONS * 8)
            .build(SUBMISSIONS)?;
        let buffers = Buffers::new(buffer_count, buffer_bytes);
        // SAFETY: the ring memory is page-aligned, `buffer_count` entries long and lives until
        // `Drop` has seen every operation finish, or is leaked.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                buffers.ring.as_ptr() as u64,
                buffer_count,
                BUFFER_GROUP,
                0,
            )?;
        }
        Ok(Self {
            ring,
            buffers: ManuallyDrop::new(buffers),
            slots: ManuallyDrop::new((0..slots).map(|_| Slot::default()).collect()),
            connect_timeout: Box::new(Timespec::new().sec(2)),
            ready: Vec::with_capacity(SUBMISSIONS as usize),
            ready_at: 0,
            lent: None,
            extra: Vec::new(),
            in_flight: 0,
        })
    }

    /// Starts connecting a slot that is new or closed. The outcome comes as
    /// [`SocketEvent::Connected`] or [`SocketEvent::Lost`], within two seconds.
    pub fn open(&mut self, slot: usize, address: &SockAddr) -> io::Result<()> {
        let entry = &mut self.slots[slot];
        assert!(entry.socket.is_none(), "slot {slot} is in use");
        let socket = Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, None)?;
        if !address.is_unix() {
            socket.set_tcp_nodelay(true)?;
        }
        let fd = Fd(socket.as_raw_fd());
        let address = entry.address.insert(Box::new(address.clone()));
        let connect = opcode::Connect::new(fd, address.as_ptr().cast(), address.len())
            .build()
            .flags(squeue::Flags::IO_LINK);
        let timeout = opcode::LinkTimeout::new(&*self.connect_timeout).build();
        *entry = Slot { socket: Some(socket), address: entry.address.take(), ..Slot::default() };
        // A full queue must not separate a linked pair.
        self.room(2);
        self.push(slot, Kind::Connect, connect);
        self.push(slot, Kind::ConnectTimeout, timeout);
        Ok(())
    }

    /// Whether a buffer of this slot is in flight, so that no other may be sent.
    #[inline]
    pub fn is_sending(&self, slot: usize) -> bool {
        self.slots[slot].sending.is_some()
    }

    /// Sends all of `buffer`. The slot must be open and not sending.
    #[inline]
    pub fn send(&mut self, slot: usize, buffer: Vec<u8>) {
        let entry = &mut self.slots[slot];
        assert!(entry.sending.is_none(), "slot {slot} is sending already");
        entry.sending = Some(buffer);
        entry.sent_bytes = 0;
        self.send_rest(slot);
    }

    /// Closes a connection, open or not. [`SocketEvent::Closed`] follows once the kernel has
    /// released it.
    pub fn close(&mut self, slot: usize) {
        let entry = &mut self.slots[slot];
        entry.closing = true;
        if let Some(socket) = &entry.socket {
            // Fails if it was never connected: then the cancellation below ends it.
            let _ = socket.shutdown(std::net::Shutdown::Both);
            if entry.in_flight > 0 {
                let fd = Fd(socket.as_raw_fd());
                let builder = io_uring::types::CancelBuilder::fd(fd).all();
                self.push(slot, Kind::Cancel, opcode::AsyncCancel2::new(builder).build());
                return;
            }
        }
        self.extra.push(slot);
    }

    /// Submits everything queued and waits for an event as long as `patience` allows.
    #[inline]
    pub fn wait(&mut self, patience: PollWait) -> io::Result<()> {
        self.settle();
        let idle = self.extra.is_empty() && self.ring.completion().is_empty();
        let span = match patience {
            PollWait::AtMost(span) if idle && !span.is_zero() => Some(span),
            _ => None,
        };
        let (queued, work) = {
            let submissions = self.ring.submission();
            (submissions.len() as u32, submissions.taskrun())
        };
        let submitter = self.ring.submitter();
        let result = match span {
            Some(span) => {
                let timespec = Timespec::from(span);
                let args = SubmitArgs::new().timespec(&timespec);
                submitter.submit_with_args(1, &args)
            }
            None if queued == 0 && !work => Ok(0),
            // SAFETY: no argument is passed. GETEVENTS runs the work that finishes operations,
            // which the kernel otherwise defers until a wait.
            None => unsafe {
                const GETEVENTS: u32 = 1;
                submitter.enter::<libc::sigset_t>(queued, 0, GETEVENTS, None)
            },
        };
        match result {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // Timeout, a signal, or completions must be collected first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => return Err(error),
            },
        }
        self.collect();
        Ok(())
    }

    /// The next event; after `None` call [`Net::wait`] again.
    #[inline]
    pub fn next(&mut self) -> Option<SocketEvent<'_>> {
        self.settle();
        while self.ready_at < self.ready.len() {
            let completion = &self.ready[self.ready_at];
            self.ready_at += 1;
            let (slot, result, flags) =
                (completion.slot as usize, completion.result, completion.flags);
            let last = !cqueue::more(flags);
            let entry = &mut self.slots[slot];
            if last {
                entry.in_flight -= 1;
                self.in_flight -= 1;
            }
            let lent = match completion.kind {
                Kind::Receive => cqueue::buffer_select(flags),
                _ => None,
            };
            if entry.closing {
                self.lent = lent;
                if last && entry.in_flight == 0 {
                    return Some(self.closed(slot));
                }
                self.settle();
                continue;
            }
            match completion.kind {
                Kind::ConnectTimeout | Kind::Cancel => {}
                Kind::Connect if result == 0 => {
                    self.receive(slot);
                    return Some(SocketEvent::Connected { slot });
                }
                Kind::Connect => {
                    // The linked timeout ends a connect as cancelled.
                    let code = if result == -libc::ECANCELED { libc::ETIMEDOUT } else { -result };
                    return Some(self.lost(slot, code));
                }
                Kind::Receive if result > 0 => {
                    if last {
                        self.receive(slot);
                    }
                    self.lent = lent;
                    let buffer = lent.expect("a receive that selects buffers names its buffer");
                    return Some(SocketEvent::Received {
                        slot,
                        bytes: self.buffers.bytes(buffer, result as usize),
                    });
                }
                Kind::Receive => {
                    self.lent = lent;
                    self.settle();
                    if result == -libc::ENOBUFS {
                        self.receive(slot);
                    } else if !self.slots[slot].lost {
                        return Some(self.lost(slot, -result));
                    }
                }
                Kind::Send if result > 0 => {
                    entry.sent_bytes += result as usize;
                    let buffer = entry.sending.as_mut().expect("only a queued buffer is sent");
                    if entry.sent_bytes < buffer.len() {
                        self.send_rest(slot);
                    } else {
                        let mut buffer = entry.sending.take().expect("seen above");
                        buffer.clear();
                        return Some(SocketEvent::Sent { slot, buffer });
                    }
                }
                Kind::Send => {
                    if !entry.lost {
                        return Some(self.lost(slot, -result));
                    }
                }
            }
        }
        self.extra.pop().map(|slot| self.closed(slot))
    }

    fn closed(&mut self, slot: usize) -> SocketEvent<'_> {
        self.slots[slot] = Slot::default();
        SocketEvent::Closed { slot }
    }

    fn lost(&mut self, slot: usize, code: i32) -> SocketEvent<'_> {
        self.slots[slot].lost = true;
        let error = (code != 0).then(|| io::Error::from_raw_os_error(code));
        SocketEvent::Lost { slot, error }
    }

    fn receive(&mut self, slot: usize) {
        let socket = self.slots[slot].socket.as_ref().expect("an open slot has a socket");
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), BUFFER_GROUP).build();
        self.push(slot, Kind::Receive, entry);
    }

    #[inline]
    fn send_rest(&mut self, slot: usize) {
        let entry = &self.slots[slot];
        let socket = entry.socket.as_ref().expect("only an open slot sends");
        let rest = &entry.sending.as_ref().expect("set by send")[entry.sent_bytes..];
        let length = rest.len().min(1 << 30) as u32;
        let operation = opcode::Send::new(Fd(socket.as_raw_fd()), rest.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(slot, Kind::Send, operation);
    }

    /// Returns the last event's receive buffer to the kernel.
    #[inline]
    fn settle(&mut self) {
        if let Some(buffer) = self.lent.take() {
            self.buffers.give_back(buffer);
        }
    }

    #[inline]
    fn collect(&mut self) {
        debug_assert!(self.ready_at == self.ready.len(), "told all events before waiting");
        self.ready.clear();
        self.ready_at = 0;
        for completion in self.ring.completion() {
            let data = completion.user_data();
            self.ready.push(Completion {
                slot: (data >> 8) as u32,
                kind: KINDS[data as usize & 0xFF],
                result: completion.result(),
                flags: completion.flags(),
            });
        }
    }

    /// Makes room for `count` submissions, by submitting what is queued.
    fn room(&mut self, count: usize) {
        loop {
            let submissions = self.ring.submission();
            if submissions.capacity() - submissions.len() >= count {
                return;
            }
            drop(submissions);
            // An error here (completions to be collected first) leaves the queue full; the kernel
            // keeps overflown completions, so that trying again ends.
            let _ = self.ring.submit();
        }
    }

    #[inline]
    fn push(&mut self, slot: usize, kind: Kind, operation: squeue::Entry) {
        self.slots[slot].in_flight += 1;
        self.in_flight += 1;
        let operation = operation.user_data((slot as u64) << 8 | kind as u64);
        loop {
            // SAFETY: what the operation points to is the slot's address or send buffer, the
            // timeout, or nothing. All are on the heap, owned by this `Net`, and neither moved nor
            // freed before the operation's completion: a slot is reset only when it has none in
            // flight, a buffer is taken out only when its send is complete, and `Drop` waits for
            // all or leaks.
            if unsafe { self.ring.submission().push(&operation) }.is_ok() {
                return;
            }
            self.room(1);
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        while self.next().is_some() {}
        for slot in 0..self.slots.len() {
            if self.slots[slot].socket.is_some() {
                self.close(slot);
            }
        }
        for _ in 0..100 {
            while self.next().is_some() {}
            if self.in_flight == 0
                || self.wait(PollWait::AtMost(Duration::from_millis(20))).is_err()
            {
                break;
            }
        }
        if self.in_flight == 0 {
            let _ = self.ring.submitter().unregister_buf_ring(BUFFER_GROUP);
            // SAFETY: neither is used again, and no operation that names their memory is left.
            unsafe {
                ManuallyDrop::drop(&mut self.buffers);
                ManuallyDrop::drop(&mut self.slots);
            }
        }
    }
}

/// The receive buffers and the ring through which they are lent to the kernel.
struct Buffers {
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    count: u16,
    buffer_bytes: usize,
    tail: u16,
}

const PAGE: usize = 4096;

impl Buffers {
    fn new(count: u16, buffer_bytes: usize) -> Self {
        assert!(count.is_power_of_two() && buffer_bytes > 0);
        // SAFETY: both layouts have a size above zero.
        let (ring, memory) = unsafe {
            (
                alloc_zeroed(Self::ring_layout(count)),
                alloc_zeroed(Self::layout(count, buffer_bytes)),
            )
        };
        let (Some(ring), Some(memory)) = (NonNull::new(ring.cast()), NonNull::new(memory)) else {
            handle_alloc_error(Self::layout(count, buffer_bytes))
        };
        let mut buffers = Self { ring, memory, count, buffer_bytes, tail: 0 };
        (0..count).for_each(|buffer| buffers.give_back(buffer));
        buffers
    }

    fn ring_layout(count: u16) -> Layout {
        Layout::from_size_align(count as usize * size_of::<BufRingEntry>(), PAGE).expect("small")
    }

    fn layout(count: u16, buffer_bytes: usize) -> Layout {
        Layout::from_size_align(count as usize * buffer_bytes, PAGE).expect("bounded by settings")
    }

    /// The first `length` bytes of a buffer the kernel has filled and not been given back.
    #[inline]
    fn bytes(&self, buffer: u16, length: usize) -> &[u8] {
        assert!(buffer < self.count && length <= self.buffer_bytes);
        // SAFETY: within the allocation by the assertion, initialised (zeroed at first), and not
        // written while lent: the kernel gets the buffer back only in `settle`, which needs the
        // `Net` mutably and so ends the loan.
        unsafe {
            let start = self.memory.as_ptr().add(buffer as usize * self.buffer_bytes);
            std::slice::from_raw_parts(start, length)
        }
    }

    #[inline]
    fn give_back(&mut self, buffer: u16) {
        assert!(buffer < self.count);
        // SAFETY: the entry is inside the ring by the mask; the kernel reads it only after the
        // tail's release store below. The tail shares the first entry's last bytes, which
        // `set_addr`, `set_len` and `set_bid` leave alone.
        unsafe {
            let entry = &mut *self.ring.as_ptr().add((self.tail & (self.count - 1)) as usize);
            entry.set_addr(self.memory.as_ptr() as u64 + buffer as u64 * self.buffer_bytes as u64);
            entry.set_len(self.buffer_bytes as u32);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.ring.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with these layouts.
        unsafe {
            dealloc(self.ring.as_ptr().cast(), Self::ring_layout(self.count));
            dealloc(self.memory.as_ptr(), Self::layout(self.count, self.buffer_bytes));
        }
    }
}
