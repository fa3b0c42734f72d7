//! A core's own io_uring for client and peer sockets.
//!
//! glommio runs the core, but client bytes do not pass through its sockets: a plain receive, send
//! and poll per request costs twice the CPU of memcached. This ring uses what the kernel offers to
//! a server that knows its pattern: one multishot accept per listener, one multishot receive per
//! connection, received bytes in buffers the kernel picks from a shared ring, one send per
//! connection and turn. DEFER_TASKRUN keeps all completion work inside our own `io_uring_enter`,
//! so a busy core takes no interrupts and a turn costs one system call.
//!
//! The ring owns every byte the kernel may touch: a send takes its buffer and gives it back with
//! the completion, so no caller can free or change memory that is in flight. That is why this file
//! may use `unsafe` and its callers need not.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use slab::Slab;

use crate::request::ItemRef;

/// Group number of the provided buffers; a ring has one group.
const BUFFER_GROUP: u16 = 0;

/// Names the connection or listener an operation belongs to. The upper bits tell apart the users
/// of a reused slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Slot of the connection, below 2^24.
    pub index: u32,
    /// Counts the users of the slot; wraps.
    pub generation: u32,
}

/// Something the kernel has finished.
#[derive(Debug)]
pub enum Event {
    /// A listener accepted a connection.
    Accepted {
        /// The listener's number.
        listener: u32,
        /// The new socket.
        socket: OwnedFd,
    },
    /// A listener stopped accepting; arm it again unless the node is shutting down.
    AcceptEnded {
        /// The listener's number.
        listener: u32,
        /// Why.
        error: Option<io::Error>,
    },
    /// Bytes arrived. The buffer must be given back with [`NetRing::recycle`].
    Received {
        /// Whose.
        token: Token,
        /// Where they are.
        buffer: Received,
        /// No more will arrive until the receive is armed again.
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
    Filled {
        /// Whose.
        token: Token,
        /// Bytes received, or the error number.
        outcome: Result<usize, i32>,
    },
    /// A send is done and its buffer comes back, with the number of bytes sent.
    Sent {
        /// Whose.
        token: Token,
        /// The bytes.
        output: Output,
        /// Bytes sent, or the error number.
        outcome: Result<usize, i32>,
    },
    /// The heartbeat timer fired.
    Heartbeat,
}

/// A filled buffer of the buffer ring.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    id: u16,
    bytes: u32,
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
    in_flight: Slab<InFlight>,
    /// Operations that have not completed for good: the kernel holds their sockets and memory.
    armed: u32,
    wakeup: OwnedFd,
    heartbeat: Box<Timespec>,
    completions: Vec<cqueue::Entry>,
    enters: u64,
}

/// Bytes to be sent: a buffer, with values between its bytes that are sent from where they lie.
#[derive(Debug, Default)]
pub struct Output {
    /// Bytes that were copied.
    pub buffer: Vec<u8>,
    /// Values to be sent before the buffer's byte at their `at`, in order.
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
    /// Notes that `part`, of `item`'s value, is to be sent before the buffer's byte `at`.
    ///
    /// # Safety
    /// Until the send's completion, or until this is dropped unsent, the item stays pinned in its
    /// shard and the shard stays alive.
    pub unsafe fn new(at: usize, item: ItemRef, part: &[u8]) -> Self {
        Self { at, item, memory: NonNull::from(part).cast(), bytes: part.len() }
    }
}

impl Output {
    /// Length of everything in bytes.
    pub fn len(&self) -> usize {
        self.buffer.len() + self.pinned.iter().map(|pinned| pinned.bytes).sum::<usize>()
    }

    /// Nothing to be sent.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.pinned.is_empty()
    }

    /// The pieces in order, from byte `offset` on, as far as one send takes them.
    fn pieces(&self, offset: usize, pieces: &mut Vec<libc::iovec>) {
        let mut skip = offset;
        let mut add = |base: *const u8, bytes: usize| {
            let skipped = skip.min(bytes);
            skip -= skipped;
            if skipped < bytes && pieces.len() < SEND_PIECES_MAX {
                // In bounds: `skipped` is below `bytes`.
                let base = base.wrapping_add(skipped).cast_mut().cast();
                pieces.push(libc::iovec { iov_base: base, iov_len: bytes - skipped });
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

/// Most pieces of one send; what is beyond them goes with the next.
const SEND_PIECES_MAX: usize = 64;

struct InFlight {
    token: Token,
    output: Output,
    offset: usize,
    /// For sends of several pieces; boxed, since the kernel keeps its address.
    message: Option<Box<Message>>,
}

struct Message {
    header: libc::msghdr,
    /// What the header points to.
    #[allow(dead_code)]
    pieces: Vec<libc::iovec>,
}

#[repr(u8)]
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Accept = 1,
    Receive = 2,
    Send = 3,
    Cancel = 4,
    Heartbeat = 5,
    Fill = 6,
}

const fn user_data(kind: Kind, index: u32, generation: u32) -> u64 {
    ((kind as u64) << 56) | ((index as u64 & 0xff_ffff) << 32) | generation as u64
}

impl NetRing {
    /// A ring whose completions also count up `wakeup`, an eventfd, while notification is on.
    ///
    /// # Errors
    /// When the kernel refuses the ring, the buffers or the eventfd.
    pub fn new(config: NetRingConfig, wakeup: OwnedFd) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(config.entries * 4)
            .build(config.entries)?;
        ring.submitter().register_eventfd(wakeup.as_raw_fd())?;
        let buffers = BufferRing::new(&ring, config.buffer_count, config.buffer_bytes)?;
        let mut net_ring = Self {
            ring,
            buffers,
            in_flight: Slab::new(),
            armed: 0,
            wakeup,
            heartbeat: Box::new(Timespec::new()),
            completions: Vec::with_capacity(256),
            enters: 0,
        };
        // Saves the kernel a descriptor look-up in every enter; older kernels go without.
        let _ = net_ring.ring.submitter().register_ring_fd();
        net_ring.notify(false);
        Ok(net_ring)
    }

    /// The eventfd that counts completions while notification is on.
    pub fn wakeup(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }

    /// System calls made so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Accepts connections of `listener` until told otherwise; each becomes an event.
    pub fn accept(&mut self, listener: RawFd, number: u32) {
        let entry = opcode::AcceptMulti::new(Fd(listener))
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(user_data(Kind::Accept, number, 0));
        // SAFETY: the entry points to no memory.
        unsafe { self.push(&entry) }
    }

    /// Receives from `socket` until the stream ends, an error, or buffers run out.
    pub fn receive(&mut self, socket: RawFd, token: Token) {
        let entry = opcode::RecvMulti::new(Fd(socket), BUFFER_GROUP).build().user_data(user_data(
            Kind::Receive,
            token.index,
            token.generation,
        ));
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
            .user_data(user_data(Kind::Receive, token.index, token.generation));
        // SAFETY: as for `receive`.
        unsafe { self.push(&entry) }
    }

    /// Receives from `socket` until `place` is full, the stream ends or an error.
    ///
    /// # Safety
    /// Nobody reads, writes or frees the place until [`Event::Filled`] arrives.
    pub unsafe fn fill(&mut self, socket: RawFd, token: Token, place: &mut [u8]) {
        let entry = opcode::Recv::new(Fd(socket), place.as_mut_ptr(), place.len() as u32)
            .flags(libc::MSG_WAITALL)
            .build()
            .user_data(user_data(Kind::Fill, token.index, token.generation));
        // SAFETY: the caller vouches for the place.
        unsafe { self.push(&entry) }
    }

    /// Stops the receive of `token`; its end arrives as an event.
    pub fn cancel_receive(&mut self, token: Token) {
        let receive = user_data(Kind::Receive, token.index, token.generation);
        let entry = opcode::AsyncCancel::new(receive).build().user_data(user_data(
            Kind::Cancel,
            token.index,
            token.generation,
        ));
        // SAFETY: the entry points to no memory.
        unsafe { self.push(&entry) }
    }

    /// Sends `output` from byte `offset` on, all of it if it is in one piece. It comes back with
    /// [`Event::Sent`], which says how far the send came.
    pub fn send(&mut self, socket: RawFd, token: Token, output: Output, offset: usize) {
        const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let (entry, message) = if output.pinned.is_empty() {
            let rest = &output.buffer[offset..];
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
        let key = self.in_flight.insert(InFlight { token, output, offset, message });
        let entry = entry.user_data(user_data(Kind::Send, key as u32, 0));
        // SAFETY: what the entry points to, the buffer's heap block, the boxed header and the heap
        // block of its pieces, stays in `in_flight`, untouched, until the completion is reaped;
        // pinned values stay by the promise of `Pinned::new`. `drop` reaps all completions first.
        unsafe { self.push(&entry) }
    }

    /// One [`Event::Heartbeat`] after `millis` milliseconds.
    pub fn heartbeat(&mut self, millis: u32) {
        *self.heartbeat =
            Timespec::new().sec(u64::from(millis / 1000)).nsec(millis % 1000 * 1_000_000);
        let entry = opcode::Timeout::new(&*self.heartbeat).build().user_data(user_data(
            Kind::Heartbeat,
            0,
            0,
        ));
        // SAFETY: the timespec is boxed and lives as long as `self`; the kernel copies it at
        // submission.
        unsafe { self.push(&entry) }
    }

    /// Queues an entry, submitting first when the queue is full.
    ///
    /// # Safety
    /// What the entry points to must live until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        self.armed += 1;
        // SAFETY: the caller vouches for the entry.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enters += 1;
            if let Err(error) = self.ring.submit()
                && !is_transient(&error)
            {
                panic!("io_uring refused a submission: {error}");
            }
        }
    }

    /// Submits what is queued and lets the kernel finish what it can, without waiting.
    ///
    /// # Errors
    /// Whatever `io_uring_enter` refuses for good.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enters += 1;
        let queued = self.ring.submission().len() as u32;
        const GETEVENTS: u32 = 1;
        // SAFETY: no argument structure is passed; queued entries were vouched for when pushed.
        match unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GETEVENTS, None) } {
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether anything is queued for submission.
    pub fn has_submissions(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Whether completions wait, here or in the kernel's task work. Costs no system call.
    pub fn has_work(&mut self) -> bool {
        let submission = self.ring.submission();
        if submission.taskrun() || submission.cq_overflow() {
            return true;
        }
        drop(submission);
        !self.ring.completion().is_empty()
    }

    /// Turns the counting of completions on the eventfd on, before sleeping, or off.
    pub fn notify(&mut self, on: bool) {
        let completion = self.ring.completion();
        if on { completion.enable_eventfd() } else { completion.disable_eventfd() }
    }

    /// Appends what has completed to `events`.
    pub fn reap(&mut self, events: &mut Vec<Event>) {
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(self.ring.completion());
        for completion in completions.drain(..) {
            self.event(&completion, events);
        }
        self.completions = completions;
    }

    fn event(&mut self, completion: &cqueue::Entry, events: &mut Vec<Event>) {
        let data = completion.user_data();
        let index = (data >> 32) as u32 & 0xff_ffff;
        let token = Token { index, generation: data as u32 };
        let (result, flags) = (completion.result(), completion.flags());
        let more = cqueue::more(flags);
        self.armed -= u32::from(!more);
        match (data >> 56) as u8 {
            kind if kind == Kind::Receive as u8 => {
                if let Some(id) = cqueue::buffer_select(flags) {
                    let buffer = Received { id, bytes: result.max(0) as u32 };
                    if result > 0 {
                        events.push(Event::Received { token, buffer, ended: !more });
                        return;
                    }
                    self.recycle(buffer);
                }
                if !more {
                    let outcome = if result >= 0 { Ok(()) } else { Err(-result) };
                    events.push(Event::ReceiveEnded { token, outcome });
                }
            }
            kind if kind == Kind::Send as u8 => {
                let InFlight { token, output, offset, message } =
                    self.in_flight.remove(index as usize);
                drop(message);
                let outcome = if result >= 0 { Ok(offset + result as usize) } else { Err(-result) };
                events.push(Event::Sent { token, output, outcome });
            }
            kind if kind == Kind::Accept as u8 => {
                if result >= 0 {
                    // SAFETY: the kernel just made this descriptor for us and told nobody else.
                    let socket = unsafe { OwnedFd::from_raw_fd(result) };
                    events.push(Event::Accepted { listener: index, socket });
                }
                if !more {
                    let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
                    events.push(Event::AcceptEnded { listener: index, error });
                }
            }
            kind if kind == Kind::Fill as u8 => {
                let outcome = if result >= 0 { Ok(result as usize) } else { Err(-result) };
                events.push(Event::Filled { token, outcome });
            }
            kind if kind == Kind::Heartbeat as u8 => events.push(Event::Heartbeat),
            _ => {}
        }
    }

    /// The bytes that arrived.
    pub fn bytes(&self, received: &Received) -> &[u8] {
        self.buffers.bytes(received)
    }

    /// Gives a buffer back to the kernel. It is seen there at the next submission at the latest.
    pub fn recycle(&mut self, received: Received) {
        self.buffers.recycle(received.id);
    }
}

/// Interrupted, or out of room for completions until some are reaped.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

/// Receive buffers shared by all connections, lent to the kernel through a ring of descriptors.
struct BufferRing {
    /// The ring of descriptors: page-aligned, `count` entries, the tail in the first one.
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    /// The buffers, `count` times `bytes`.
    memory: NonNull<u8>,
    memory_layout: Layout,
    count: u16,
    bytes: u32,
    tail: u16,
}

impl BufferRing {
    fn new(ring: &IoUring, count: u16, bytes: u32) -> io::Result<Self> {
        assert!(count.is_power_of_two() && bytes > 0, "buffer ring sizes come from valid config");
        let page = 4096;
        let layout = Layout::from_size_align(count as usize * size_of::<BufRingEntry>(), page)
            .expect("at most 512 KiB");
        let memory_layout =
            Layout::from_size_align(count as usize * bytes as usize, page).expect("bounded");
        // SAFETY: both layouts have a non-zero size.
        let (entries, memory) =
            unsafe { (std::alloc::alloc_zeroed(layout), std::alloc::alloc_zeroed(memory_layout)) };
        let entries =
            NonNull::new(entries.cast::<BufRingEntry>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = NonNull::new(memory).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: `entries` is page-aligned, zeroed, has room for `count` entries and lives until
        // the ring is closed, see the field order and `Drop` of `NetRing`.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                entries.as_ptr() as u64,
                count,
                BUFFER_GROUP,
                0,
            )?;
        }
        let mut buffers = Self { entries, layout, memory, memory_layout, count, bytes, tail: 0 };
        for id in 0..count {
            buffers.recycle(id);
        }
        Ok(buffers)
    }

    fn bytes(&self, received: &Received) -> &[u8] {
        assert!(received.id < self.count && received.bytes <= self.bytes);
        let offset = received.id as usize * self.bytes as usize;
        // SAFETY: in bounds by the assertion; the kernel filled these bytes and does not touch
        // the buffer again until `recycle`, which consumes the `Received` this borrows from.
        unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().add(offset), received.bytes as usize)
        }
    }

    fn recycle(&mut self, id: u16) {
        let slot = (self.tail & (self.count - 1)) as usize;
        // SAFETY: `slot` is below `count`. The kernel reads an entry only after the tail has
        // passed it, and this one is beyond the tail.
        let entry = unsafe { &mut *self.entries.as_ptr().add(slot) };
        // SAFETY: `id` is below `count`, so the address is inside `memory`.
        let address = unsafe { self.memory.as_ptr().add(id as usize * self.bytes as usize) };
        entry.set_addr(address as u64);
        entry.set_len(self.bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry's reserved field, aligned for u16, and both
        // sides access it atomically.
        let tail = unsafe { &*(BufRingEntry::tail(self.entries.as_ptr()) as *const AtomicU16) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for NetRing {
    fn drop(&mut self) {
        // The kernel may still be sending from buffers in flight, and it holds the listeners, whose
        // addresses a next server may want at once. Cancel everything and reap until nothing is
        // left, so that no memory is freed under its hands.
        let _ = self.ring.submit();
        let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
        let mut events = Vec::new();
        for _ in 0..1000 {
            self.reap(&mut events);
            events.clear();
            if self.armed == 0 {
                break;
            }
            let _ = self.ring.submit_and_wait(1);
        }
        let _ = self.ring.submitter().unregister_buf_ring(BUFFER_GROUP);
        if self.armed > 0 {
            std::mem::forget(std::mem::take(&mut self.in_flight));
        }
        fence(Ordering::SeqCst);
        // SAFETY: the buffer ring is unregistered and all receives are cancelled.
        unsafe {
            std::alloc::dealloc(self.buffers.entries.as_ptr().cast(), self.buffers.layout);
            std::alloc::dealloc(self.buffers.memory.as_ptr(), self.buffers.memory_layout);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;

    const TOKEN: Token = Token { index: 5, generation: 77 };

    fn ring(buffer_count: u16, buffer_bytes: u32) -> NetRing {
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let wakeup = rustix::event::eventfd(0, flags).expect("an eventfd");
        NetRing::new(NetRingConfig { entries: 8, buffer_count, buffer_bytes }, wakeup)
            .expect("this host has io_uring")
    }

    /// Turns the ring until `enough` says so of the events so far.
    fn events(net: &mut NetRing, mut enough: impl FnMut(&mut NetRing, &mut Vec<Event>) -> bool) {
        let started = Instant::now();
        let mut events = Vec::new();
        loop {
            net.submit().expect("the ring works");
            net.reap(&mut events);
            if enough(net, &mut events) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "waited too long: {events:?}");
        }
    }

    #[test]
    fn bytes_arrive_in_order_through_few_small_buffers() {
        let mut net = ring(2, 64);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sent: Vec<u8> = (0..50_000u32).map(|i| i as u8).collect();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || theirs.write_all(&sent));
        net.receive(ours.as_raw_fd(), TOKEN);
        let (mut arrived, mut exhausted) = (Vec::new(), 0);
        events(&mut net, |net, events| {
            for event in events.drain(..) {
                match event {
                    Event::Received { token, buffer, ended } => {
                        assert_eq!(token, TOKEN);
                        arrived.extend_from_slice(net.bytes(&buffer));
                        net.recycle(buffer);
                        if ended {
                            net.receive(ours.as_raw_fd(), TOKEN);
                        }
                    }
                    Event::ReceiveEnded { outcome: Err(libc::ENOBUFS), .. } => {
                        exhausted += 1;
                        net.receive(ours.as_raw_fd(), TOKEN);
                    }
                    event => panic!("unexpected {event:?}"),
                }
            }
            arrived.len() >= expected.len()
        });
        writer.join().unwrap().unwrap();
        assert_eq!(arrived, expected);
        assert!(exhausted > 0, "two buffers of 64 bytes must run out");
    }

    #[test]
    fn the_end_of_the_stream_and_a_cancellation_end_the_receive() {
        let mut net = ring(4, 256);
        let (ours, theirs) = UnixStream::pair().unwrap();
        net.receive(ours.as_raw_fd(), TOKEN);
        net.submit().unwrap();
        net.cancel_receive(TOKEN);
        let ended = |outcome| {
            move |_: &mut NetRing, events: &mut Vec<Event>| {
                events.drain(..).any(|event| match event {
                    Event::ReceiveEnded { outcome: found, .. } => {
                        assert_eq!(found, outcome);
                        true
                    }
                    _ => false,
                })
            }
        };
        events(&mut net, ended(Err(libc::ECANCELED)));
        net.receive(ours.as_raw_fd(), TOKEN);
        drop(theirs);
        events(&mut net, ended(Ok(())));
    }

    #[test]
    fn a_send_of_several_pieces_keeps_their_order_and_comes_back_whole() {
        let mut net = ring(4, 256);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let value = vec![b'v'; 600_000];
        let mut output = Output { buffer: b"headtail".to_vec(), pinned: Vec::new() };
        // SAFETY: `value` outlives the send, which completes below.
        output.pinned.push(unsafe { Pinned::new(4, ItemRef(1), &value) });
        let bytes = output.len();
        assert_eq!(bytes, 600_008);
        net.send(ours.as_raw_fd(), TOKEN, output, 0);
        let reader = std::thread::spawn(move || {
            let mut read = vec![0; bytes];
            theirs.read_exact(&mut read).map(|()| read)
        });
        events(&mut net, |_, events| match events.pop() {
            Some(Event::Sent { token, output, outcome }) => {
                assert_eq!((token, outcome), (TOKEN, Ok(bytes)));
                assert_eq!(output.buffer, b"headtail");
                true
            }
            _ => false,
        });
        let read = reader.join().unwrap().unwrap();
        assert!(read.starts_with(b"headvvv") && read.ends_with(b"vvvtail"));
        assert!(read[4..600_004] == value[..]);
    }

    #[test]
    fn a_send_can_go_on_from_any_byte() {
        let value = vec![b'v'; 10];
        let mut output = Output { buffer: b"abcdef".to_vec(), pinned: Vec::new() };
        // SAFETY: never sent.
        output.pinned.push(unsafe { Pinned::new(3, ItemRef(1), &value) });
        for offset in 0..output.len() {
            let mut pieces = Vec::new();
            output.pieces(offset, &mut pieces);
            let rest: usize = pieces.iter().map(|piece| piece.iov_len).sum();
            assert_eq!(rest, output.len() - offset);
        }
    }

    #[test]
    fn a_receive_straight_into_memory_waits_for_all_of_it() {
        let mut net = ring(4, 256);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut place = vec![0; 100_000];
        // SAFETY: `place` is not touched until the event below.
        unsafe { net.fill(ours.as_raw_fd(), TOKEN, &mut place) };
        net.submit().unwrap();
        let writer = std::thread::spawn(move || {
            for part in [b'a', b'b'] {
                theirs.write_all(&vec![part; 50_000]).unwrap();
            }
            theirs
        });
        events(&mut net, |_, events| match events.pop() {
            Some(Event::Filled { outcome, .. }) => {
                assert_eq!(outcome, Ok(100_000));
                true
            }
            _ => false,
        });
        assert_eq!((place[0], place[99_999]), (b'a', b'b'));
        drop(writer.join());
    }

    #[test]
    fn dropping_the_ring_with_a_send_in_flight_frees_nothing_too_early() {
        let mut net = ring(4, 256);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let output = Output { buffer: vec![1; 8 << 20], pinned: Vec::new() };
        net.send(ours.as_raw_fd(), TOKEN, output, 0);
        net.receive(ours.as_raw_fd(), TOKEN);
        net.submit().unwrap();
        drop(net);
        drop(theirs);
    }
}
