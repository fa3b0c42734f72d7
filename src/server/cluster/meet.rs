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
use crate::server::adopt;

#[cfg(test)]
mod tests;

/// Longest time for connecting and the handshake.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Why no link was established.
#[derive(Debug)]
pub enum MeetError {
    /// The connection could not be established, or broke.
    Connection(io::Error),
    /// It took longer than [`PATIENCE`].
    Slow,
    /// The handshake failed.
    Handshake(HandshakeError),
}

impl fmt::Display for MeetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MeetError::Connection(error) => write!(f, "{error}"),
            MeetError::Slow => write!(f, "no handshake within {PATIENCE:?}"),
            MeetError::Handshake(HandshakeError::Malformed) => {
                write!(f, "it does not act like a node")
            }
            MeetError::Handshake(HandshakeError::Refused(reason)) => {
                write!(f, "refused it: {}", reason.sentence())
            }
            MeetError::Handshake(HandshakeError::RefusedBy(reason)) => {
                write!(f, "it refuses this node, saying: {}", reason.sentence())
            }
        }
    }
}

impl From<io::Error> for MeetError {
    fn from(error: io::Error) -> Self {
        MeetError::Connection(error)
    }
}

impl MeetError {
    /// Whether the host is reachable and refuses the connection.
    pub fn is_refusal(&self) -> bool {
        matches!(self, MeetError::Connection(error)
            if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// A connection whose two sides have authenticated each other.
pub type Met = (OwnedFd, Box<LinkSession>);

/// Establishes the connection `dial`, and presents `pass` there.
///
/// # Errors
/// If the other side cannot be reached, is slow, or one side refuses the other.
pub async fn dial(party: Arc<Party>, dial: &Dial, pass: u64) -> Result<Met, MeetError> {
    let mut opening = Vec::new();
    let LinkId { core, peer } = dial.link;
    let handshake = Handshake::dial(party, core, peer, pass, nonce()?, &mut opening);
    in_time(async {
        let connected = TcpStream::connect_timeout(dial.address, PATIENCE).await;
        let mut stream = connected.map_err(io::Error::from)?;
        shake(&mut stream, handshake, opening, |_| true).await
    })
    .await
}

/// Whether the host at `address` refuses connections there. No answer counts as no.
pub async fn is_refused(address: SocketAddr) -> bool {
    let connected = TcpStream::connect_timeout(address, PATIENCE).await;
    connected.is_err_and(|error| MeetError::Connection(error.into()).is_refusal())
}

/// The other side of [`dial`], for an accepted connection. Callers rejected by `admits` are refused.
///
/// # Errors
/// If the other side is slow or gone, or one side refuses the other.
pub async fn answer(
    party: Arc<Party>,
    mut stream: TcpStream,
    admits: impl Fn(Caller) -> bool,
) -> Result<Met, MeetError> {
    let handshake = Handshake::accept(party, nonce()?);
    in_time(shake(&mut stream, handshake, Vec::new(), admits)).await
}

async fn in_time(meeting: impl Future<Output = Result<Met, MeetError>>) -> Result<Met, MeetError> {
    let limit = async {
        glommio::timer::sleep(PATIENCE).await;
        Err(MeetError::Slow)
    };
    or(meeting, limit).await
}

async fn shake(
    stream: &mut TcpStream,
    mut handshake: Handshake,
    mut out: Vec<u8>,
    admits: impl Fn(Caller) -> bool,
) -> Result<Met, MeetError> {
    loop {
        stream.write_all(&out).await?;
        out.clear();
        // Exactly one message: bytes after the last one are frames for the core.
        let mut message = vec![0; HEAD_BYTES];
        stream.read_exact(&mut message).await?;
        let head = message.first_chunk().expect("as long as a head");
        let length = Handshake::message_bytes(head).map_err(MeetError::Handshake)?;
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
                let socket = adopt::descriptor(stream)?;
                sockets::prepare(&socket)?;
                return Ok((socket, session));
            }
            Err(failure) => {
                stream.write_all(&out).await?;
                return Err(MeetError::Handshake(failure));
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
