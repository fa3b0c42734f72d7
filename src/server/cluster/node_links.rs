//! Links between control executors, for messages between nodes rather than cores.
//!
//! They carry little traffic, so they are plain tasks over glommio's sockets: one reads, one writes
//! from a bounded queue. A message without a link or room is dropped; its senders expect that.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::Task;
use glommio::channels::local_channel::{self, LocalReceiver, LocalSender};
use glommio::net::TcpStream;

use crate::cluster::frame::{Opened, Opener, Sealer};
use crate::cluster::handshake::LinkSession;
use crate::cluster::identity::{Boot, NodeKey};
use crate::server::glommio_fd;

/// Maximum frames queued for one node.
const FRAMES_MAX: usize = 1024;
/// Bytes read at a time.
const READ_BYTES: usize = 16 << 10;

/// A link to another node's governor. It closes when dropped.
pub struct NodeLink {
    /// The boot of the node it reaches.
    pub boot: Boot,
    frames: LocalSender<Vec<u8>>,
    waiting_bytes: Rc<Cell<usize>>,
    waiting_bytes_max: usize,
    body_bytes_max: usize,
    sealer: Sealer,
    _tasks: [Task<()>; 2],
}

impl NodeLink {
    /// Serves the link. Passes each frame's body to `deliver`; calls `lost` once, when the link is
    /// no longer usable.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn start(
        socket: OwnedFd,
        session: LinkSession,
        waiting_bytes_max: usize,
        body_bytes_max: usize,
        deliver: impl Fn(NodeKey, &[u8]) + 'static,
        lost: impl Fn() + 'static,
    ) -> io::Result<Self> {
        let LinkSession { peer, facts, sealer, opener, frame_bytes_max, .. } = session;
        let reader = glommio_fd::stream(socket.try_clone()?);
        let writer = glommio_fd::stream(socket);
        let (frames, queue) = local_channel::new_bounded(FRAMES_MAX);
        let waiting_bytes = Rc::new(Cell::new(0));
        let lost = Rc::new(lost);
        let reading = {
            let lost = lost.clone();
            async move {
                let deliver = |body: &[u8]| deliver(peer.node, body);
                let why = read(reader, opener, body_bytes_max, deliver).await;
                log::debug!("closing the link to node {:016x}: {why}", peer.node.0);
                lost();
            }
        };
        let writing = {
            let waiting_bytes = waiting_bytes.clone();
            async move {
                write(writer, queue, &waiting_bytes).await;
                lost();
            }
        };
        Ok(Self {
            boot: facts.boot,
            frames,
            waiting_bytes,
            waiting_bytes_max,
            body_bytes_max: frame_bytes_max as usize,
            sealer,
            _tasks: [glommio::spawn_local(reading), glommio::spawn_local(writing)],
        })
    }

    /// Sends a frame with this body if there is room. True if it was queued.
    pub fn send(&mut self, body: &[u8]) -> bool {
        let waiting = self.waiting_bytes.get();
        if waiting >= self.waiting_bytes_max
            || body.len() > self.body_bytes_max
            || self.frames.is_full()
        {
            return false;
        }
        let mut frame = Vec::with_capacity(body.len() + 64);
        let start = self.sealer.begin(&mut frame);
        frame.extend_from_slice(body);
        self.sealer.end(start, &mut frame);
        let bytes = frame.len();
        let sent = self.frames.try_send(frame).is_ok();
        if sent {
            self.waiting_bytes.set(waiting + bytes);
        }
        sent
    }
}

/// Reads frames until the link ends, and returns the reason.
async fn read(
    mut stream: TcpStream,
    mut opener: Opener,
    body_bytes_max: usize,
    deliver: impl Fn(&[u8]),
) -> String {
    let mut input = Vec::new();
    let mut used = 0;
    loop {
        match opener.open(&input[used..]) {
            Ok(Opened::Frame { consumed, body }) => {
                deliver(body);
                used += consumed;
                glommio::yield_if_needed().await;
            }
            Ok(Opened::Incomplete { bytes }) => {
                if bytes > body_bytes_max + READ_BYTES {
                    return "a frame is too long".into();
                }
                input.drain(..used);
                used = 0;
                let held = input.len();
                input.resize(held + READ_BYTES, 0);
                let read = match stream.read(&mut input[held..]).await {
                    Ok(0) => return "the other side closed it".into(),
                    Ok(read) => read,
                    Err(error) => return error.to_string(),
                };
                input.truncate(held + read);
            }
            Err(error) => return format!("a frame is {error:?}"),
        }
    }
}

async fn write(mut stream: TcpStream, queue: LocalReceiver<Vec<u8>>, waiting_bytes: &Cell<usize>) {
    while let Some(frame) = queue.recv().await {
        let written = stream.write_all(&frame).await;
        waiting_bytes.set(waiting_bytes.get() - frame.len());
        if written.is_err() {
            return;
        }
    }
}
