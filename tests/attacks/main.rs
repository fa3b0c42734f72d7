//! Attacks on a running server: whatever clients and strangers do, a bystander is served in time, and
//! afterwards memory, descriptors, connections and data are as before.
//!
//! Each attack runs once in about two seconds. `RINGLANE_ATTACK_SECONDS=3600` repeats all of them in
//! random order for an hour, on servers that live as long; `RINGLANE_SEED` repeats an order,
//! `RINGLANE_BINARY` names another server.
//!
//! How long the bystander waits is printed, and judged only by `RINGLANE_ATTACK_P99_MILLIS=5` on a
//! release build and a machine that has nothing else to do: on a busy one it says more about the
//! machine. With `RINGLANE_ATTACK_FIGURES=shown` memory is not judged either, for builds that check
//! themselves.

mod cluster_ports;
mod floods;
mod limits;
#[path = "../live/mod.rs"]
mod live;
mod resets;
mod scene;
mod stalls;
mod traffic;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use live::Noise;
use scene::{Attack, Scene};

/// Attacks that the server does not withstand yet, and what is missing. They run and are reported, but
/// fail nothing; one that is withstood is to leave the list.
const PENDING: &[(&str, &str)] = &[
    ("the price of the stalled", "memory that is freed in between is not used well"),
    ("resets in every state", "once in six runs a descriptor more was open afterwards"),
];

/// One attack at a time: the bystander is to suffer from that alone.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn figure(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

fn seed() -> u64 {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    figure("RINGLANE_SEED").unwrap_or(clock.as_nanos() as u64 | 1)
}

/// Servers that live from attack to attack, and what has gone wrong.
#[derive(Default)]
struct Campaign {
    scenes: Vec<Scene>,
    failures: Vec<String>,
}

impl Campaign {
    fn run(&mut self, attack: &Attack, noise: &mut Noise) {
        let found = self.scenes.iter().position(|scene| scene.setup == attack.setup);
        let scene = found.map(|at| self.scenes.swap_remove(at));
        let mut scene = scene.unwrap_or_else(|| Scene::start(attack.setup));
        let suffered = catch_unwind(AssertUnwindSafe(|| scene.suffer(attack, noise)));
        match suffered {
            Ok(figures) => {
                println!("{:<40} {figures}", attack.name);
                self.scenes.push(scene);
            }
            // Whatever is left of it, the next attack gets a fresh one.
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let failure = format!("{}: {}", attack.name, text.unwrap_or_default());
                match PENDING.iter().find(|(name, _)| *name == attack.name) {
                    Some((_, missing)) => println!("PENDING ({missing}) {failure}"),
                    None => {
                        println!("FAILED {failure}");
                        self.failures.push(failure);
                    }
                }
            }
        }
    }

    /// Ends the servers, in good order.
    fn end(mut self) {
        for scene in self.scenes.drain(..) {
            scene.end();
        }
        let failures = &self.failures;
        assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    }
}

fn once(attacks: &[Attack]) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let seed = seed();
    println!("RINGLANE_SEED={seed}");
    let mut noise = Noise::new(seed);
    let mut campaign = Campaign::default();
    attacks.iter().for_each(|attack| campaign.run(attack, &mut noise));
    campaign.end();
}

#[test]
fn stalled_clients() {
    once(&stalls::ATTACKS);
}

#[test]
fn resets_and_half_closes() {
    once(&resets::ATTACKS);
}

#[test]
fn floods_of_requests() {
    once(&floods::ATTACKS);
}

#[test]
fn limits_of_the_process() {
    once(&limits::ATTACKS);
}

#[test]
fn strangers_at_the_cluster_ports() {
    once(&cluster_ports::ATTACKS);
}

#[test]
fn all_of_them_for_as_long_as_asked() {
    let Some(seconds) = figure("RINGLANE_ATTACK_SECONDS") else { return };
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let seed = seed();
    println!("RINGLANE_SEED={seed}, {seconds} s");
    let mut noise = Noise::new(seed);
    let lists: [&[Attack]; 5] = [
        &stalls::ATTACKS,
        &resets::ATTACKS,
        &floods::ATTACKS,
        &limits::ATTACKS,
        &cluster_ports::ATTACKS,
    ];
    let attacks: Vec<&Attack> = lists.into_iter().flatten().collect();
    let mut campaign = Campaign::default();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        let attack = attacks[noise.below(attacks.len() as u64) as usize];
        campaign.run(attack, &mut noise);
    }
    campaign.end();
}
