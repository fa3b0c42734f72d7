//! The network: when, how often and whether at all a frame arrives.

use std::collections::HashSet;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

/// How the network treats messages.
pub struct Network {
    random: Xoshiro256PlusPlus,
    /// Pairs of nodes of which the first cannot reach the second.
    cut: HashSet<(usize, usize)>,
    /// Whether connections across a cut are refused in the name of who is there, as some firewalls
    /// do.
    pub refusing: bool,
    /// Of a thousand frames, how many are lost, and how many arrive twice.
    pub lost_per_mille: u32,
    pub duplicated_per_mille: u32,
    /// Longest delay of an ordinary frame, in milliseconds; a few take much longer.
    pub delay_max: u64,
    pub lost: u64,
    pub duplicated: u64,
}

impl Network {
    pub fn new(random: Xoshiro256PlusPlus) -> Self {
        Self {
            random,
            cut: HashSet::new(),
            refusing: false,
            lost_per_mille: 0,
            duplicated_per_mille: 0,
            delay_max: 2,
            lost: 0,
            duplicated: 0,
        }
    }

    /// The delays after which a frame from one node arrives at another; none when it does not.
    pub fn send(&mut self, from: usize, to: usize) -> Vec<Duration> {
        if self.cut.contains(&(from, to)) || self.random.random_range(0..1000) < self.lost_per_mille
        {
            self.lost += 1;
            return Vec::new();
        }
        let mut delays = vec![self.delay()];
        if self.random.random_range(0..1000) < self.duplicated_per_mille {
            self.duplicated += 1;
            delays.push(self.delay());
        }
        delays
    }

    fn delay(&mut self) -> Duration {
        let slow = self.random.random_range(0..200) == 0;
        let max = if slow { self.delay_max * 50 } else { self.delay_max };
        Duration::from_millis(self.random.random_range(0..=max))
    }

    /// Whether one node can reach another.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Cuts some nodes off from the others, both ways or only from them to the others.
    pub fn partition(&mut self, apart: &[usize], count: usize, one_way: bool) {
        for inside in apart {
            for effects in (0..count).filter(|node| !apart.contains(node)) {
                self.cut.insert((*inside, effects));
                if !one_way {
                    self.cut.insert((effects, *inside));
                }
            }
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// From now on everything arrives.
    pub fn calm(&mut self) {
        self.heal();
        (self.lost_per_mille, self.duplicated_per_mille) = (0, 0);
        self.delay_max = 2;
    }
}
