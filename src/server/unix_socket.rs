//! The unix socket for clients (`--unix-socket`), and what may already exist at its path.
//!
//! A socket file outlives its process; one without a listener is replaced, one with a listener
//! never. The kernel destroys the rings of a killed process only after the process has ended, and
//! until then its socket still accepts: startup waits a moment for that (see [`super::preflight`]).
//! A lock on the directory makes checking and replacing one step for processes that start at the
//! same time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::owned_path::OwnedPath;
use crate::config::UnixSocket;

/// Longest wait for other processes that start in the same directory. They hold its lock for a few
/// system calls.
const LOCK_MAX: Duration = Duration::from_secs(2);
/// Interval between attempts.
const LOCK_STEP: Duration = Duration::from_millis(5);

/// What exists at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing.
    Nobody,
    /// A socket without a listener.
    Stale,
    /// A socket that seems to be in use.
    Living,
    /// Something other than a socket.
    NoSocket,
}

/// Checks what exists at `path`.
pub fn occupant(path: &Path) -> Occupant {
    match fs::symlink_metadata(path) {
        Err(_) => return Occupant::Nobody,
        Ok(there) if !there.file_type().is_socket() => return Occupant::NoSocket,
        Ok(_) => {}
    }
    // Non-blocking: a stopped listener with a full backlog would never answer.
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match connect().map_err(|error| error.kind()) {
        Err(io::ErrorKind::ConnectionRefused) => Occupant::Stale,
        Err(io::ErrorKind::NotFound) => Occupant::Nobody,
        _ => Occupant::Living,
    }
}

/// Listens at the path, replacing a socket left by a dead process. The path is removed when the
/// returned [`OwnedPath`] is dropped.
///
/// # Errors
/// If another process listens there, or the file system returns an error.
pub fn listen(unix_socket: &UnixSocket, backlog: u32) -> io::Result<(Socket, OwnedPath)> {
    let path = &unix_socket.path;
    let _lock = lock_directory_of(path)?;
    match occupant(path) {
        Occupant::Nobody => {}
        Occupant::Stale => fs::remove_file(path)?,
        Occupant::Living | Occupant::NoSocket => return Err(io::ErrorKind::AddrInUse.into()),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let owned = OwnedPath::of_what_stands_at(path)?;
    // Before listening, so that no client connects against the mode.
    fs::set_permissions(path, fs::Permissions::from_mode(unix_socket.mode))?;
    socket.listen(backlog as i32)?;
    Ok((socket, owned))
}

/// Keeps others from replacing a socket in the same directory until it is dropped. `None` if the
/// directory cannot be locked or read: two processes that start at the same moment may then both
/// replace a stale socket, and the later one owns the path.
fn lock_directory_of(path: &Path) -> io::Result<Option<File>> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let Ok(directory) = File::open(parent.unwrap_or(Path::new("."))) else { return Ok(None) };
    let until = Instant::now() + LOCK_MAX;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(Some(directory)),
            Err(fs::TryLockError::Error(_)) => return Ok(None),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOCK_STEP);
            }
            Err(fs::TryLockError::WouldBlock) => {
                let told = "its directory is locked by another process: stop that one first";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, told));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::scratch::Scratch;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn at(path: &Path) -> UnixSocket {
        UnixSocket { path: path.into(), mode: 0o700 }
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced_and_one_in_use_is_not() {
        let scratch = Scratch::new("unix-socket");
        let path = scratch.path("r.sock");
        assert_eq!(occupant(&path), Occupant::Nobody);
        drop(UnixListener::bind(&path).expect("a socket"));
        assert_eq!(occupant(&path), Occupant::Stale);
        let (socket, owned) = listen(&at(&path), 8).expect("nobody listens");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o700);
        assert_eq!(occupant(&path), Occupant::Living);
        let refused = listen(&at(&path), 8).expect_err("it is in use");
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).expect("the first still listens");
        drop(socket);
        assert_eq!(occupant(&path), Occupant::Stale);
        drop(owned);
        assert_eq!(occupant(&path), Occupant::Nobody);
    }

    #[test]
    fn a_full_backlog_and_another_kind_of_socket_are_in_use() {
        let scratch = Scratch::new("unix-socket-full");
        let path = scratch.path("r.sock");
        let (_socket, _owned) = listen(&at(&path), 1).expect("nobody listens");
        // Each look leaves a connection that nobody accepts.
        assert!((0..5).all(|_| occupant(&path) == Occupant::Living));
        let path = scratch.path("datagrams");
        let _datagrams = UnixDatagram::bind(&path).expect("a socket");
        assert_eq!(occupant(&path), Occupant::Living);
        let path = scratch.path("file");
        fs::write(&path, "kept").expect("a file");
        assert!(listen(&at(&path), 1).is_err());
        assert_eq!(fs::read_to_string(&path).expect("a file"), "kept");
    }

    #[test]
    fn of_several_that_start_at_once_one_listens_and_keeps_the_path() {
        let scratch = Scratch::new("unix-socket-race");
        let path = scratch.path("r.sock");
        for round in 0..50 {
            drop(UnixListener::bind(&path).expect("a socket to be replaced"));
            let results: Vec<_> = std::thread::scope(|scope| {
                let starts: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| listen(&at(&path), 8).ok())).collect();
                starts.into_iter().map(|start| start.join().expect("no panic")).collect()
            });
            let listening: Vec<_> = results.into_iter().flatten().collect();
            assert_eq!(listening.len(), 1, "round {round}");
            assert_eq!(occupant(&path), Occupant::Living, "round {round}");
            drop(listening);
        }
    }
}
