//! Rules of the repository as a test: each breach is reported as `file:line: what is wrong`.
//!
//! They hold what the compiler cannot: that only the shell touches the world, that unsafe code
//! stays where it is fenced, that files stay small and that the documents name files that exist.

use std::fs;
use std::path::{Path, PathBuf};

/// Where sockets, clocks, threads and logs are allowed: the shell, the binary, the client and
/// the generator.
const SHELL: [&str; 5] = ["src/server/", "src/main.rs", "src/cli/", "client/", "loadgen/"];

/// What the pure cores must not name, and why.
const IMPURE: [(&str, &str); 22] = [
    ("TcpListener", "sockets belong to src/server"),
    ("TcpStream", "sockets belong to src/server"),
    ("UdpSocket", "sockets belong to src/server"),
    ("UnixListener", "sockets belong to src/server"),
    ("UnixStream", "sockets belong to src/server"),
    ("ToSocketAddrs", "name look-ups belong to src/server"),
    ("std::thread", "threads belong to src/server"),
    ("std::fs", "files belong to src/server"),
    ("Instant::now", "time is an argument: ringlane_types::time::Instant"),
    ("SystemTime", "time is an argument: ringlane_types::time::Instant"),
    ("tokio", "the cores are no async code"),
    ("glommio", "the executor belongs to src/server"),
    ("io_uring", "the net ring belongs to src/server"),
    ("thread_rng", "randomness is an argument: a seeded generator"),
    ("rand::rng(", "randomness is an argument: a seeded generator"),
    ("rand::random", "randomness is an argument: a seeded generator"),
    ("from_entropy", "randomness is an argument: a seeded generator"),
    ("from_os_rng", "randomness is an argument: a seeded generator"),
    ("OsRng", "randomness is an argument: a seeded generator"),
    ("rustix::", "system calls belong to src/server"),
    ("libc::", "system calls belong to src/server"),
    ("log::", "a core counts and emits, the shell logs"),
];

/// Files that may hold unsafe code: each opens its fence with `#![allow(unsafe_code)]`.
const UNSAFE_ALLOWED: [&str; 11] = [
    "loadgen/src/net.rs",
    "crates/shard/src/prefetch.rs",
    "src/server/glommio_fd.rs",
    "src/server/prefault.rs",
    "src/server/connection.rs",
    "src/server/net_ring.rs",
    "src/server/net_ring/buffers.rs",
    "src/server/net_ring/tests.rs",
    "src/server/net_ring/tests/overflow.rs",
    "src/server/process.rs",
    "src/server/worker.rs",
];

/// What must not stay in code that is called done.
const LEFTOVERS: [&str; 5] = ["TODO", "FIXME", "dbg!", "todo!", "unimplemented!"];

/// Longest source file in lines, tests included.
const LINES_MAX: usize = 900;

/// All that may lie at the top of the repository.
const TOP_LEVEL: [&str; 25] = [
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "Dockerfile",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "client",
    "crates",
    "deny.toml",
    "docs",
    "examples",
    "fuzz",
    "justfile",
    "loadgen",
    "packaging",
    "proptest-regressions",
    "rustfmt.toml",
    "src",
    "tests",
    "tuning",
];

/// One source file, read.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn in_shell(&self) -> bool {
        SHELL.iter().any(|prefix| self.path.starts_with(prefix))
    }

    fn is_product(&self) -> bool {
        ["src/", "crates/", "client/src/", "loadgen/src/"]
            .iter()
            .any(|prefix| self.path.starts_with(prefix))
    }

    /// Lines with their numbers, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, without_comment(line)))
    }
}

#[test]
fn the_repository_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = sources(root);
    assert!(sources.len() > 20, "the walk has missed the sources: {} found", sources.len());
    let mut breaches = Vec::new();
    for source in &sources {
        purity(source, &mut breaches);
        fenced_unsafe(source, &mut breaches);
        leftovers(source, &mut breaches);
        shape(source, &mut breaches);
    }
    top_level(root, &mut breaches);
    named_files(root, &mut breaches);
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

/// Only the shell touches the world.
fn purity(source: &Source, breaches: &mut Vec<String>) {
    if source.in_shell() || !["src/", "crates/"].iter().any(|tree| source.path.starts_with(tree)) {
        return;
    }
    for (number, line) in source.code() {
        for (word, why) in IMPURE {
            if has_path(line, word) {
                breaches.push(format!("{}:{number}: {word}: {why}", source.path));
            }
        }
        if line.contains("std::time") && has_word(line, "Instant") {
            let why = "time is an argument: ringlane_types::time::Instant";
            breaches.push(format!("{}:{number}: std::time::Instant: {why}", source.path));
        }
    }
}

/// Unsafe code stays in its files, and each block says why it is sound.
fn fenced_unsafe(source: &Source, breaches: &mut Vec<String>) {
    if !source.is_product() {
        return;
    }
    let lines: Vec<&str> = source.text.lines().collect();
    for (number, line) in source.code() {
        if !has_word(line, "unsafe") {
            continue;
        }
        if !UNSAFE_ALLOWED.contains(&source.path.as_str()) {
            breaches.push(format!(
                "{}:{number}: unsafe outside the files that tests/tidy.rs allows",
                source.path
            ));
        }
        // The note stands right above, possibly over attributes or the start of the statement.
        let above = &lines[number.saturating_sub(12)..number];
        if !above.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
            breaches.push(format!("{}:{number}: unsafe without a SAFETY note", source.path));
        }
    }
}

fn leftovers(source: &Source, breaches: &mut Vec<String>) {
    if !source.is_product() {
        return;
    }
    let prints = !source.path.starts_with("loadgen/")
        && !source.path.starts_with("src/cli/")
        && source.path != "src/main.rs";
    for (index, line) in source.text.lines().enumerate() {
        let number = index + 1;
        for word in LEFTOVERS.into_iter().filter(|word| has_path(line, word)) {
            breaches.push(format!("{}:{number}: {word} is left over", source.path));
        }
        let code = without_comment(line);
        if prints && (has_path(code, "println!") || has_path(code, "eprintln!")) {
            breaches.push(format!("{}:{number}: prints; only the binary may", source.path));
        }
    }
}

/// Small files that say what they are.
fn shape(source: &Source, breaches: &mut Vec<String>) {
    let lines = source.text.lines().count();
    if lines > LINES_MAX {
        breaches.push(format!(
            "{}:{lines}: longer than {LINES_MAX} lines: split it where a second story begins",
            source.path
        ));
    }
    let is_module = source.is_product() && !source.path.ends_with("/tests.rs");
    if is_module && !source.text.starts_with("//!") {
        breaches.push(format!("{}:1: does not open with what it is (`//!`)", source.path));
    }
}

fn top_level(root: &Path, breaches: &mut Vec<String>) {
    for entry in fs::read_dir(root).expect("the repository is readable").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if ![".git", "target"].contains(&name.as_str()) && !TOP_LEVEL.contains(&name.as_str()) {
            breaches.push(format!("{name}:0: not in the list of what lies at the top"));
        }
    }
}

/// Every file that a document names in backticks exists.
fn named_files(root: &Path, breaches: &mut Vec<String>) {
    let documents = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root.join(name));
    let more = fs::read_dir(root.join("docs")).into_iter().flatten().flatten().map(|e| e.path());
    for document in documents.into_iter().chain(more).filter(|path| path.extension().is_some()) {
        let Ok(text) = fs::read_to_string(&document) else { continue };
        for (index, line) in text.lines().enumerate() {
            // Text between backticks is every second part.
            for quoted in line.split('`').skip(1).step_by(2) {
                let in_tree = [
                    "src/", "crates/", "tests/", "benches/", "docs/", "fuzz/", "client/",
                    "loadgen/", ".ci/",
                ];
                let is_path = in_tree.iter().any(|prefix| quoted.starts_with(prefix));
                if is_path && !quoted.contains([' ', '*', '{']) && !root.join(quoted).exists() {
                    let shown = document.strip_prefix(root).unwrap_or(&document).display();
                    breaches.push(format!("{shown}:{}: {quoted} does not exist", index + 1));
                }
            }
        }
    }
}

/// Every Rust file of the repository, by its path from the root.
fn sources(root: &Path) -> Vec<Source> {
    let mut directories: Vec<PathBuf> =
        ["src", "crates", "client", "loadgen", "tests", "benches", "fuzz"]
            .map(|name| root.join(name))
            .into();
    let mut found = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if entry.file_name() != "target" {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                let path = path.strip_prefix(root).expect("below the root");
                found.push(Source { path: path.display().to_string(), text });
            }
        }
    }
    found
}

/// The line up to a comment. A `//` in a string ends it too early, which hides only what follows.
fn without_comment(line: &str) -> &str {
    let end = line.match_indices("//").map(|(at, _)| at).find(|&at| !line[..at].ends_with(':'));
    &line[..end.unwrap_or(line.len())]
}

/// Whether `word` stands in `line` with no letter before or behind it.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
        !line[..at].ends_with(part_of_name) && !line[at + word.len()..].starts_with(part_of_name)
    })
}

/// Whether `word`, which may end in punctuation, stands in `line` with no letter before it.
fn has_path(line: &str, word: &str) -> bool {
    let ends_in_letter = word.ends_with(|c: char| c.is_alphanumeric());
    if ends_in_letter {
        return has_word(line, word);
    }
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(part_of_name))
}

#[test]
fn the_rules_find_what_they_forbid() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let found = |rule: fn(&Source, &mut Vec<String>), path: &str, text: &str| {
        let mut breaches = Vec::new();
        rule(&source(path, text), &mut breaches);
        breaches
    };
    let core = "crates/shard/src/lib.rs";
    assert_eq!(found(purity, core, "use std::time::{Duration, Instant};").len(), 1);
    assert_eq!(found(purity, core, "let now = std::time::Instant::now();").len(), 2);
    assert_eq!(found(purity, core, "// glommio runs this\nuse std::time::Duration;"), [""; 0]);
    assert_eq!(found(purity, core, "catalog::entry()"), [""; 0]);
    assert_eq!(found(purity, "src/server/mod.rs", "use std::thread;"), [""; 0]);
    assert_eq!(found(fenced_unsafe, core, "unsafe { f() }").len(), 2);
    assert_eq!(found(fenced_unsafe, core, "#![allow(unsafe_code)]"), [""; 0]);
    let noted = "// SAFETY: the pointer is from a Box.\nunsafe { f() }";
    assert_eq!(found(fenced_unsafe, "crates/shard/src/prefetch.rs", noted), [""; 0]);
    assert_eq!(found(leftovers, core, "// TODO: more\nprintln!(\"x\");").len(), 2);
    assert_eq!(found(leftovers, "src/main.rs", "println!(\"x\");"), [""; 0]);
    assert_eq!(found(shape, core, "fn main() {}").len(), 1);
    assert_eq!(found(shape, core, &"//! x\n".repeat(LINES_MAX + 1)).len(), 1);
}
