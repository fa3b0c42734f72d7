//! Handshakes over real connections, within a time limit.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::or;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::TcpStream;

use super::sockets;
use crate::cluster::dialler::{Dial, LinkId};
use crate::cluster::handshake::{
    Caller, HEAD_BYTES, Handshake, HandshakeError, HandshakeRefusal, HandshakeStep, LinkSession,
    Nonce, Party,
};
use crate::server::glommio_fd;

#[cfg(test)]
mod tests;

/// Longest time for connecting and the handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why no link was established.
#[derive(Debug)]
pub enum EstablishError {
    /// The connection could not be established, or broke.
    Connection(io::Error),
    /// It took longer than [`HANDSHAKE_TIMEOUT`].
    TimedOut,
    /// The handshake failed.
    Handshake(HandshakeError),
}

impl fmt::Display for EstablishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EstablishError::Connection(error) => write!(f, "{error}"),
            EstablishError::TimedOut => write!(f, "no handshake within {HANDSHAKE_TIMEOUT:?}"),
            EstablishError::Handshake(HandshakeError::Malformed) => {
                write!(f, "it does not act like a node")
            }
            EstablishError::Handshake(HandshakeError::Refused(reason)) => {
                write!(f, "refused it: {}", reason.sentence())
            }
            EstablishError::Handshake(HandshakeError::RefusedBy(reason)) => {
                write!(f, "it refuses this node, saying: {}", reason.sentence())
            }
        }
    }
}

impl From<io::Error> for EstablishError {
    fn from(error: io::Error) -> Self {
        EstablishError::Connection(error)
    }
}

impl EstablishError {
    /// Whether the host is reachable and refuses the connection.
    pub fn is_refusal(&self) -> bool {
        matches!(self, EstablishError::Connection(error)
            if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// A connection whose two sides have authenticated each other.
pub type Established = (OwnedFd, Box<LinkSession>);

/// Establishes the connection `dial`, and presents `pass` there.
///
/// # Errors
/// If the other side cannot be reached, is slow, or one side refuses the other.
pub async fn dial(
    party: Arc<Party>,
    dial: &Dial,
    pass: u64,
) -> Result<Established, EstablishError> {
    let mut opening = Vec::new();
    let LinkId { core, peer } = dial.link;
    let handshake = Handshake::dial(party, core, peer, pass, nonce()?, &mut opening);
    with_timeout(async {
        let connected = TcpStream::connect_timeout(dial.address, HANDSHAKE_TIMEOUT).await;
        let mut stream = connected.map_err(io::Error::from)?;
        exchange(&mut stream, handshake, opening, |_| true).await
    })
    .await
}

/// Whether the host at `address` refuses connections there. No answer counts as no.
pub async fn is_connection_refused(address: SocketAddr) -> bool {
    let connected = TcpStream::connect_timeout(address, HANDSHAKE_TIMEOUT).await;
    connected.is_err_and(|error| EstablishError::Connection(error.into()).is_refusal())
}

/// The other side of [`dial`], for an accepted connection. Callers rejected by `admits` are
/// refused.
///
/// # Errors
/// If the other side is slow or gone, or one side refuses the other.
pub async fn answer(
    party: Arc<Party>,
    mut stream: TcpStream,
    admits: impl Fn(Caller) -> bool,
) -> Result<Established, EstablishError> {
    let handshake = Handshake::accept(party, nonce()?);
    with_timeout(exchange(&mut stream, handshake, Vec::new(), admits)).await
}

async fn with_timeout(
    meeting: impl Future<Output = Result<Established, EstablishError>>,
) -> Result<Established, EstablishError> {
    let limit = async {
        glommio::timer::sleep(HANDSHAKE_TIMEOUT).await;
        Err(EstablishError::TimedOut)
    };
    or(meeting, limit).await
}

async fn exchange(
    stream: &mut TcpStream,
    mut handshake: Handshake,
    mut out: Vec<u8>,
    admits: impl Fn(Caller) -> bool,
) -> Result<Established, EstablishError> {
    loop {
        stream.write_all(&out).await?;
        out.clear();
        // Exactly one message: bytes after the last one are frames for the core.
        let mut message = vec![0; HEAD_BYTES];
        stream.read_exact(&mut message).await?;
        let head = message.first_chunk().expect("as long as a head");
        let length = Handshake::message_bytes(head).map_err(EstablishError::Handshake)?;
        message.resize(length, 0);
        stream.read_exact(&mut message[HEAD_BYTES..]).await?;
        let step = match handshake.handle(&message, &mut out) {
            Ok(HandshakeStep::Called(caller)) if !admits(caller) => {
                Err(handshake.refuse(HandshakeRefusal::Unknown, &mut out))
            }
            step => step,
        };
        match step {
            Ok(HandshakeStep::Await | HandshakeStep::Called(_)) => {}
            Ok(HandshakeStep::Done(session)) => {
                stream.write_all(&out).await?;
                let socket = glommio_fd::duplicate(stream)?;
                sockets::prepare(&socket)?;
                return Ok((socket, session));
            }
            Err(failure) => {
                stream.write_all(&out).await?;
                return Err(EstablishError::Handshake(failure));
            }
        }
    }
}

/// Unpredictable bytes.
fn nonce() -> io::Result<Nonce> {
    let mut nonce = Nonce::default();
    let got = rustix::rand::getrandom(&mut nonce[..], rustix::rand::GetRandomFlags::empty())?;
    // The kernel gives this many bytes at once, or none.
    assert_eq!(got, nonce.len());
    Ok(nonce)
}
