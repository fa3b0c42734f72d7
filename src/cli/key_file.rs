//! The file with the cluster's key (`--cluster-key-file`).
//!
//! Anyone who can read it can act as a node, and anyone who can write it decides who can. So it is
//! refused, as ssh refuses a private key, unless it belongs to the node's user or to root and is
//! closed to others. A file owned by root may be group-readable: that is how a node without root
//! privileges gets access.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use ringlane::cluster::frame::AuthKey;

/// The key in a file, read during parsing so that an error names the setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile(pub AuthKey);

/// Shortest and longest key in bytes.
const KEY_FILE_BYTES: std::ops::RangeInclusive<usize> = 16..=65_536;

impl FromStr for KeyFile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let unreadable = |error| format!("cannot be read ({error}): give a readable file");
        let file = File::open(text).map_err(unreadable)?;
        // From the open file: the path may name another one by now.
        let there = file.metadata().map_err(unreadable)?;
        let me = rustix::process::geteuid().as_raw();
        if there.is_file()
            && let Some(exposed) = exposure(there.mode(), there.uid(), me)
        {
            return Err(exposed.sentence(text, me));
        }
        let mut bytes = Vec::new();
        file.take(*KEY_FILE_BYTES.end() as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        // A trailing newline comes from the editor and is not part of the secret.
        let secret = bytes.trim_ascii();
        if !KEY_FILE_BYTES.contains(&secret.len()) {
            let fix = "use 16 to 65536 bytes, for example from `openssl rand -hex 32`";
            return Err(format!("is not a key: {fix}"));
        }
        Ok(Self(AuthKey::from_file_contents(secret)))
    }
}

/// Who besides the node can access a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exposure {
    /// Its owner, neither the node's user nor root.
    Owner(u32),
    /// Others, by these permission bits.
    Mode(u32),
}

impl Exposure {
    fn sentence(self, path: &str, me: u32) -> String {
        match self {
            Self::Owner(owner) => {
                format!(
                    "belongs to user {owner}, who can read and change it: run `chown {me} {path}`"
                )
            }
            Self::Mode(mode) => {
                format!("is open to other users (mode {mode:o}): run `chmod 600 {path}`")
            }
        }
    }
}

/// Who else can access a file with these permission bits and this owner, if the node runs as user
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
