//! Instructions per request on the hot path, counted by callgrind and compared with a baseline.
//!
//! Time on a shared machine is noise; instructions are the same on every run of the same program.
//! Each scenario runs twice under valgrind, once with half of the repetitions: the difference is
//! what the repetitions cost, without start, filling and input. Refused: toggling the collection by
//! function names (what is inlined has no name) and a crate with a runner that must be installed
//! in the same version. The engine is instantiated once, for one kind of output and one core:
//! beside a scenario of two cores it was inlined differently and counted up to 8 % more.
//!
//! ```text
//! cargo bench --bench instructions                 compare, exit code 1 beyond the tolerance
//! cargo bench --bench instructions -- get          only scenarios whose name contains this
//! cargo bench --bench instructions -- --renew      write benches/instructions.baseline anew
//! callgrind_annotate target/instructions/NAME.out  where a scenario's instructions are
//! ```
//!
//! Counts depend on compiler, C library and CPU features, so the baseline names them; on another
//! host the counts are printed and not judged. `cargo test --bench instructions` runs each scenario
//! once, without valgrind.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

mod support;

use support::{Node, VALUE_BYTES, Write, key, pipelines};

/// Largest change that passes.
const TOLERANCE_PERCENT: f64 = 2.0;
/// Keys in the node: enough for several pages, few enough to fill under valgrind in no time.
const KEYS: u64 = 10_000;
/// Memory of the node.
const MEMORY_BYTES: u64 = 16 << 20;
/// Memory of a node that has to evict.
const SCARCE_BYTES: u64 = 2 << 20;
/// Requests of a scenario's longer run.
const REQUESTS: usize = 12_800;
/// Names the scenario and the repetitions to the process under valgrind.
const SCENARIO: &str = "RINGLANE_INSTRUCTIONS";

/// One measured path.
struct Scenario {
    name: &'static str,
    /// What a connection sends.
    write: Write,
    /// Requests in one input.
    depth: usize,
    /// Keys asked for.
    keys: u64,
    /// Memory of the node, which is filled with [`KEYS`] keys.
    memory_bytes: u64,
    /// Bytes of one answer.
    answer_bytes: usize,
}

const HIT: usize = "VALUE  0 32\r\n\r\nEND\r\n".len() + 16 + VALUE_BYTES;

#[rustfmt::skip]
const SCENARIOS: [Scenario; 14] = [
    scenario("text get, 1 request", support::text_get, 1, HIT),
    scenario("text set, 1 request", support::text_set, 1, "STORED\r\n".len()),
    scenario("text get, 64 requests", support::text_get, 64, HIT),
    scenario("text set, 64 requests", support::text_set, 64, "STORED\r\n".len()),
    scenario("text set with a TTL, 64 requests", support::text_set_with_ttl, 64, "STORED\r\n".len()),
    scenario("text multiget of 50", multiget, 1, 50 * (HIT - 5) + 5),
    scenario("meta get, 64 requests", support::meta_get, 64, "VA 32\r\n\r\n".len() + VALUE_BYTES),
    scenario("meta set, 64 requests", support::meta_set, 64, "HD\r\n".len()),
    scenario("binary get, 64 requests", support::binary_get, 64, 12 + VALUE_BYTES),
    scenario("binary set, 64 requests", support::binary_set, 64, 12),
    scenario("classic get, 64 requests", support::classic_get, 64, 24 + 4 + VALUE_BYTES),
    scenario("classic set, 64 requests", support::classic_set, 64, 24),
    Scenario { keys: 1 << 40, ..scenario("text get of a missing key, 64 requests", support::text_get, 64, 5) },
    Scenario {
        keys: 1 << 40, memory_bytes: SCARCE_BYTES,
        ..scenario("text set that evicts, 64 requests", support::text_set, 64, "STORED\r\n".len())
    },
];

const fn scenario(name: &'static str, write: Write, depth: usize, answer_bytes: usize) -> Scenario {
    Scenario { name, write, depth, keys: KEYS, memory_bytes: MEMORY_BYTES, answer_bytes }
}

/// `get` of 50 keys, of which the first is `number`.
fn multiget(number: u64, input: &mut Vec<u8>) {
    input.extend_from_slice(b"get");
    for i in 0..50 {
        input.push(b' ');
        input.extend_from_slice(&key((number + i * 37) % KEYS));
    }
    input.extend_from_slice(b"\r\n");
}

impl Scenario {
    fn repetitions(&self) -> usize {
        let keys = self.depth * if self.name.contains("multiget") { 50 } else { 1 };
        REQUESTS / keys
    }

    /// Prepares for the longer run and feeds `repetitions` inputs, all of which are answered.
    fn run(&self, repetitions: usize) {
        let fill = if self.memory_bytes == SCARCE_BYTES { 4 * KEYS } else { KEYS };
        let mut node = Node::filled(self.memory_bytes, fill);
        let evicted = node.engine.shard.counters().evictions;
        assert_eq!(evicted > 0, self.memory_bytes == SCARCE_BYTES, "{evicted} evicted");
        let inputs = pipelines(self.write, self.depth, self.keys, self.repetitions());
        for input in &inputs[..repetitions] {
            let answers = node.feed(input);
            assert_eq!(
                answers.len(),
                self.depth * self.answer_bytes,
                "{}: {}",
                self.name,
                String::from_utf8_lossy(answers)
            );
        }
    }

    /// Instructions per repetition.
    fn count(&self) -> Result<f64, String> {
        let whole = self.repetitions();
        // The longer run last: its profile is the one that stays.
        let [short, long] = [whole / 2, whole].map(|repetitions| self.callgrind(repetitions));
        Ok((long? - short?) as f64 / (whole - whole / 2) as f64)
    }

    fn callgrind(&self, repetitions: usize) -> Result<u64, String> {
        let out = directory().join(format!("{}.out", self.name.replace([' ', ','], "-")));
        let program = env::current_exe().map_err(|error| error.to_string())?;
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--quiet"])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(program)
            .env(SCENARIO, format!("{repetitions} {}", self.name))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("valgrind: {error}"))?;
        if !output.status.success() {
            return Err(format!("{}: {}", self.name, String::from_utf8_lossy(&output.stderr)));
        }
        let text = fs::read_to_string(&out).map_err(|error| format!("{out:?}: {error}"))?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        total.and_then(|total| total.trim().parse().ok()).ok_or(format!("no totals in {out:?}"))
    }
}

fn main() -> ExitCode {
    if let Ok(asked) = env::var(SCENARIO) {
        let (repetitions, name) = asked.split_once(' ').expect("repetitions and a name");
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).expect("a name");
        scenario.run(repetitions.parse().expect("a number of repetitions"));
        return ExitCode::SUCCESS;
    }
    if !support::is_measuring() {
        SCENARIOS.iter().for_each(|scenario| scenario.run(scenario.repetitions() / 4));
        println!("{} scenarios answer as they should", SCENARIOS.len());
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => {
            eprintln!("instructions: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Counts, prints, and judges or renews. False when something got worse.
fn measure() -> Result<bool, String> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: valgrind is not installed");
        return Ok(true);
    }
    let arguments: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    let renews = arguments.iter().any(|argument| argument == "--renew");
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-'));
    let here = environment();
    let (there, baseline) = read_baseline();
    let judged = there == here && !renews;
    fs::create_dir_all(directory()).map_err(|error| error.to_string())?;
    let mut fresh = String::new();
    let mut worse = Vec::new();
    println!("{:40} {:>10} {:>10}", "instructions per request", "baseline", "now");
    for scenario in &SCENARIOS {
        if wanted.is_some_and(|wanted| !scenario.name.contains(wanted.as_str())) {
            continue;
        }
        let now = scenario.count()? / scenario.depth as f64;
        writeln!(fresh, "{now:.1}\t{}", scenario.name).expect("a string takes everything");
        let Some(&before) = baseline.get(scenario.name) else {
            println!("{:40} {:>10} {now:10.1}", scenario.name, "");
            continue;
        };
        let change = 100.0 * (now / before - 1.0);
        println!("{:40} {before:10.1} {now:10.1} {change:+6.1} %", scenario.name);
        if change > TOLERANCE_PERCENT {
            worse.push(scenario.name);
        } else if change < -TOLERANCE_PERCENT && judged {
            println!("{:40} fewer: renew the baseline, so that they stay so few", "");
        }
    }
    if renews {
        let path = baseline_path();
        fs::write(&path, format!("{here}{fresh}")).map_err(|error| error.to_string())?;
        println!("written to {}", path.display());
    } else if !judged {
        println!("SKIPPED: not judged, since the baseline is from elsewhere");
        println!("baseline:\n{there}here:\n{here}");
    } else if !worse.is_empty() {
        println!("more than {TOLERANCE_PERCENT} % worse: {}", worse.join("; "));
    }
    Ok(worse.is_empty() || !judged)
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("instructions")
}

fn baseline_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.baseline")
}

/// The baseline's environment, and its counts by scenario.
fn read_baseline() -> (String, BTreeMap<String, f64>) {
    let text = fs::read_to_string(baseline_path()).unwrap_or_default();
    let counts = text.lines().filter_map(|line| {
        let (count, name) = line.split_once('\t')?;
        Some((name.to_string(), count.parse().ok()?))
    });
    let environment = text.lines().filter(|line| line.starts_with('#'));
    (environment.map(|line| format!("{line}\n")).collect(), counts.collect())
}

/// What counts depend on besides the code.
fn environment() -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        String::from_utf8(output.map(|output| output.stdout).unwrap_or_default())
            .unwrap_or_default()
    };
    let compiler = said(&env::var("RUSTC").unwrap_or("rustc".into()), "-vV");
    let field = |name| compiler.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?");
    let library = said("ldd", "--version");
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag| cpu.split_whitespace().any(|word| word == flag);
    let features = ["avx2", "bmi2", "erms", "fsrm"].into_iter().filter(|flag| has(*flag));
    format!(
        "# rustc {}, {}\n# {}\n# {}\n# CPU with {}\n",
        field("release: "),
        field("host: "),
        library.lines().next().unwrap_or("no ldd"),
        said("valgrind", "--version").trim(),
        features.collect::<Vec<_>>().join(" ")
    )
}
