//! Which command comes next.

use std::fmt;
use std::str::FromStr;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkloadCommand {
    /// Read one key.
    Get,
    /// Write one key.
    Set,
    /// Remove one key.
    Delete,
    /// Add one to a counter; counters are keys of their own.
    Incr,
    /// Read many keys with one request.
    Multiget,
    /// Make a counter that an increment has missed. Not part of a mix.
    Create,
}

impl WorkloadCommand {
    /// All of them, in the order of reports.
    pub const ALL: [WorkloadCommand; 6] = [
        WorkloadCommand::Get,
        WorkloadCommand::Set,
        WorkloadCommand::Delete,
        WorkloadCommand::Incr,
        WorkloadCommand::Multiget,
        WorkloadCommand::Create,
    ];

    /// Those a mix may name.
    pub const MIXED: [WorkloadCommand; 5] = [
        WorkloadCommand::Get,
        WorkloadCommand::Set,
        WorkloadCommand::Delete,
        WorkloadCommand::Incr,
        WorkloadCommand::Multiget,
    ];

    /// The name used in flags and reports.
    pub const fn name(self) -> &'static str {
        match self {
            WorkloadCommand::Get => "get",
            WorkloadCommand::Set => "set",
            WorkloadCommand::Delete => "delete",
            WorkloadCommand::Incr => "incr",
            WorkloadCommand::Multiget => "multiget",
            WorkloadCommand::Create => "create",
        }
    }
}

/// Shares of commands, spelled `get=90,set=10`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    weights: [u32; WorkloadCommand::MIXED.len()],
    /// Random numbers below the n-th threshold and not below an earlier one pick command n.
    thresholds: [u32; WorkloadCommand::MIXED.len()],
}

impl Mix {
    /// The command that 32 random bits pick.
    #[inline]
    pub fn pick(&self, bits: u32) -> WorkloadCommand {
        for (command, threshold) in WorkloadCommand::MIXED.iter().zip(self.thresholds) {
            if bits <= threshold && threshold > 0 {
                return *command;
            }
        }
        WorkloadCommand::Multiget
    }

    /// The weight of a command, 0 when it does not occur.
    pub fn weight(&self, command: WorkloadCommand) -> u32 {
        self.weights[command as usize]
    }

    /// Whether any command writes values, so that a read can be too old.
    pub fn writes(&self) -> bool {
        self.weight(WorkloadCommand::Set) + self.weight(WorkloadCommand::Delete) > 0
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = [0u32; WorkloadCommand::MIXED.len()];
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let command = WorkloadCommand::MIXED.iter().find(|command| command.name() == name);
            let command = command.ok_or_else(|| {
                let names = WorkloadCommand::MIXED.map(WorkloadCommand::name).join(", ");
                format!("there is no command {name:?}; use {names}")
            })?;
            let weight = weight.parse().ok().filter(|&weight| weight <= 1_000_000);
            weights[*command as usize] =
                weight.ok_or_else(|| format!("{part:?} lacks a weight"))?;
        }
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        if total == 0 {
            return Err("all weights are 0".into());
        }
        let mut sum = 0u64;
        let thresholds = weights.map(|weight| {
            sum += u64::from(weight);
            match weight {
                0 => 0,
                _ => (sum * u64::from(u32::MAX) / total) as u32,
            }
        });
        Ok(Mix { weights, thresholds })
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for command in WorkloadCommand::MIXED {
            if self.weight(command) > 0 {
                write!(f, "{separator}{}={}", command.name(), self.weight(command))?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn shares_are_kept() {
        let mix: Mix = "get=90,set=9,multiget=1".parse().unwrap();
        let mut random = Random::new(3, 0);
        let mut seen = [0; WorkloadCommand::MIXED.len()];
        for _ in 0..100_000 {
            seen[mix.pick(random.bits() as u32) as usize] += 1;
        }
        assert!((89_600..90_400).contains(&seen[0]), "{seen:?}");
        assert!((8_700..9_300).contains(&seen[1]), "{seen:?}");
        assert_eq!((seen[2], seen[3]), (0, 0));
        assert!((850..1_150).contains(&seen[4]), "{seen:?}");
    }

    #[test]
    fn a_single_command_is_always_picked() {
        for (text, command) in
            [("get=100", WorkloadCommand::Get), ("delete=1", WorkloadCommand::Delete)]
        {
            let mix: Mix = text.parse().unwrap();
            assert!([0, 1, u32::MAX / 2, u32::MAX].iter().all(|&bits| mix.pick(bits) == command));
        }
    }

    #[test]
    fn spellings_round_trip_and_nonsense_is_refused() {
        assert_eq!("set=1,get=9".parse::<Mix>().unwrap().to_string(), "get=9,set=1");
        for text in ["", "get=0", "got=1", "get=x", "get=1;set=1"] {
            assert!(text.parse::<Mix>().is_err(), "{text}");
        }
    }
}
