//! A core's own io_uring for client and peer sockets.
//!
//! glommio runs the core, but client bytes do not pass through its sockets: a plain receive, send
//! and poll per request costs twice the CPU of memcached. This ring exploits the server's access
//! pattern: one multishot accept per listener, one multishot receive per
//! connection, received bytes in buffers the kernel picks from a shared ring, one send per
//! connection and turn. DEFER_TASKRUN keeps all completion work inside our own `io_uring_enter`,
//! so a busy core takes no interrupts and a turn costs one system call.
//!
//! Most sends find room in the socket and are done before that call sleeps. They use MSG_DONTWAIT
//! with CQE_SKIP_SUCCESS, so they neither end the sleep they were submitted with nor need another
//! turn: no completion means sent, once it is certain that none will come, see `NetRing::all_told`.
//!
//! A completion applies to the operation that it names, including its generation. One that names
//! none in flight is ignored and counted. If the kernel has no room for completions it keeps them
//! and sets a flag; they are reaped before more is submitted, so that nothing waits for itself.
//!
//! The ring owns every byte the kernel may touch: a send takes its buffer and returns it with the
//! completion, so no caller can free or change memory in flight. Therefore this file may use
//! `unsafe` and its callers need not.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::request::ItemRef;

mod buffers;
mod in_flight;
pub(super) mod loans;
mod user_data;

use buffers::BufferRing;
pub use in_flight::SendOutcome;
use in_flight::{InFlight, Key, Lone, Message, Sends};
use loans::Access;
use user_data::{Kind, UserData};

/// Group number of the provided buffers; a ring has one group.
const BUFFER_GROUP: u16 = 0;

/// Maximum number of slots: an operation's user data has 24 bits for it.
pub const SLOTS_MAX: u32 = 1 << 24;

/// Identifies the connection or listener of an operation. The upper bits distinguish the users of a
/// reused slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Slot of the connection, below [`SLOTS_MAX`].
    pub index: u32,
    /// Counts the users of the slot; wraps.
    pub generation: u32,
}

/// Something the kernel has finished.
#[derive(Debug)]
pub enum NetEvent {
    /// A listener accepted a connection.
    Accepted {
        /// The listener's number.
        listener: u32,
        /// The new socket.
        socket: OwnedFd,
    },
    /// A listener stopped accepting; rearm it unless the node is shutting down.
    AcceptEnded {
        /// The listener's number.
        listener: u32,
        /// Why.
        error: Option<io::Error>,
    },
    /// Bytes arrived. Return the buffer with [`NetRing::recycle`].
    Received {
        /// Whose.
        token: Token,
        /// The buffer.
        buffer: Received,
        /// No more will arrive until the receive is rearmed.
        ended: bool,
    },
    /// The receive ended: the peer closed (`Ok`), it was cancelled, buffers ran out or it failed.
    ReceiveEnded {
        /// Whose.
        token: Token,
        /// `Ok` at the end of the stream.
        outcome: Result<(), i32>,
    },
    /// A receive into an item is done, with the number of bytes that arrived, 0 at the end of the
    /// stream.
    ReceivedInto {
        /// Whose.
        token: Token,
        /// Bytes received, or the error number.
        outcome: Result<usize, i32>,
    },
    /// A send is done; returns its buffer.
    Sent {
        /// Whose.
        token: Token,
        /// The bytes.
        output: SendBuffer,
        /// Its outcome.
        outcome: SendOutcome,
    },
    /// The heartbeat timer fired.
    Heartbeat,
    /// Another core or thread woke this ring.
    Woken,
}

/// A filled buffer of the buffer ring.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    id: u16,
    bytes: u32,
}

/// How long [`NetRing::wait`] sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitLimit {
    /// Until something completes.
    Endless,
    /// Until something completes, but no longer than this.
    Until(Duration),
}

/// Sizes of a [`NetRing`].
#[derive(Clone, Copy, Debug)]
pub struct NetRingConfig {
    /// Submission queue entries; a full queue is submitted early.
    pub entries: u32,
    /// Receive buffers, a power of two up to 32,768.
    pub buffer_count: u16,
    /// Size of each in bytes.
    pub buffer_bytes: u32,
}

/// The ring.
pub struct NetRing {
    ring: IoUring,
    buffers: BufferRing,
    sends: Sends,
    /// The accept of each listener.
    accepts: Vec<Lone>,
    bell: Lone,
    heartbeats: Lone,
    /// Receives into items in flight.
    fills: u32,
    /// Operations without their final completion: the kernel holds their sockets and memory.
    armed: u32,
    wakeup: OwnedFd,
    /// Buffer for reads of the eventfd's counter.
    eventfd_value: Box<u64>,
    heartbeat: Box<Timespec>,
    /// Reaped completions not processed yet.
    completions: Vec<cqueue::Entry>,
    /// Sends that complete only if they fail, since the last [`NetRing::reap`] that resolved all.
    sent_at_once: Vec<Key>,
    enters: u64,
    /// Completions that named no operation in flight.
    stale: u64,
    /// The task work flag was set although the last call had done all work.
    taskrun_flag_is_stale: bool,
}

/// Bytes to send: a buffer, interleaved with values sent directly from their items.
#[derive(Debug, Default)]
pub struct SendBuffer {
    /// Copied bytes.
    pub buffer: Vec<u8>,
    /// Values to send before the buffer's byte at their `at`, in order.
    pub pinned: Vec<Pinned>,
}

/// A value, or a part of one, that is sent from its item.
#[derive(Debug)]
pub struct Pinned {
    /// Position in the buffer before which it is sent.
    pub at: usize,
    /// The item, to be unpinned when the send is done.
    pub item: ItemRef,
    memory: NonNull<u8>,
    bytes: usize,
}

impl Pinned {
    /// `part` of `item`'s value, to be sent before the buffer's byte `at`.
    ///
    /// # Safety
    /// Until the send's completion, or until this is dropped unsent, the item stays pinned in its
    /// shard and the shard stays alive.
    pub unsafe fn new(at: usize, item: ItemRef, part: &[u8]) -> Self {
        Self { at, item, memory: NonNull::from(part).cast(), bytes: part.len() }
    }
}

impl Pinned {
    /// Checks, in builds with debug assertions, that no send holds this memory any longer.
    pub(super) fn assert_free(&self) {
        loans::assert_free(self.memory.as_ptr(), self.bytes, "a pinned value goes");
    }
}

impl SendBuffer {
    /// Length of everything in bytes.
    pub fn len(&self) -> usize {
        self.buffer.len() + self.pinned.iter().map(|pinned| pinned.bytes).sum::<usize>()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.pinned.is_empty()
    }

    /// The pieces in order, from byte `offset` on, up to the limit of one send.
    fn pieces(&self, offset: usize, pieces: &mut Vec<libc::iovec>) {
        let mut skip = offset;
        let mut left = SEND_BYTES_MAX;
        let mut add = |base: *const u8, bytes: usize| {
            let skipped = skip.min(bytes);
            skip -= skipped;
            let taken = (bytes - skipped).min(left);
            if taken > 0 && pieces.len() < SEND_PIECES_MAX {
                left -= taken;
                // In bounds: `skipped` is below `bytes`.
                let base = base.wrapping_add(skipped).cast_mut().cast();
                pieces.push(libc::iovec { iov_base: base, iov_len: taken });
            }
        };
        let mut at = 0;
        for pinned in &self.pinned {
            add(self.buffer[at..].as_ptr(), pinned.at - at);
            add(pinned.memory.as_ptr(), pinned.bytes);
            at = pinned.at;
        }
        add(self.buffer[at..].as_ptr(), self.buffer.len() - at);
    }
}

/// Maximum pieces of one send; the rest goes with the next.
const SEND_PIECES_MAX: usize = 64;
/// Maximum bytes of one send. The kernel copies up to the room in the socket, a few MB, in one go,
/// and the core does nothing else meanwhile.
pub const SEND_BYTES_MAX: usize = 512 << 10;

impl NetRing {
    /// A ring that is also woken by incrementing `wakeup`, an eventfd.
    ///
    /// # Errors
    /// If the kernel refuses the ring, the buffers or the eventfd.
    pub fn new(config: NetRingConfig, wakeup: OwnedFd) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(config.entries * 4)
            .build(config.entries)?;
        let buffers = BufferRing::new(&ring, config.buffer_count, config.buffer_bytes)?;
        let sends = Sends::of(ring.as_raw_fd());
        let mut net_ring = Self {
            ring,
            buffers,
            sends,
            accepts: Vec::new(),
            bell: Lone::default(),
            heartbeats: Lone::default(),
            fills: 0,
            armed: 0,
            wakeup,
            eventfd_value: Box::new(0),
            heartbeat: Box::new(Timespec::new()),
            completions: Vec::with_capacity(256),
            sent_at_once: Vec::with_capacity(64),
            enters: 0,
            stale: 0,
            taskrun_flag_is_stale: false,
        };
        net_ring.arm_eventfd();
        Ok(net_ring)
    }

    /// The descriptor that other rings send messages to.
    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Wakes another core's net ring, with descriptor `ring`, at the next submission.
    ///
    /// Rings are closed only when the process ends. If the descriptor is invalid by then, or not a
    /// ring, the kernel returns an error and nothing else happens; the target core has a heartbeat
    /// anyway.
    pub fn wake(&mut self, ring: RawFd) {
        let woken = UserData::new(Kind::Woken, 0, 0).encode();
        let entry = opcode::MsgRingData::new(Fd(ring), 0, woken, None)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(UserData::new(Kind::Wake, 0, 0).encode());
        // SAFETY: the entry points to no memory.
        unsafe { self.push(&entry) }
        // A delivered message completes there, not here.
        self.armed -= 1;
    }

    fn arm_eventfd(&mut self) {
        let name = UserData::new(Kind::Bell, 0, self.bell.arm());
        let entry = opcode::Read::new(
            Fd(self.wakeup.as_raw_fd()),
            (&raw mut *self.eventfd_value).cast(),
            8,
        )
        .build()
        .user_data(name.encode());
        // SAFETY: the counter is boxed, used only here and by one read at a time, as `Lone`
        // asserts; `drop` reaps its completion before it is freed.
        unsafe { self.push(&entry) }
    }

    /// System calls made so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Completions so far that named no operation in flight, or one of a closed connection. There
    /// are none unless the kernel or this program has a bug.
    pub fn stale_completions(&self) -> u64 {
        self.stale
    }

    /// Counts a completion that names no existing operation.
    #[cold]
    pub fn note_stale(&mut self) {
        self.stale += 1;
        // Few log lines, however many there are.
        if self.stale.is_power_of_two() {
            log::error!("{} completions named no operation under way", self.stale);
        }
    }

    /// Accepts connections of `listener` until cancelled; each becomes an event. `number`
    /// identifies the listener.
    ///
    /// # Panics
    /// If it is already accepting.
    pub fn accept(&mut self, listener: RawFd, number: u32) {
        if self.accepts.len() <= number as usize {
            self.accepts.resize(number as usize + 1, Lone::default());
        }
        let generation = self.accepts[number as usize].arm();
        let entry = opcode::AcceptMulti::new(Fd(listener))
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(UserData::new(Kind::Accept, number, generation).encode());
        // SAFETY: the entry points to no memory.
        unsafe { self.push(&entry) }
    }

    /// Receives from `socket` until the stream ends, an error, or buffers run out.
    pub fn receive(&mut self, socket: RawFd, token: Token) {
        let name = UserData::new(Kind::Receive, token.index, token.generation);
        let entry =
            opcode::RecvMulti::new(Fd(socket), BUFFER_GROUP).build().user_data(name.encode());
        // SAFETY: the entry points to no memory; the kernel takes buffers from the registered
        // ring, which lives as long as `self`.
        unsafe { self.push(&entry) }
    }

    /// Receives at most `bytes` bytes from `socket` into one provided buffer.
    pub fn receive_once(&mut self, socket: RawFd, token: Token, bytes: u32) {
        let entry = opcode::Recv::new(Fd(socket), std::ptr::null_mut(), bytes)
            .buf_group(BUFFER_GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT)
            .user_data(UserData::new(Kind::Receive, token.index, token.generation).encode());
        // SAFETY: as for `receive`.
        unsafe { self.push(&entry) }
    }

    /// Receives from `socket` until `place` is full, the stream ends or an error.
    ///
    /// # Safety
    /// Nobody reads, writes or frees the place until [`NetEvent::ReceivedInto`] arrives.
    pub unsafe fn recv_into(&mut self, socket: RawFd, token: Token, place: &mut [u8]) {
        let entry = opcode::Recv::new(Fd(socket), place.as_mut_ptr(), place.len() as u32)
            .flags(libc::MSG_WAITALL)
            .build()
            .user_data(UserData::new(Kind::ReceiveInto, token.index, token.generation).encode());
        loans::lend(self.fd(), entry.get_user_data(), place.as_ptr(), place.len(), Access::Sole);
        self.fills += 1;
        // SAFETY: the caller guarantees the destination.
        unsafe { self.push(&entry) }
    }

    /// Stops the receive of `token`; its end arrives as an event.
    pub fn cancel_receive(&mut self, token: Token) {
        let Token { index, generation } = token;
        let receive = UserData::new(Kind::Receive, index, generation);
        let entry = opcode::AsyncCancel::new(receive.encode())
            .build()
            .user_data(UserData::new(Kind::Cancel, index, generation).encode());
        // SAFETY: the entry points to no memory.
        unsafe { self.push(&entry) }
    }

    /// Sends as much of `output` as there is room for; its pinned values are not included. It comes
    /// back with [`NetEvent::Sent`], but unless it fails that does not end a sleep.
    pub fn send_at_once(&mut self, socket: RawFd, token: Token, output: SendBuffer) {
        // With the last flag a partial send counts as a failure, so that it completes.
        const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL;
        debug_assert!(output.pinned.is_empty());
        let (start, bytes) = (output.buffer.as_ptr(), output.buffer.len() as u32);
        let key = self.sends.insert(InFlight { token, output, offset: 0, message: None });
        let entry = opcode::Send::new(Fd(socket), start, bytes)
            .flags(FLAGS)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(UserData::new(Kind::SendAtOnce, key.index, key.generation).encode());
        // SAFETY: the buffer's heap block stays in `sends`, untouched, until its completion is
        // reaped or `all_told` establishes that none will come.
        unsafe { self.push(&entry) }
        self.armed -= 1;
        self.sent_at_once.push(key);
    }

    /// Sends `output` from byte `offset` on, at most [`SEND_BYTES_MAX`]. It comes back with
    /// [`NetEvent::Sent`], which reports the progress.
    pub fn send(&mut self, socket: RawFd, token: Token, output: SendBuffer, offset: usize) {
        const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let (entry, message) = if output.pinned.is_empty() {
            let rest = &output.buffer[offset..];
            let rest = &rest[..rest.len().min(SEND_BYTES_MAX)];
            let send = opcode::Send::new(Fd(socket), rest.as_ptr(), rest.len() as u32);
            (send.flags(FLAGS).build(), None)
        } else {
            let mut pieces = Vec::with_capacity(2 * output.pinned.len() + 1);
            output.pieces(offset, &mut pieces);
            // SAFETY: all-zero bytes are a valid message header.
            let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
            header.msg_iov = pieces.as_mut_ptr();
            header.msg_iovlen = pieces.len() as _;
            let message = Box::new(Message { header, pieces });
            let send = opcode::SendMsg::new(Fd(socket), &message.header);
            (send.flags(FLAGS as u32).build(), Some(message))
        };
        let key = self.sends.insert(InFlight { token, output, offset, message });
        let name = UserData::new(Kind::Send, key.index, key.generation);
        let entry = entry.user_data(name.encode());
        // SAFETY: everything the entry points to, the buffer's heap block, the boxed header and the
        // heap block of its pieces, stays in `sends`, untouched, until its own completion is
        // reaped; pinned values stay by the contract of `Pinned::new`. `drop` reaps all completions
        // first.
        unsafe { self.push(&entry) }
    }

    /// Schedules one [`NetEvent::Heartbeat`] after `millis` milliseconds.
    ///
    /// # Panics
    /// If one is already scheduled.
    pub fn heartbeat(&mut self, millis: u32) {
        *self.heartbeat =
            Timespec::new().sec(u64::from(millis / 1000)).nsec(millis % 1000 * 1_000_000);
        let name = UserData::new(Kind::Heartbeat, 0, self.heartbeats.arm());
        let entry = opcode::Timeout::new(&*self.heartbeat).build().user_data(name.encode());
        // SAFETY: the timespec is boxed and lives as long as `self`; the kernel copies it at
        // submission.
        unsafe { self.push(&entry) }
    }

    /// Queues an entry, submitting first if the queue is full.
    ///
    /// # Safety
    /// Everything the entry points to must live until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        self.armed += 1;
        // SAFETY: the caller guarantees the entry.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.make_room();
        }
    }

    /// Submits queued entries before the end of the turn, and reaps completions: the kernel may
    /// have no room for them, and refuse to continue until it has.
    #[cold]
    fn make_room(&mut self) {
        if let Err(error) = self.submit() {
            panic!("io_uring refused a submission: {error}");
        }
        self.completions.extend(self.ring.completion());
    }

    /// Submits queued entries and lets the kernel finish work, without waiting.
    ///
    /// # Errors
    /// Permanent errors of `io_uring_enter`.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enters += 1;
        let queued = self.ring.submission().len() as u32;
        const GETEVENTS: u32 = 1;
        // SAFETY: no argument structure is passed; queued entries were guaranteed when pushed.
        let outcome =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None) };
        self.check_taskrun_flag();
        match outcome {
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Submits queued entries and sleeps until a completion arrives or the wait limit is reached.
    ///
    /// # Errors
    /// Permanent errors of `io_uring_enter`.
    pub fn wait(&mut self, limit: WaitLimit) -> io::Result<()> {
        if !self.completions.is_empty() {
            return self.submit();
        }
        self.enters += 1;
        let timeout;
        let mut arguments = SubmitArgs::new();
        if let WaitLimit::Until(limit) = limit {
            timeout = Timespec::from(limit);
            arguments = arguments.timespec(&timeout);
        }
        let outcome = self.ring.submitter().submit_with_args(1, &arguments);
        self.check_taskrun_flag();
        match outcome {
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether anything is queued for submission.
    pub fn has_submissions(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Whether completions wait, here or in the kernel's task work. Costs no system call. Also
    /// false while the kernel's task work flag is unreliable; then [`NetRing::wait`] finds out.
    pub fn has_work(&mut self) -> bool {
        let flagged = self.is_flagged() && !self.taskrun_flag_is_stale;
        flagged || !self.ring.completion().is_empty() || !self.completions.is_empty()
    }

    /// Whether the kernel signals work beyond the queued entries.
    pub fn is_flagged(&mut self) -> bool {
        let submission = self.ring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Whether [`NetRing::has_work`] is unreliable.
    pub fn taskrun_flag_unreliable(&self) -> bool {
        self.taskrun_flag_is_stale
    }

    /// The kernel clears its flag before it takes the work, so work added in between sets it
    /// although it is taken along. The flag then stays set until work is done the next time; a core
    /// that trusted it would call in vain until then, for milliseconds when little happens.
    fn check_taskrun_flag(&mut self) {
        self.taskrun_flag_is_stale = self.is_flagged() && self.ring.completion().is_empty();
    }

    /// Appends completed operations to `events`.
    pub fn reap(&mut self, events: &mut Vec<NetEvent>) {
        const AT_ONCE: u64 = Kind::SendAtOnce as u64;
        let kind = |completion: &cqueue::Entry| completion.user_data() >> 56;
        let mut completions = std::mem::take(&mut self.completions);
        // In this order: a certainty established now covers everything reaped afterwards.
        let any_at_once = !self.sent_at_once.is_empty();
        let all_told = any_at_once && self.all_told();
        completions.extend(self.ring.completion());
        if any_at_once {
            let failed = completions.iter().filter(|completion| kind(completion) == AT_ONCE);
            failed.for_each(|completion| self.event(completion, events));
        }
        if all_told {
            self.end_sent_at_once(events);
        }
        for completion in &completions {
            if !any_at_once || kind(completion) != AT_ONCE {
                self.event(completion, events);
            }
        }
        completions.clear();
        // Operations rearmed meanwhile may have reaped more.
        let more = std::mem::replace(&mut self.completions, completions);
        self.completions.extend(more);
    }

    /// Whether all existing completions of non-blocking sends are where [`NetRing::reap`] finds
    /// them.
    ///
    /// The kernel removes an entry from the submission queue only after it has executed it as far
    /// as possible without waiting. For a send with MSG_DONTWAIT that is completely (`io_send` in
    /// io_uring/net.c): such a request is never left to a worker, nor until there is room, not even
    /// with MSG_WAITALL (`REQ_F_NOWAIT` in `io_queue_async`), unless it is asynchronous, linked or
    /// drained, which none here is. Its bytes have been copied when it returns, since it is not a
    /// zero-copy send; and if it has not sent all of them, its completion is posted before the head
    /// of the queue moves, even if success completions are skipped. The location of that completion
    /// varies: if there was no room the kernel keeps it and sets a flag; if there was no memory
    /// either it is lost, which is counted.
    fn all_told(&mut self) -> bool {
        let submission = self.ring.submission();
        let told = submission.is_empty() && !submission.cq_overflow();
        drop(submission);
        let lost = self.ring.completion().overflow();
        assert_eq!(lost, 0, "the kernel had no memory to tell what has become of operations");
        told
    }

    /// Ends the non-blocking sends without a completion, which have succeeded.
    fn end_sent_at_once(&mut self, events: &mut Vec<NetEvent>) {
        for key in self.sent_at_once.drain(..) {
            // Failed ones are already removed, and the new users of their slots have other keys.
            if let Some(InFlight { token, output, .. }) = self.sends.remove(key) {
                events.push(NetEvent::Sent { token, output, outcome: SendOutcome::Whole });
            }
        }
    }

    fn event(&mut self, completion: &cqueue::Entry, events: &mut Vec<NetEvent>) {
        let (result, flags) = (completion.result(), completion.flags());
        let Some(name) = UserData::decode(completion.user_data()) else {
            return self.note_stale();
        };
        let more = cqueue::more(flags);
        let UserData { kind, index, generation } = name;
        let token = Token { index, generation };
        let own = match kind {
            Kind::Receive => {
                self.received(token, result, flags, events);
                true
            }
            Kind::Send | Kind::SendAtOnce => self.sent(Key { index, generation }, result, events),
            Kind::Accept => {
                let own = self.accepts.get_mut(index as usize);
                let own = own.is_some_and(|accept| accept.completes(generation, more));
                accepted(index, result, own, more, events);
                own
            }
            Kind::ReceiveInto => {
                let own = self.fills > 0;
                loans::end(self.fd(), name.encode());
                self.fills -= u32::from(own);
                let outcome = if result >= 0 { Ok(result as usize) } else { Err(-result) };
                events.extend(own.then_some(NetEvent::ReceivedInto { token, outcome }));
                own
            }
            Kind::Heartbeat => {
                let own = self.heartbeats.completes(generation, more);
                events.extend(own.then_some(NetEvent::Heartbeat));
                own
            }
            Kind::Bell => {
                let own = self.bell.completes(generation, more);
                events.push(NetEvent::Woken);
                if own && result >= 0 {
                    self.arm_eventfd();
                }
                own
            }
            Kind::Woken => {
                events.push(NetEvent::Woken);
                true
            }
            Kind::Cancel | Kind::Wake => true,
        };
        if !own {
            return self.note_stale();
        }
        // Messages between rings and non-blocking sends do not count as armed.
        let armed = !matches!(kind, Kind::Wake | Kind::Woken | Kind::SendAtOnce);
        self.armed = self.armed.saturating_sub(u32::from(armed && !more));
    }

    fn received(&mut self, token: Token, result: i32, flags: u32, events: &mut Vec<NetEvent>) {
        let more = cqueue::more(flags);
        if let Some(id) = cqueue::buffer_select(flags) {
            let buffer = Received { id, bytes: result.max(0) as u32 };
            self.buffers.filled(id);
            if result > 0 {
                events.push(NetEvent::Received { token, buffer, ended: !more });
                return;
            }
            self.recycle(buffer);
        }
        if !more {
            let outcome = if result >= 0 { Ok(()) } else { Err(-result) };
            events.push(NetEvent::ReceiveEnded { token, outcome });
        }
    }

    /// Ends a send; false if it has ended before.
    fn sent(&mut self, key: Key, result: i32, events: &mut Vec<NetEvent>) -> bool {
        let Some(InFlight { token, output, offset, .. }) = self.sends.remove(key) else {
            return false;
        };
        let outcome = SendOutcome::of(result, offset, output.len());
        events.push(NetEvent::Sent { token, output, outcome });
        true
    }

    /// The received bytes.
    pub fn bytes(&self, received: &Received) -> &[u8] {
        self.buffers.bytes(received)
    }

    /// Returns a buffer to the kernel, which sees it at the next submission at the latest.
    pub fn recycle(&mut self, received: Received) {
        self.buffers.recycle(received.id);
    }
}

/// A listener's completion; closes the socket of an unexpected one.
fn accepted(listener: u32, result: i32, expected: bool, more: bool, events: &mut Vec<NetEvent>) {
    // SAFETY: the kernel just created this descriptor for us; no one else knows it.
    let socket = (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) });
    if !expected {
        return;
    }
    events.extend(socket.map(|socket| NetEvent::Accepted { listener, socket }));
    if !more {
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        events.push(NetEvent::AcceptEnded { listener, error });
    }
}

/// How often everything is cancelled when a ring is dropped, and how long each attempt waits for
/// the final completions.
const CANCEL_ROUNDS_MAX: u32 = 200;
const CANCEL_ROUND: Duration = Duration::from_millis(5);

/// Interrupted, or out of room for completions until some are reaped.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

impl Drop for NetRing {
    fn drop(&mut self) {
        // The kernel may still be sending from buffers in flight, and it holds the listeners, whose
        // addresses a successor may need at once. Cancel everything and reap until nothing is left,
        // so that no memory is freed while in use. Reaping may rearm operations, as for the
        // eventfd, hence a cancellation in every round.
        let mut events = Vec::new();
        for _ in 0..CANCEL_ROUNDS_MAX {
            let _ = self.ring.submit();
            let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
            self.reap(&mut events);
            events.clear();
            if self.armed == 0 {
                break;
            }
            let _ = self.wait(WaitLimit::Until(CANCEL_ROUND));
        }
        loans::end_all(self.fd());
        let pinned = self.sends.iter().any(|send| !send.output.pinned.is_empty());
        if self.fills > 0 || pinned {
            // The ring must not outlive the items that its caller frees next.
            log::error!("the kernel does not let go of items in flight; the process ends");
            std::process::abort();
        }
        let _ = self.ring.submitter().unregister_buf_ring(BUFFER_GROUP);
        if self.armed > 0 {
            // Leak everything that the kernel may still touch.
            std::mem::forget(std::mem::replace(&mut self.sends, Sends::of(-1)));
            std::mem::forget(std::mem::take(&mut self.eventfd_value));
            return;
        }
        fence(Ordering::SeqCst);
        // SAFETY: the buffer ring is unregistered and all receives are cancelled.
        unsafe { self.buffers.free() }
    }
}

#[cfg(test)]
mod tests;
