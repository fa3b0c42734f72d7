//! The file with the cluster's key (`--cluster-key-file`).
//!
//! Whoever reads it can speak for the cluster, and whoever writes it decides who can. So it is
//! refused, as ssh refuses a private key, unless it belongs to the user that the node runs as, or to
//! root, and is closed to others. A file of root's may be readable by its group, since that is how a
//! node that is not root is let at it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use ringlane::cluster::frame::Key;

/// The key in a file. Read at once, so that a file that cannot be is named with its setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile(pub Key);

/// Shortest and longest key in bytes.
const KEY_FILE_BYTES: std::ops::RangeInclusive<usize> = 16..=65_536;

impl FromStr for KeyFile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let unreadable = |error| format!("cannot be read ({error}): name a readable file");
        let file = File::open(text).map_err(unreadable)?;
        // Of the file that is open, whatever the path names by now.
        let there = file.metadata().map_err(unreadable)?;
        let me = rustix::process::geteuid().as_raw();
        if there.is_file()
            && let Some(exposed) = exposure(there.mode(), there.uid(), me)
        {
            return Err(exposed.sentence(text, me));
        }
        let mut bytes = Vec::new();
        file.take(*KEY_FILE_BYTES.end() as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        // A line feed at the end belongs to the editor, not to the secret.
        let secret = bytes.trim_ascii();
        if !KEY_FILE_BYTES.contains(&secret.len()) {
            return Err("is no key: write 16 to 65536 bytes, for example with `openssl rand -hex \
                        32`"
            .into());
        }
        Ok(Self(Key::from_file_contents(secret)))
    }
}

/// Who besides the node can get at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exposure {
    /// Its owner, who is neither the node's user nor root.
    Owner(u32),
    /// Others, by these permission bits.
    Mode(u32),
}

impl Exposure {
    fn sentence(self, path: &str, me: u32) -> String {
        match self {
            Self::Owner(owner) => {
                format!("belongs to user {owner}, who can read and change it: `chown {me} {path}`")
            }
            Self::Mode(mode) => {
                format!("is open to other users (mode {mode:o}): `chmod 600 {path}`")
            }
        }
    }
}

/// Who else can get at a file with these permission bits and this owner, if the node runs as user
/// `me`.
fn exposure(mode: u32, owner: u32, me: u32) -> Option<Exposure> {
    const ROOT: u32 = 0;
    const GROUP_READS: u32 = 0o040;
    let others = match owner {
        owner if owner == me => 0o077,
        ROOT => 0o077 & !GROUP_READS,
        owner => return Some(Exposure::Owner(owner)),
    };
    (mode & others != 0).then_some(Exposure::Mode(mode & 0o777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_open_to_nobody_but_its_owner() {
        for mode in [0o600, 0o400, 0o700, 0o100_600] {
            assert_eq!(exposure(mode, 1000, 1000), None, "{mode:o}");
        }
        for mode in [0o644, 0o640, 0o660, 0o606, 0o602, 0o620, 0o601, 0o100_644] {
            let expected = Some(Exposure::Mode(mode & 0o777));
            assert_eq!(exposure(mode, 1000, 1000), expected, "{mode:o}");
            assert_eq!(exposure(mode, 0, 0), expected, "{mode:o} of root's, to root");
        }
    }

    #[test]
    fn a_key_of_roots_may_be_read_by_its_group_and_not_written() {
        assert_eq!(exposure(0o640, 0, 1000), None);
        assert_eq!(exposure(0o440, 0, 1000), None);
        for mode in [0o660, 0o644, 0o604] {
            assert_eq!(exposure(mode, 0, 1000), Some(Exposure::Mode(mode)), "{mode:o}");
        }
    }

    #[test]
    fn a_key_of_somebody_elses_is_refused_whatever_its_mode() {
        assert_eq!(exposure(0o600, 1001, 1000), Some(Exposure::Owner(1001)));
        assert_eq!(exposure(0o600, 1001, 0), Some(Exposure::Owner(1001)));
    }
}
