//! Descriptors handed over to glommio, whose types can only be made from raw ones.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use glommio::io::BufferedFile;
use glommio::net::TcpListener;
use socket2::Socket;

/// An eventfd as a file: a read of 8 bytes waits until somebody counts it up.
pub fn bell(eventfd: OwnedFd) -> BufferedFile {
    // SAFETY: the descriptor is owned, and its ownership goes to the file alone.
    unsafe { BufferedFile::from_raw_fd(eventfd.into_raw_fd()) }
}

/// A listening socket, on the executor that calls this.
pub fn listener(socket: Socket) -> TcpListener {
    // SAFETY: the descriptor is owned, and its ownership goes to the listener alone.
    unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) }
}
