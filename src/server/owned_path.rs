//! A file at a well-known path that shows that this node runs: its pid file, its unix socket.
//!
//! It is removed when the node stops, but only if it is still the node's own: a successor started
//! meanwhile may have replaced it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A path and the file that this process created there. Removed when dropped, unless the path names
/// another file by then.
#[derive(Debug)]
pub struct OwnedPath {
    path: PathBuf,
    /// Kept open, so that the file's inode number is not reused for a successor's file.
    file: File,
}

impl OwnedPath {
    /// Owns `file`, located at `path`.
    pub fn new(path: &Path, file: File) -> Self {
        Self { path: path.into(), file }
    }

    /// Owns whatever is at `path`, such as a socket, without opening it for I/O.
    ///
    /// # Errors
    /// If nothing is there, or no descriptor is left.
    pub fn of_what_stands_at(path: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        Ok(Self::new(path, file))
    }
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        if names(&self.path, &self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether `path` itself, not the target of a symbolic link there, is `file`.
pub fn names(path: &Path, file: &File) -> bool {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(there), Ok(ours)) => identity(there) == identity(ours),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::scratch::Scratch;

    #[test]
    fn a_path_that_names_another_file_by_now_is_left_alone() {
        let scratch = Scratch::new("owned-path");
        let path = scratch.path("file");
        let owned = OwnedPath::new(&path, File::create(&path).expect("a file"));
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, "a successor's").expect("another file");
        drop(owned);
        assert!(path.exists(), "the successor's file is gone");
        drop(OwnedPath::of_what_stands_at(&path).expect("it is there"));
        assert!(!path.exists(), "what is owned stays behind");
    }
}
