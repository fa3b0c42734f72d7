//! The file with the process id (`--pid-file`).
//!
//! It is written under a temporary name and then linked into place in one step, so that readers
//! never see half of it and no symbolic link redirects the write. The process that wrote it holds a
//! lock on it: an unlocked file is left over from a dead process, whatever number it holds, and is
//! replaced. A file that holds anything other than a process id is not touched.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::owned_path::{OwnedPath, names};

/// Longest contents in bytes that may be a process id: its digits, a newline, some spaces.
const PID_BYTES_MAX: u64 = 32;
/// Attempts at startup while other processes keep changing the file.
const ATTEMPTS: u32 = 5;

/// Why the process id cannot be written.
#[derive(Debug)]
pub enum PidFileError {
    /// The path is a symbolic link.
    Link(PathBuf),
    /// The path is a directory, device or socket.
    NoFile(PathBuf),
    /// The file holds something other than a process id.
    Foreign(PathBuf),
    /// The process that wrote it is alive; holds what it wrote.
    Held(PathBuf, String),
    /// The file system returned an error.
    Io(PathBuf, io::Error),
}

impl fmt::Display for PidFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(path) => {
                let path = path.display();
                write!(f, "the pid file {path} is a symbolic link: name the file itself")
            }
            Self::NoFile(path) => {
                write!(f, "the pid file {} exists and is not a file: name a file", path.display())
            }
            Self::Foreign(path) => write!(
                f,
                "the pid file {} holds something other than a process id: remove it or name \
                 another file",
                path.display()
            ),
            Self::Held(path, pid) => write!(
                f,
                "the pid file {} belongs to running process {pid}: stop it or name another file",
                path.display()
            ),
            Self::Io(path, error) => {
                let path = path.display();
                write!(f, "the pid file {path} cannot be written ({error}): name another file")
            }
        }
    }
}

impl std::error::Error for PidFileError {}

/// Checks whether the process id could be written to `path` now.
///
/// # Errors
/// The reason why not.
pub fn check(path: &Path) -> Result<(), PidFileError> {
    former(path).map(|_| ())
}

/// Writes the process id to `path`, replacing one left by a dead process.
///
/// # Errors
/// If something else is there, or the file system returns an error.
pub fn write(path: &Path) -> Result<OwnedPath, PidFileError> {
    let failed = |error| PidFileError::Io(path.into(), error);
    for _ in 0..ATTEMPTS {
        let former = former(path)?;
        let (beside, file) = beside(path).map_err(failed)?;
        let placed = match &former {
            // Only the process that locks the old file may replace it.
            Some(former) if names(path, former) => fs::rename(&beside, path).map(|()| true),
            Some(_) => Ok(false),
            None => link(&beside, path),
        };
        if !matches!(placed, Ok(true)) || former.is_none() {
            let _ = fs::remove_file(&beside);
        }
        if placed.map_err(failed)? {
            return Ok(OwnedPath::new(path, file));
        }
    }
    let error = io::Error::other("it keeps changing");
    Err(PidFileError::Io(path.into(), error))
}

/// Links the file `from` to `to`; false if `to` exists by now.
fn link(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // A file system without links: two processes starting at once may both succeed.
        Err(_) => fs::rename(from, to).map(|()| true),
    }
}

/// Opens and locks the file at `path`, left by a dead process.
fn former(path: &Path) -> Result<Option<File>, PidFileError> {
    let failed = |error| PidFileError::Io(path.into(), error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(there) if there.is_symlink() => return Err(PidFileError::Link(path.into())),
        Ok(there) if !there.is_file() => return Err(PidFileError::NoFile(path.into())),
        Ok(_) => {}
    }
    // Whatever has replaced it since is neither followed nor waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut contents = Vec::new();
    (&file).take(PID_BYTES_MAX + 1).read_to_end(&mut contents).map_err(failed)?;
    let pid = contents.trim_ascii();
    if contents.len() as u64 > PID_BYTES_MAX || !pid.iter().all(u8::is_ascii_digit) {
        return Err(PidFileError::Foreign(path.into()));
    }
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(PidFileError::Held(path.into(), String::from_utf8_lossy(pid).into_owned()))
        }
        // A file system without locks cannot show which process is alive.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
    }
}

/// Creates a file with the process id in the directory of `path`, locked until it is closed.
fn beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside);
    let mut file = match create() {
        // Left by a process with this id that was killed between two steps.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&beside)?;
            create()?
        }
        other => other?,
    };
    let _ = file.try_lock();
    if let Err(error) = writeln!(file, "{}", std::process::id()) {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    Ok((beside, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::scratch::Scratch;
    use std::os::unix::fs::symlink;

    fn own_pid() -> String {
        format!("{}\n", std::process::id())
    }

    #[test]
    fn it_holds_the_process_id_until_the_node_ends() {
        let scratch = Scratch::new("pid-file");
        let path = scratch.path("ringlane.pid");
        let written = write(&path).expect("nothing stands there");
        assert_eq!(fs::read_to_string(&path).expect("a file"), own_pid());
        assert!(matches!(check(&path), Err(PidFileError::Held(_, pid)) if own_pid().trim() == pid));
        assert!(matches!(write(&path), Err(PidFileError::Held(..))), "it belongs to the first");
        drop(written);
        assert_eq!(fs::read_dir(scratch.directory()).expect("a directory").count(), 0);
    }

    #[test]
    fn one_that_a_dead_process_left_is_replaced() {
        let scratch = Scratch::new("pid-file-stale");
        let path = scratch.path("ringlane.pid");
        // The number of a process that lives, though not of the one that wrote the file: init's.
        for left in ["", "1\n", "4194304", " 12 \n"] {
            fs::write(&path, left).expect("a file");
            let written = write(&path).expect("nobody holds it");
            assert_eq!(fs::read_to_string(&path).expect("a file"), own_pid());
            drop(written);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_symbolic_link_is_refused_and_its_target_keeps_its_contents() {
        let scratch = Scratch::new("pid-file-link");
        let (path, target) = (scratch.path("ringlane.pid"), scratch.path("precious"));
        // Even a target that could be a pid file, and one that is not there.
        for contents in [Some("precious"), Some("1\n"), None] {
            let _ = fs::remove_file(&target);
            if let Some(contents) = contents {
                fs::write(&target, contents).expect("a file");
            }
            symlink(&target, &path).expect("a link");
            assert!(matches!(write(&path), Err(PidFileError::Link(_))));
            assert_eq!(fs::read_to_string(&target).ok().as_deref(), contents);
            fs::remove_file(&path).expect("the link");
        }
    }

    #[test]
    fn a_file_that_holds_no_process_id_keeps_its_contents() {
        let scratch = Scratch::new("pid-file-foreign");
        let path = scratch.path("ringlane.toml");
        for contents in ["port = 11211\n", "12 13", "-1", &"1".repeat(33)] {
            fs::write(&path, contents).expect("a file");
            assert!(matches!(write(&path), Err(PidFileError::Foreign(_))), "{contents}");
            assert_eq!(fs::read_to_string(&path).expect("a file"), contents);
        }
        assert!(matches!(write(scratch.directory()), Err(PidFileError::NoFile(_))));
    }
}
