//! `ringlane cluster`: queries a running node about its cluster, for people and scripts.
//!
//! The data comes from the node's `stats cluster`, which any client can request. The owners of a
//! key are computed here from the members, as any client could do too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use clap::{Args, Subcommand};
use ringlane::request::KEY_BYTES_MAX;
use ringlane::ring::{Ring, RingHash, RingNode, RingParameters};

use super::CliError;
use super::values::complaint;

/// Longest wait for an answer; a healthy node answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// The subcommands of `ringlane cluster`.
#[derive(Debug, Subcommand)]
pub enum Inquiry {
    /// Show the members and the traffic between them
    Status(Target),
    /// Show for each key its point on the ring and its replicas in preference order
    Ring {
        #[command(flatten)]
        target: Target,
        /// The keys
        #[arg(value_name = "KEY", required = true)]
        keys: Vec<String>,
    },
}

/// Which node to query, and the output format.
#[derive(Args, Debug)]
pub struct Target {
    /// Client address of a node of the cluster
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:11211")]
    address: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Queries the node and returns the text to print.
pub fn inquire(inquiry: Inquiry) -> Result<String, CliError> {
    match inquiry {
        Inquiry::Status(target) => {
            let cluster = Cluster::ask(&target.address)?;
            Ok(if target.json { cluster.json() } else { cluster.table() })
        }
        Inquiry::Ring { target, keys } => Cluster::ask(&target.address)?.places(&keys, target.json),
    }
}

/// What a node reported.
struct Cluster {
    /// Statistics of the node and the cluster, in the node's order.
    figures: Vec<(String, String)>,
    /// Each member's statistics by its id.
    members: BTreeMap<String, BTreeMap<String, String>>,
}

impl Cluster {
    fn ask(address: &str) -> Result<Self, CliError> {
        let lines = stats(address).map_err(|error| {
            let reason = match error.kind() {
                ErrorKind::InvalidInput => "is not an address: use one such as 127.0.0.1:11211",
                ErrorKind::ConnectionRefused => "refused the connection: is a node running there?",
                ErrorKind::UnexpectedEof | ErrorKind::InvalidData => "is not a Ringlane node",
                ErrorKind::WouldBlock | ErrorKind::TimedOut => "did not answer within 5 s",
                _ => return CliError(format!("--address {address} cannot be queried: {error}")),
            };
            CliError(complaint("--address", address, reason))
        })?;
        let mut cluster = Cluster { figures: Vec::new(), members: BTreeMap::new() };
        for line in lines {
            let mut words = line.strip_prefix("STAT ").unwrap_or_default().splitn(2, ' ');
            let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
            let member = name.strip_prefix("member:").and_then(|rest| rest.rsplit_once(':'));
            match member {
                Some((id, what)) => {
                    let member = cluster.members.entry(id.into()).or_default();
                    member.insert(what.into(), value.into());
                }
                None => cluster.figures.push((name.into(), value.into())),
            }
        }
        if cluster.figure("cluster_enabled") == "1" {
            Ok(cluster)
        } else {
            Err(CliError(format!(
                "the node at {address} is standalone: start it with --cluster-listen to cluster it"
            )))
        }
    }

    fn figure(&self, name: &str) -> &str {
        let found = self.figures.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    fn table(&self) -> String {
        let mut text = String::new();
        let figure = |name| self.figure(name);
        let _ = writeln!(
            text,
            "cluster {}, seen from {}: epoch {}, {} replicas, write quorum {}, read quorum {}\n",
            figure("cluster_name"),
            figure("node_id"),
            figure("epoch"),
            figure("replicas"),
            figure("write_quorum"),
            figure("read_quorum"),
        );
        let widest = self.members.keys().map(String::len).max().unwrap_or(0).max(4);
        let _ = writeln!(
            text,
            "{:widest$}  {:7}  {:21}  {:>6}  {:>6}  {:>7}  breaker",
            "node", "state", "address", "weight", "share", "settled"
        );
        for (id, member) in &self.members {
            let of = |name: &str| member.get(name).map_or("-", String::as_str);
            let share = of("share").parse::<f64>().map_or(0.0, |share| share * 100.0);
            let _ = writeln!(
                text,
                "{id:widest$}  {:7}  {:21}  {:>6}  {share:>5.1}%  {:>7}  {}",
                of("state"),
                of("address"),
                of("weight"),
                of("settled"),
                of("breaker")
            );
        }
        text.push('\n');
        for names in [
            &["forwarded", "served", "coordinated", "quorum_failures", "uncertain"][..],
            &["hints", "hint_bytes", "hints_handed_over", "read_repairs", "compared_records"],
            &["filled_records", "filled_bytes", "arriving_share", "handed_records", "handed_bytes"],
        ] {
            let shown: Vec<String> =
                names.iter().map(|name| format!("{name} {}", figure(name))).collect();
            let _ = writeln!(text, "{}", shown.join(", "));
        }
        text
    }

    fn json(&self) -> String {
        let mut text = String::from("{");
        for (name, value) in &self.figures {
            let _ = write!(text, "{}:{},", quoted(name), json_value(value));
        }
        text.push_str("\"nodes\":[");
        for (at, (id, member)) in self.members.iter().enumerate() {
            let _ = write!(text, "{}{{\"id\":{}", if at > 0 { "," } else { "" }, quoted(id));
            for (name, value) in member {
                let _ = write!(text, ",{}:{}", quoted(name), json_value(value));
            }
            text.push('}');
        }
        text.push_str("]}\n");
        text
    }

    fn places(&self, keys: &[String], json: bool) -> Result<String, CliError> {
        let trouble = |what: String| CliError(format!("the node's members form no ring: {what}"));
        let number = |text: &str| text.parse::<u32>().unwrap_or(0);
        let hash = RingHash::NAMES.iter().find(|(name, _)| *name == self.figure("ring_hash"));
        let parameters = RingParameters {
            hash: hash.ok_or_else(|| trouble("unknown ring hash".into()))?.1,
            points_per_weight: number(self.figure("vnodes")),
            replicas: number(self.figure("replicas")) as u8,
        };
        let seated = self.members.iter().filter_map(|(id, member)| {
            let weight = number(member.get("weight")?);
            (weight > 0).then(|| RingNode { id: id.as_str().into(), weight })
        });
        let ring = Ring::new(u64::from(number(self.figure("epoch"))), parameters, seated)
            .map_err(|error| trouble(error.to_string()))?;
        if let Some(key) = keys.iter().find(|key| !(1..=KEY_BYTES_MAX).contains(&key.len())) {
            let reason = format!("is not a key: keys have 1 to {KEY_BYTES_MAX} bytes");
            return Err(CliError(complaint("KEY", key, &reason)));
        }
        let widest = keys.iter().map(|key| key.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for (at, key) in keys.iter().enumerate() {
            let point = ring.point_of(key.as_bytes());
            let replicas = ring.replicas(point);
            let nodes = replicas.iter().map(|node| &*ring.nodes()[node.0 as usize].id);
            if json {
                let nodes: Vec<String> = nodes.map(quoted).collect();
                let comma = if at > 0 { "," } else { "" };
                let (key, point, nodes) = (quoted(key), point.0, nodes.join(","));
                let _ =
                    write!(text, "{comma}{{\"key\":{key},\"point\":{point},\"nodes\":[{nodes}]}}");
            } else {
                let nodes: Vec<&str> = nodes.collect();
                let _ = writeln!(text, "{key:widest$}  {:08x}  {}", point.0, nodes.join(" "));
            }
        }
        Ok(if json { format!("[{text}]\n") } else { text })
    }
}

fn stats(address: &str) -> std::io::Result<Vec<String>> {
    let unresolved = || std::io::Error::other("the name has no address");
    let target = address.to_socket_addrs()?.next().ok_or_else(unresolved)?;
    let mut socket = TcpStream::connect_timeout(&target, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"stats cluster\r\n")?;
    let mut lines = Vec::new();
    for line in BufReader::new(socket).lines() {
        match line?.trim_end() {
            "END" => return Ok(lines),
            "ERROR" => return Err(ErrorKind::InvalidData.into()),
            line => lines.push(line.to_owned()),
        }
    }
    Err(ErrorKind::UnexpectedEof.into())
}

/// A statistic as JSON: numbers bare, everything else as a string.
fn json_value(value: &str) -> String {
    if value.parse::<f64>().is_ok_and(f64::is_finite) { value.into() } else { quoted(value) }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_json_demands_and_numbers_stay_bare() {
        assert_eq!(quoted("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
        assert_eq!(json_value("0.2500"), "0.2500");
        assert_eq!(json_value("127.0.0.1:7000"), "\"127.0.0.1:7000\"");
        assert_eq!(json_value("inf"), "\"inf\"");
    }
}
