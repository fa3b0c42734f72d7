//! Counters that several clients step at the same time, through several nodes.
//!
//! Every acknowledged step must be in the number that is there at the end, and no two may have led
//! to the same. A step of which nobody said how it ended may be in it or not.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::load::{Talk, Trouble};
use super::nodes::PATIENCE;
use crate::live::Noise;

/// Pause between two steps of a client, which leaves the machine to the nodes.
const PAUSE: Duration = Duration::from_micros(500);

/// Clients at work until they are told to end.
pub struct Steps {
    end: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Account>>,
}

/// What clients know of the counters.
#[derive(Default)]
pub struct Account {
    counters: BTreeMap<String, Counter>,
    /// Steps that failed, with when.
    pub errors: Vec<(Instant, String)>,
}

#[derive(Default)]
struct Counter {
    /// The numbers that acknowledged steps led to.
    numbers: Vec<u64>,
    /// Steps that may be in it or not.
    open: u64,
}

/// Asks through one node after the other until one answers, since a cluster may be in trouble.
fn insist(addresses: &[SocketAddr], line: &str) -> String {
    let begun = Instant::now();
    for address in addresses.iter().cycle() {
        match Talk::new(*address).map_err(Trouble::from).and_then(|mut t| t.ask(line.as_bytes())) {
            Ok(answer) => return answer,
            Err(trouble) => assert!(begun.elapsed() < PATIENCE, "{line}: {trouble:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    unreachable!("there is an address")
}

impl Steps {
    /// Makes `count` counters and starts `clients` clients, each at another of `addresses`.
    pub fn start(name: &str, addresses: &[SocketAddr], clients: usize, count: u64) -> Self {
        let keys: Vec<String> = (0..count).map(|number| format!("{name}-{number}")).collect();
        for key in &keys {
            let answer = insist(addresses, &format!("set {key} 0 0 1\r\n0\r\n"));
            assert_eq!(answer, "STORED", "{key}");
        }
        let (end, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let start = |client: usize| {
            let (keys, addresses) = (keys.clone(), addresses.to_vec());
            let (end, acknowledged) = (end.clone(), acknowledged.clone());
            std::thread::spawn(move || step(client, &keys, &addresses, &end, &acknowledged))
        };
        let clients = (0..clients).map(start).collect();
        Self { end, acknowledged, clients }
    }

    /// Waits until so many steps more have been acknowledged.
    pub fn run_for_steps(&self, count: u64) {
        let target = self.acknowledged.load(Ordering::Relaxed) + count;
        let begun = Instant::now();
        while self.acknowledged.load(Ordering::Relaxed) < target {
            assert!(begun.elapsed() < PATIENCE, "the counters do not get on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the clients.
    pub fn stop(self) -> Account {
        self.end.store(true, Ordering::Relaxed);
        let mut all = Account::default();
        for client in self.clients {
            let Account { counters, errors } = client.join().expect("clients do not panic");
            all.errors.extend(errors);
            for (key, counter) in counters {
                let sum = all.counters.entry(key).or_default();
                sum.numbers.extend(counter.numbers);
                sum.open += counter.open;
            }
        }
        let steps: usize = all.counters.values().map(|counter| counter.numbers.len()).sum();
        println!("{steps} steps, {} failed, {:?}", all.errors.len(), all.errors.first());
        all
    }
}

fn step(
    client: usize,
    keys: &[String],
    addresses: &[SocketAddr],
    end: &AtomicBool,
    acknowledged: &AtomicU64,
) -> Account {
    let mut noise = Noise::new(0x5851_f42d + client as u64);
    let (mut account, mut talk, mut turn) = (Account::default(), None, client);
    while !end.load(Ordering::Relaxed) {
        let key = &keys[noise.below(keys.len() as u64) as usize];
        let request = format!("incr {key} 1\r\n");
        let connected = match talk.take() {
            Some(talk) => Ok(talk),
            None => Talk::new(addresses[turn % addresses.len()]).map_err(Trouble::from),
        };
        let outcome = connected.and_then(|mut connected| {
            let answer = connected.ask(request.as_bytes());
            talk = (!matches!(answer, Err(Trouble::Broken(_)))).then_some(connected);
            answer
        });
        let counter = account.counters.entry(key.clone()).or_default();
        match outcome {
            Ok(number) => {
                counter.numbers.push(number.parse().unwrap_or_else(|_| panic!("incr: {number}")));
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(trouble) => {
                // A write that found no quorum may have taken place, too.
                counter.open += 1;
                turn += usize::from(talk.is_none());
                account.errors.push((Instant::now(), format!("{trouble:?}")));
            }
        }
        std::thread::sleep(PAUSE);
    }
    account
}

impl Account {
    /// Reads every counter through all of `addresses` and fails if a step is lost, counted twice
    /// or invented.
    pub fn settle(&self, addresses: &[SocketAddr]) {
        for (key, Counter { numbers, open }) in &self.counters {
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]);
            assert!(twice.is_none(), "two steps of {key} led to {twice:?}");
            let steps = numbers.len() as u64;
            for address in addresses {
                // Adding nothing reads the newest, as any step does.
                let answer = insist(&[*address], &format!("incr {key} 0\r\n"));
                let number: u64 = answer.parse().unwrap_or_else(|_| panic!("{key}: {answer}"));
                assert!(
                    (steps..=steps + open).contains(&number),
                    "{key} is {number} after {steps} steps and {open} that may count"
                );
                assert!(sorted.last().is_none_or(|last| *last <= number), "{key} fell to {number}");
            }
        }
    }

    /// Fails if a step failed after `at`.
    pub fn assert_no_error_after(&self, at: Instant) {
        let late: Vec<_> = self.errors.iter().filter(|(when, _)| *when >= at).collect();
        assert!(late.is_empty(), "{} errors, the first {:?}", late.len(), late.first());
    }
}
