//! Dumps as text: a line for each item, and a closing line.

use crate::Output;
use crate::meta::base64;
use ringlane_types::request::Hit;
use ringlane_types::time::{Deadline, Instant};

/// The ways to list items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dump {
    /// `lru_crawler metadump`: everything about an item except its value.
    Metadata,
    /// `lru_crawler mgdump`: requests that would fetch the items.
    Requests,
    /// `stats cachedump`: keys, lengths and expiry.
    Cache,
}

impl Dump {
    /// The text before the first item.
    pub const fn opening(self) -> &'static [u8] {
        match self {
            Dump::Metadata | Dump::Requests => b"OK\r\n",
            Dump::Cache => b"",
        }
    }

    /// The text after the last item.
    pub const fn closing(self) -> &'static [u8] {
        match self {
            Dump::Metadata | Dump::Cache => b"END\r\n",
            Dump::Requests => b"EN\r\n",
        }
    }

    /// Writes an item as found by a read that does not count as a use.
    pub fn item(self, hit: &Hit<'_>, now: Instant, out: &mut impl Output) {
        let mut line = Vec::with_capacity(hit.key.len() + 128);
        match self {
            Dump::Metadata => {
                line.extend_from_slice(b"key=");
                url_encode(hit.key, &mut line);
                let exp = unix_seconds(hit.deadline).map_or(-1, |seconds| seconds as i64);
                let la = now.as_secs().saturating_sub(hit.idle_seconds.into());
                let fetch = if hit.marks.fetched { "yes" } else { "no" };
                let Hit { cas, class, item_bytes, flags, .. } = hit;
                let rest = format!(
                    " exp={exp} la={la} cas={cas} fetch={fetch} cls={class} size={item_bytes} \
                     flags={flags} \n"
                );
                line.extend_from_slice(rest.as_bytes());
            }
            Dump::Requests => {
                line.extend_from_slice(b"mg ");
                // A key from a binary protocol may contain bytes that would end a token.
                if hit.marks.binary_key || hit.key.iter().any(|byte| b" \r\n".contains(byte)) {
                    base64::encode(hit.key, |bytes| line.extend_from_slice(bytes));
                    line.extend_from_slice(b" b\r\n");
                } else {
                    line.extend_from_slice(hit.key);
                    line.extend_from_slice(b"\r\n");
                }
            }
            Dump::Cache => {
                line.extend_from_slice(b"ITEM ");
                line.extend_from_slice(hit.key);
                let exp = unix_seconds(hit.deadline).unwrap_or(0);
                let rest = format!(" [{} b; {exp} s]\r\n", hit.value.len());
                line.extend_from_slice(rest.as_bytes());
            }
        }
        out.bytes(&line);
    }
}

/// Unix seconds of a deadline, `None` for never.
fn unix_seconds(deadline: Deadline) -> Option<u64> {
    (!deadline.is_never()).then(|| deadline.as_millis().div_ceil(1000))
}

/// Appends `key` with everything but letters, digits and `-._~` as `%XX`.
fn url_encode(key: &[u8], line: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in key {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            line.push(byte);
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            line.extend_from_slice(&[b'%', DIGITS[high], DIGITS[low]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringlane_types::request::{Marks, Value};

    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    fn lines(dump: Dump, key: &[u8], deadline: Deadline, binary_key: bool) -> Vec<u8> {
        let hit = Hit {
            item: None,
            key,
            value: Value::Whole(b"abc"),
            flags: 7,
            cas: 9,
            deadline,
            deadline_before: deadline,
            idle_seconds: 5,
            marks: Marks { binary_key, ..Marks::default() },
            class: 2,
            item_bytes: 70,
        };
        let mut out = dump.opening().to_vec();
        dump.item(&hit, NOW, &mut out);
        out.extend_from_slice(dump.closing());
        out
    }

    #[test]
    fn metadump_lines_end_in_a_space_and_a_bare_newline() {
        assert_eq!(
            lines(Dump::Metadata, b"a b%\xff-._~Z", Deadline::NEVER, false),
            b"OK\r\nkey=a%20b%25%FF-._~Z exp=-1 la=1699999995 cas=9 fetch=no cls=2 size=70 \
              flags=7 \nEND\r\n"
        );
        let text = lines(Dump::Metadata, b"k", Deadline::from_exptime(30, NOW), false);
        assert!(String::from_utf8(text).unwrap().contains(" exp=1700000030 "));
    }

    #[test]
    fn mgdump_lines_are_requests_that_fetch_the_item() {
        assert_eq!(
            lines(Dump::Requests, b"foo", Deadline::NEVER, false),
            b"OK\r\nmg foo\r\nEN\r\n"
        );
        let encoded = b"OK\r\nmg Zm9v b\r\nEN\r\n";
        assert_eq!(lines(Dump::Requests, b"foo", Deadline::NEVER, true), encoded);
        let spaced = lines(Dump::Requests, b"a b", Deadline::NEVER, false);
        assert_eq!(spaced, b"OK\r\nmg YSBi b\r\nEN\r\n");
    }

    #[test]
    fn cachedump_lines_show_length_and_expiry() {
        assert_eq!(
            lines(Dump::Cache, b"k", Deadline::NEVER, false),
            b"ITEM k [3 b; 0 s]\r\nEND\r\n"
        );
        assert_eq!(
            lines(Dump::Cache, b"k", Deadline::from_exptime(30, NOW), false),
            b"ITEM k [3 b; 1700000030 s]\r\nEND\r\n"
        );
    }
}
