//! Parses the values of settings, the same way on the command line and in the file.
//!
//! An error is the rest of a sentence that begins with setting and value: "is not a size: use
//! 64MiB ..."; [`complaint`] puts it together.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use ringlane::config::cluster::{ListedMember, is_node_id};
use ringlane::config::size::Size;
use ringlane::config::{CORES_MAX, LogLevel};
use ringlane::ring::RingHash;
use ringlane::shard::Eviction;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// The sentence that rejects `value` for `setting`.
pub fn complaint(setting: &str, value: &str, reason: &str) -> String {
    let value = if value.is_empty() { "\"\"".into() } else { printable(value) };
    format!("{setting} {value} {reason}")
}

/// `text` on one line and without control characters.
pub fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Memory; a plain number counts MiB, as memcached's `-m` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

impl FromStr for MemorySize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match Size::parse(text, 1 << 20) {
            Some(Size(bytes)) if bytes > 0 => Ok(Self(bytes)),
            _ => Err("is not a size: use 64MiB, 1GiB or a number of MiB".into()),
        }
    }
}

/// The size of an item; a plain number counts bytes, as memcached's `-I` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemSize(pub u32);

impl FromStr for ItemSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = Size::parse(text, 1).and_then(|size| u32::try_from(size.0).ok());
        bytes.map(Self).ok_or_else(|| {
            "is not an item size: use 512k, 1MiB or a number of bytes, at most 1GiB".into()
        })
    }
}

/// A positive number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PositiveNumber(pub u32);

impl FromStr for PositiveNumber {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number) if number > 0 => Ok(Self(number)),
            _ => Err("is out of range: use a number from 1 to 4294967295".into()),
        }
    }
}

/// A TCP port; 0 where the setting allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(pub u16);

impl FromStr for Port {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| "is not a port: use a number from 1 to 65535".into())
    }
}

/// memcached's UDP port, which must be 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOff;

impl FromStr for UdpOff {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0u16) => Ok(Self),
            _ => Err("is not supported: there is no UDP; use 0 or omit the flag".into()),
        }
    }
}

/// An address to listen on, optionally with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// The address.
    pub ip: IpAddr,
    /// Its port, if one was given.
    pub port: Option<u16>,
}

impl FromStr for ListenAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self { ip, port: None });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { ip: address.ip(), port: Some(address.port()) });
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, port.parse().ok()),
            None => (text, Some(0)),
        };
        let port = port.filter(|_| !name.is_empty());
        let found = port.and_then(|port| (name, port).to_socket_addrs().ok()?.next());
        let found = found.ok_or(
            "is not an address of this host: use one such as 127.0.0.1, ::1, or 0.0.0.0 for all",
        )?;
        Ok(Self { ip: found.ip(), port: (found.port() != 0).then_some(found.port()) })
    }
}

/// An address with its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAddress(pub SocketAddr);

impl FromStr for SocketAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_socket_addrs().ok().and_then(|mut found| found.next()) {
            Some(address) if address.port() != 0 => Ok(Self(address)),
            _ => Err("is not an address with a port: use one such as 127.0.0.1:8080".into()),
        }
    }
}

/// CPU numbers and ranges of them, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl FromStr for CpuList {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last - first < CORES_MAX => {
                    cpus.extend(first..=last);
                }
                _ => return Err("is not a list of CPUs: use one such as 2-5,8".into()),
            }
        }
        Ok(Self(cpus))
    }
}

/// A positive span in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl FromStr for Seconds {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u32>() {
            Ok(seconds) if seconds > 0 => Ok(Self(Duration::from_secs(seconds.into()))),
            _ => Err("is not a duration: use at least 1 second, or omit the flag".into()),
        }
    }
}

/// A span in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Micros(pub Duration);

impl FromStr for Micros {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let micros = text.parse::<u32>();
        micros
            .map(|micros| Self(Duration::from_micros(micros.into())))
            .map_err(|_| "is not a duration: use a number of microseconds, or 0 for none".into())
    }
}

/// A duration with its unit; a plain number counts seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitDuration(pub Duration);

impl FromStr for UnitDuration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let millis = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => 0,
        };
        match number.parse::<u32>() {
            Ok(number) if millis > 0 => Ok(Self(Duration::from_millis(number as u64 * millis))),
            _ => Err("is not a duration: use one such as 500ms, 3s, 10m or 1h".into()),
        }
    }
}

/// The id of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeId(pub String);

impl FromStr for NodeId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match is_node_id(text) {
            true => Ok(Self(text.into())),
            false => Err("is not a node id: use 1 to 64 bytes without spaces, = or commas".into()),
        }
    }
}

/// A node of a static list: `id=address`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member(pub ListedMember);

impl FromStr for Member {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let member = text.trim().split_once('=').and_then(|(id, address)| {
            let SocketAddress(address) = address.parse().ok()?;
            is_node_id(id).then(|| ListedMember { id: id.into(), address })
        });
        member.map(Self).ok_or_else(|| "is not a member: use one such as a=127.0.0.2:7000".into())
    }
}

/// A ring hash by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHashName(pub RingHash);

impl FromStr for RingHashName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        by_name(&RingHash::NAMES, text, "is not a ring hash: use one of").map(Self)
    }
}

/// Permission bits in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixMode(pub u32);

impl FromStr for UnixMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err("is not a file mode: use an octal number from 0 to 777, such as 700".into()),
        }
    }
}

/// The character that ends the prefix of a key: printable ASCII, since a key holds no space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delimiter(pub u8);

impl FromStr for Delimiter {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.as_bytes() {
            &[byte] if byte.is_ascii_graphic() => Ok(Self(byte)),
            _ => Err("is not a delimiter: use one character, such as :".into()),
        }
    }
}

/// An eviction policy by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionName(pub Eviction);

impl FromStr for EvictionName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let reason = "is not an eviction policy: use one of";
        by_name(&Eviction::NAMES, text, reason).map(Self)
    }
}

/// A log level by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogName(pub LogLevel);

impl FromStr for LogName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        by_name(&LogLevel::NAMES, text, "is not a log level: use one of").map(Self)
    }
}

fn by_name<T: Copy>(names: &[(&str, T)], text: &str, reason: &str) -> Result<T, String> {
    let found = names.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<&str> = names.iter().map(|&(name, _)| name).collect();
        format!("{reason} {}", names.join(", "))
    })
}

/// Reads a value that may be a string, a number, or a list of these in the file.
pub fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    let text = deserializer.deserialize_any(AnyText)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// Reads several values from a list or a comma-separated string.
pub fn list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    let text = deserializer.deserialize_any(AnyText)?;
    text.split(',').map(str::parse).collect::<Result<_, _>>().map(Some).map_err(D::Error::custom)
}

/// Any of these as text; list elements are joined with commas.
struct AnyText;

impl<'de> Visitor<'de> for AnyText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number or a list of these")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<String, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = elements.next_element_seed(Element(PhantomData))? {
            texts.push(text);
        }
        Ok(texts.join(","))
    }
}

struct Element<T>(PhantomData<T>);

impl<'de> serde::de::DeserializeSeed<'de> for Element<()> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(AnyText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_number_is_mebibytes_of_memory_and_bytes_of_an_item() {
        assert_eq!("64".parse(), Ok(MemorySize(64 << 20)));
        assert_eq!("512k".parse(), Ok(ItemSize(512 << 10)));
        assert_eq!("4096".parse(), Ok(ItemSize(4096)));
        assert!("5GiB".parse::<ItemSize>().is_err());
        assert!("0".parse::<MemorySize>().is_err());
    }

    #[test]
    fn cpu_lists_hold_numbers_and_ranges_in_their_order() {
        assert_eq!("2-5,8".parse(), Ok(CpuList(vec![2, 3, 4, 5, 8])));
        assert_eq!("3,0,0".parse(), Ok(CpuList(vec![3, 0, 0])));
        for text in ["", "a", "1-", "-1", "3-1", "1,,2", "0-99999999999"] {
            assert!(text.parse::<CpuList>().is_err(), "{text}");
        }
    }

    #[test]
    fn listen_addresses_may_carry_their_port() {
        let parsed = |text: &str| text.parse::<ListenAddress>().map(|a| (a.ip.to_string(), a.port));
        assert_eq!(parsed("127.0.0.2"), Ok(("127.0.0.2".into(), None)));
        assert_eq!(parsed("127.0.0.2:11299"), Ok(("127.0.0.2".into(), Some(11299))));
        assert_eq!(parsed("::1"), Ok(("::1".into(), None)));
        assert_eq!(parsed("[::1]:11299"), Ok(("::1".into(), Some(11299))));
        assert_eq!(parsed("[::]"), Ok(("::".into(), None)));
        for text in ["", ":11211", "1.2.3.4:port", "1.2.3.4:99999", "no such host"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spans_carry_their_unit_and_count_seconds_without_one() {
        let span = |text: &str| text.parse::<UnitDuration>().map(|span| span.0.as_millis());
        assert_eq!((span("500ms"), span("3s"), span("3")), (Ok(500), Ok(3000), Ok(3000)));
        assert_eq!((span("10m"), span("1h"), span("0")), (Ok(600_000), Ok(3_600_000), Ok(0)));
        for text in ["", "s", "-1s", "1 s", "1d", "99999999999s"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn members_are_ids_with_addresses() {
        let Member(member) = "a=127.0.0.2:7000".parse().expect("a member");
        assert_eq!((member.id.as_str(), member.address.port()), ("a", 7000));
        for text in ["", "a", "a=", "=127.0.0.2:7000", "a=127.0.0.2", "a b=127.0.0.2:7000"] {
            assert!(text.parse::<Member>().is_err(), "{text}");
        }
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!("0770".parse(), Ok(UnixMode(0o770)));
        assert_eq!("0o600".parse(), Ok(UnixMode(0o600)));
        assert!("8".parse::<UnixMode>().is_err());
        assert!("1777".parse::<UnixMode>().is_err());
    }
}
