//! Passes descriptors to glommio, whose types can only be built from raw ones.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use glommio::io::BufferedFile;
use glommio::net::{TcpListener, TcpStream, UdpSocket};
use socket2::Socket;

/// An eventfd as a file: a read of 8 bytes waits until it is incremented.
pub fn eventfd_file(eventfd: OwnedFd) -> BufferedFile {
    // SAFETY: the descriptor is owned, and its ownership goes to the file alone.
    unsafe { BufferedFile::from_raw_fd(eventfd.into_raw_fd()) }
}

/// A listening socket, on the executor that calls this.
pub fn listener(socket: Socket) -> TcpListener {
    // SAFETY: the descriptor is owned, and its ownership goes to the listener alone.
    unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) }
}

/// A datagram socket, on the executor that calls this.
pub fn udp_socket(socket: Socket) -> UdpSocket {
    // SAFETY: the descriptor is owned, and its ownership goes to the socket alone.
    unsafe { UdpSocket::from_raw_fd(socket.into_raw_fd()) }
}

/// A connection, on the executor that calls this.
pub fn stream(socket: OwnedFd) -> TcpStream {
    // SAFETY: the descriptor is owned, and its ownership goes to the stream alone.
    unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) }
}

/// A second descriptor of a connection, which outlives the stream.
///
/// # Errors
/// If the process has no descriptors left.
pub fn duplicate(stream: &TcpStream) -> io::Result<OwnedFd> {
    // SAFETY: the stream is borrowed, so its descriptor stays open until this returns.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }.try_clone_to_owned()
}
