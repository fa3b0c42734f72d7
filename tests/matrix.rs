//! Every option in every place: what an option promises must hold for each protocol, each length of
//! value, each core and each node. A rule that is applied in several places drifts apart in one of
//! them; this finds it from outside.
//!
//! {text, meta, classic, compact} x {10 B, 10 KB, 20 KB, 2 MB} x {plain, `--default-ttl`, `-C`, `-D :`}
//! x {one core, two cores} x {no cluster, a cluster of one, a cluster of two}. Keys are many enough
//! that some belong to the core that is asked, to the other core, and to the other node.

mod live;
#[path = "cluster/nodes.rs"]
mod nodes;
#[path = "matrix/speakers.rs"]
mod speakers;

use std::net::SocketAddr;

use live::Noise;
use nodes::Cluster;
use speakers::{Protocol, Speaker};

/// Below what is received piece by piece, around it, above it, and an item of several chunks.
const VALUE_BYTES: [usize; 4] = [10, 10_000, 20_000, 2_000_000];
/// Keys of each protocol and length: with two cores and two nodes each place has some.
const KEYS: usize = 8;
const TTL_SECONDS: i64 = 500;

/// The options of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Plain,
    DefaultTtl,
    NoCas,
    Prefixes,
}

impl Setting {
    const ALL: [Self; 4] = [Self::Plain, Self::DefaultTtl, Self::NoCas, Self::Prefixes];

    fn flags(self) -> &'static [&'static str] {
        match self {
            Setting::Plain => &[],
            Setting::DefaultTtl => &["--default-ttl", "500"],
            Setting::NoCas => &["-C"],
            Setting::Prefixes => &["-D", ":"],
        }
    }
}

#[test]
fn options_hold_without_a_cluster() {
    let mut wrong = Vec::new();
    for cores in ["1", "2"] {
        for option in Setting::ALL {
            let mut flags = vec!["-I", "4m", "-m", "256", "-t", cores];
            flags.extend(option.flags());
            let server = live::Server::start(&flags);
            let found = check(option, &[server.address()], cores);
            wrong.extend(found.iter().map(|words| format!("{option:?}, {cores} cores: {words}")));
        }
    }
    demand_none(&wrong);
}

#[test]
fn options_hold_in_a_cluster_of_one() {
    in_clusters(1);
}

#[test]
fn options_hold_in_a_cluster_of_two() {
    in_clusters(2);
}

fn in_clusters(count: usize) {
    let mut wrong = Vec::new();
    for cores in ["1", "2"] {
        for option in Setting::ALL {
            let mut flags = vec!["-I", "4m", "-t", cores, "--cpus", "0,1"];
            if cores == "1" {
                flags = vec!["-I", "4m"];
            }
            flags.extend(option.flags());
            let Some(cluster) = Cluster::form(count, &flags) else { return };
            let place = format!("{option:?}, {cores} cores, a cluster of {count}");
            let found = check(option, &cluster.addresses(), cores);
            wrong.extend(found.iter().map(|words| format!("{place}: {words}")));
        }
    }
    demand_none(&wrong);
}

/// Stores and reads in all protocols and lengths at the first address, and asks it what it counted.
fn check(option: Setting, addresses: &[SocketAddr], cores: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut noise = Noise::new(7);
    let mut stores = 0;
    let mut asker = Speaker::connect(Protocol::Text, addresses[0]);
    for protocol in Protocol::ALL {
        // Connections are spread over the cores.
        let mut speakers = [0, 1].map(|_| Speaker::connect(protocol, addresses[0]));
        for bytes in VALUE_BYTES {
            let value = noise.bytes(bytes);
            for number in 0..KEYS {
                let key = format!("p{protocol:?}{bytes}:{number}");
                stores += 1;
                let speaker = &mut speakers[number % 2];
                if let Err(words) = one_key(option, speaker, &mut asker, &key, &value) {
                    wrong.push(format!("{protocol:?}, {bytes} bytes: {words}"));
                    break;
                }
            }
        }
    }
    for protocol in Protocol::ALL {
        let mut speaker = Speaker::connect(protocol, addresses[0]);
        if let Err(words) = prefixes(option, &mut speaker, stores) {
            wrong.push(format!("{protocol:?}, prefix statistics: {words}"));
        }
    }
    if let Err(words) = traffic(&mut asker, cores) {
        wrong.push(words);
    }
    wrong
}

/// Fails with what is wrong in any of the places.
fn demand_none(wrong: &[String]) {
    let shown = wrong.iter().take(60).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} wrong\n{shown}", wrong.len());
}

/// Value, CAS token and TTL of one key.
fn one_key(
    option: Setting,
    speaker: &mut Speaker,
    asker: &mut Speaker,
    key: &str,
    value: &[u8],
) -> Result<(), String> {
    let stored = speaker.store(key, value)?;
    let found = speaker.read(key)?;
    if found.value != value {
        return Err(format!("{} bytes, and others than were stored", found.value.len()));
    }
    let hidden = option == Setting::NoCas;
    if (found.token == 0) != hidden || stored.is_some_and(|token| token != found.token) {
        return Err(format!("CAS token {stored:?} when stored and {} when read", found.token));
    }
    let ttl = asker.line_of(&format!("mg {key} t"))?;
    let seconds = ttl.strip_prefix("HD t").and_then(|text| text.parse::<i64>().ok());
    let right = match (option, seconds) {
        (Setting::DefaultTtl, Some(seconds)) => {
            (TTL_SECONDS - 100..=TTL_SECONDS).contains(&seconds)
        }
        (_, seconds) => seconds == Some(-1),
    };
    if right { Ok(()) } else { Err(format!("TTL {ttl:?}")) }
}

/// The prefixes as one protocol tells them; all of the stores above have to be among them.
fn prefixes(option: Setting, speaker: &mut Speaker, stores: u64) -> Result<(), String> {
    let told = speaker.stats("detail dump")?;
    if option != Setting::Prefixes {
        return Ok(());
    }
    let lines = told.iter().flat_map(|(_, value)| value.lines());
    let (mut get, mut hit, mut set) = (0, 0, 0);
    for line in lines.filter(|line| line.starts_with("PREFIX p")) {
        let figures: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [gets, hits, sets, _] = figures[..] else { return Err(format!("{line:?}")) };
        (get, hit, set) = (get + gets, hit + hits, set + sets);
    }
    // Each key is read once by its own protocol and once for its TTL.
    match (get, hit, set) == (2 * stores, 2 * stores, stores) {
        true => Ok(()),
        false => Err(format!("get {get} hit {hit} set {set} for {stores} keys")),
    }
}

/// What cores hand to each other is served by the other one.
fn traffic(asker: &mut Speaker, cores: &str) -> Result<(), String> {
    let figures = asker.stats("cores")?;
    let sum = |what: &str| -> u64 {
        let of_cores = figures.iter().filter(|(name, _)| name.ends_with(what));
        of_cores.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
    };
    let (forwarded, served) = (sum(":forwarded"), sum(":served"));
    match (cores == "1") == (forwarded == 0) && forwarded == served {
        true => Ok(()),
        false => Err(format!("stats cores: forwarded {forwarded}, served {served}")),
    }
}
