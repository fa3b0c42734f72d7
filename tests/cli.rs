//! The command line as a user meets it: the real binary, its exit code and its one sentence.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

#[path = "support/ports.rs"]
mod ports;

use ports::free_port;

fn ringlane(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringlane"))
        .args(arguments)
        .output()
        .expect("the binary is built by cargo")
}

/// Runs it, demands exit code 1 and one line without traces of a panic, and returns the line.
fn refused(arguments: &[&str]) -> String {
    let output = ringlane(arguments);
    let line = String::from_utf8(output.stderr).expect("a message in UTF-8");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {line}");
    assert_eq!(line.lines().count(), 1, "{arguments:?}: one sentence, not {line}");
    assert!(line.starts_with("ringlane: "), "{arguments:?}: {line}");
    assert!(!line.contains("panicked") && !line.contains("backtrace"), "{arguments:?}: {line}");
    line
}

/// A file in a directory of its own below the build directory.
fn scratch(name: &str, contents: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, contents).expect("the scratch directory is writable");
    path
}

#[test]
fn an_inquiry_that_fails_says_what_to_do() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let foreign = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let elsewhere = foreign.local_addr().expect("its address").to_string();
    std::thread::spawn(move || {
        for stream in foreign.incoming().flatten() {
            // Read first: closing over unread bytes would reset the connection.
            let mut stream = stream;
            let _ = std::io::Read::read(&mut stream, &mut [0; 64]);
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.0 400 Bad Request\r\n\r\n");
        }
    });
    for (address, words) in [
        ("here", "--address here is not an address: use one such as 127.0.0.1:11211"),
        (&nobody, "refused the connection: is a node running there?"),
        (&elsewhere, "is not a Ringlane node"),
    ] {
        for what in [&["cluster", "status"][..], &["cluster", "ring", "key"]] {
            let line = refused(&[what, &["--address", address]].concat());
            assert!(line.contains(address) && line.contains(words), "{line}");
        }
    }
}

#[test]
fn every_invalid_value_ends_with_one_sentence_that_names_it() {
    let port = free_port().to_string();
    let exposed = Path::new(env!("CARGO_TARGET_TMPDIR")).join("exposed.key");
    fs::write(&exposed, "a secret that everybody reads").expect("the directory is writable");
    fs::set_permissions(&exposed, Permissions::from_mode(0o644)).expect("it is ours");
    let exposed_key = format!("--cluster-key-file {}", exposed.display());
    for (line, named) in [
        ("--memory 12x", "--memory 12x"),
        ("-m -1", "--memory -1"),
        ("-m 0", "--memory 0"),
        ("-m=", "--memory \"\""),
        ("-m 99999999999999999999GiB", "99999999999999999999GiB"),
        ("-p 65536", "65536"),
        ("-p 0", "--port 0"),
        ("-l 300.1.1.1", "300.1.1.1"),
        ("--listen=", "--listen \"\""),
        ("-t 0", "--cores 0"),
        ("-t 100000", "100000"),
        ("--cpus 0-", "--cpus 0-"),
        ("--cpus 100000", "CPU 100000"),
        ("-c 0", "--max-connections 0"),
        ("-c 4000000000", "4000000000 connections"),
        ("-c 8388609", "8388609 connections are too many"),
        ("-I 100", "100B"),
        ("-I 2GiB", "2GiB"),
        ("-I 5GiB", "--max-item-size 5GiB"),
        ("-m 3 -t 1 -I 2m", "2MiB"),
        ("-m 64TiB", "64TiB"),
        ("--eviction mru", "--eviction mru"),
        ("-M --eviction lru", "--eviction lru"),
        ("--default-ttl -3", "--default-ttl -3"),
        ("--idle-timeout 0", "--idle-timeout 0"),
        ("--busy-poll 10000000", "10000000 µs"),
        ("--shard-ports 65535 --cpus 0,0", "65535"),
        ("--log loud", "--log loud"),
        ("-s /no/such/directory/ringlane.sock", "/no/such/directory"),
        ("-s /proc/self/status", "/proc/self/status"),
        ("-a 888 -s /tmp/ringlane-cli-test.sock", "--unix-mode 888"),
        ("-U 11211", "11211"),
        ("-d", "-d"),
        ("-o modern,ext_path=/tmp/x:1g", "ext_path"),
        ("-B http", "http"),
        ("-B binary", "binary"),
        ("-f 1.0", "1.0"),
        ("-n 0", "--slab-min-size 0"),
        ("-D ::", "--prefix-delimiter ::"),
        ("-Y /tmp/users", "-Y"),
        ("-S", "-S"),
        ("-Z", "-Z"),
        ("-e /tmp/items", "-e"),
        ("--frobnicate", "--frobnicate"),
        ("frobnicate", "frobnicate"),
        ("--config /no/such/file.toml", "/no/such/file.toml"),
        ("-l 203.0.113.77", "203.0.113.77"),
        ("-R 0", "--max-reqs-per-event 0"),
        ("--admin 9000", "--admin 9000"),
        ("-p 11299 --admin 127.0.0.1:11299", "127.0.0.1:11299"),
        ("--join 127.0.0.2:7000", "--cluster-listen"),
        ("--cluster-listen 7000", "--cluster-listen 7000"),
        ("--cluster-listen 0.0.0.0:7000", "--cluster-advertise"),
        ("--cluster-listen 203.0.113.77:7000", "203.0.113.77"),
        ("--cluster-listen 127.0.0.2:7000 --replicas 3 --write-quorum 4", "quorum of 4"),
        ("--cluster-listen 192.0.2.1:7000", "--cluster-key-file FILE, or --cluster-insecure"),
        ("--cluster-insecure", "--cluster-listen"),
        ("--cluster-listen 127.0.0.2:7000 --weight 1000", "weight of 1000"),
        ("--cluster-listen 127.0.0.2:7000 --ring-hash crc", "--ring-hash crc"),
        ("--cluster-listen 127.0.0.2:7000 --members a=127.0.0.3:7000", "this node"),
        ("--cluster-listen 127.0.0.2:7000 --dead-after soon", "--dead-after soon"),
        ("--cluster-key-file /no/such.key", "--cluster-key-file /no/such.key"),
        ("--cluster-key-file /dev/null", "/dev/null is not a key"),
        (&exposed_key, "is open to other users (mode 644): run `chmod 600 "),
    ] {
        let mut arguments: Vec<&str> = line.split(' ').collect();
        if !line.starts_with("-p") {
            // A process on the default port would add a second complaint.
            arguments.extend(["--port", &port]);
        }
        let sentence = refused(&arguments);
        assert!(sentence.contains(named), "{line}: {sentence}");
    }
}

#[test]
fn a_taken_port_is_named_with_the_fix() {
    let owner = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = owner.local_addr().expect("its address").port().to_string();
    let sentence = refused(&["-m", "64", "-p", &port]);
    assert!(sentence.contains(&port) && sentence.contains("already in use"), "{sentence}");
}

#[test]
fn memory_beyond_the_address_space_is_refused_in_one_sentence() {
    let port = free_port();
    let script = format!(
        "ulimit -v 400000 && exec {} -m 1024 -t 1 -p {port}",
        env!("CARGO_BIN_EXE_ringlane")
    );
    let output = Command::new("bash").args(["-c", &script]).output().expect("there is a bash");
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.lines().count() == 1 && line.contains("1GiB of memory"), "{line}");
}

#[test]
fn memory_that_may_not_be_locked_is_refused_in_one_sentence() {
    let port = free_port();
    let limited = format!(
        "ulimit -l 8192 && exec {} check -k -m 64 -p {port}",
        env!("CARGO_BIN_EXE_ringlane")
    );
    // The superuser is bound by the limit only without these two privileges.
    let privileges = "-ipc_lock,-sys_resource";
    let without = ["setpriv", "--bounding-set", privileges, "--inh-caps", privileges];
    let without = if rustix::process::geteuid().is_root() { &without[..] } else { &[] };
    let words = [without, &["bash", "-c", &limited]].concat();
    let output = match Command::new(words[0]).args(&words[1..]).output() {
        Ok(output) => output,
        Err(error) => return eprintln!("skipped: {} does not run here: {error}", words[0]),
    };
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.lines().count() == 1 && line.contains("--lock-memory needs 65MiB"), "{line}");
    let output = ringlane(&["check", "-k", "-m", "64", "-p", &free_port().to_string()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("memory locked    yes"), "{text}");
}

#[test]
fn an_unknown_key_of_the_file_is_refused_by_name() {
    let file = scratch("unknown-key.toml", "port = 11300\nmemry = 64\n");
    let sentence = refused(&["--config", &file.display().to_string()]);
    for word in ["unknown-key.toml", "line 2", "memry"] {
        assert!(sentence.contains(word), "{word}: {sentence}");
    }
}

#[test]
fn a_flag_wins_over_the_file() {
    let port = free_port();
    let file = scratch("wins.toml", &format!("memory = \"48MiB\"\ncores = 1\nport = {port}\n"));
    let output = ringlane(&["check", "--config", &file.display().to_string(), "-m", "32"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("32MiB") && text.contains(&port.to_string()), "{text}");
    assert!(!text.contains("48MiB"), "{text}");
}

#[test]
fn check_tells_all_that_the_host_lacks_and_fails() {
    let owner = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = owner.local_addr().expect("its address").port().to_string();
    let output = ringlane(&["check", "-p", &port, "--cpus", "99"]);
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(complaints.contains("CPU 99") && complaints.contains("already in use"), "{complaints}");
    assert!(complaints.lines().all(|line| line.starts_with("ringlane: ")), "{complaints}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("on CPU 99"));
}

#[test]
fn help_and_version_succeed() {
    let help = ringlane(&["--help"]);
    assert!(help.status.success() && help.stderr.is_empty());
    let version = ringlane(&["-V"]);
    assert!(version.status.success());
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    assert_eq!(text.trim(), concat!("ringlane ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_readme_names_every_flag() {
    let help = String::from_utf8(ringlane(&["--help"]).stdout).expect("UTF-8");
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))
        .expect("there is a README.md");
    let flags: Vec<&str> = help
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .map(|word| word.split(['[', ',', '=']).next().unwrap_or(word))
        .collect();
    assert!(flags.len() > 20, "{flags:?}");
    let missing: Vec<&&str> =
        flags.iter().filter(|flag| !readme.contains(&format!("`{flag}"))).collect();
    assert!(missing.is_empty(), "README.md lacks {missing:?}");
}

#[test]
fn the_process_id_is_in_its_file_while_the_server_runs() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ringlane.pid");
    let _ = fs::remove_file(&path);
    let port = free_port().to_string();
    let mut server = Command::new(env!("CARGO_BIN_EXE_ringlane"))
        .args(["-m", "64", "-t", "1", "-p", &port, "--log", "off"])
        .arg("-P")
        .arg(&path)
        .spawn()
        .expect("the binary is built by cargo");
    let begun = Instant::now();
    let written = loop {
        match fs::read_to_string(&path) {
            Ok(text) if text.ends_with('\n') => break text,
            _ => assert!(begun.elapsed() < Duration::from_secs(30), "no pid file"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(written.trim(), server.id().to_string());
    let sent = Command::new("kill").arg(server.id().to_string()).status();
    assert!(sent.expect("there is a kill").success());
    assert!(server.wait().expect("a child can be waited for").success());
    assert!(!path.exists(), "the file outlives the server");
    let sentence = refused(&["-P", "/no/such/directory/pid", "-p", &port, "-m", "64"]);
    assert!(sentence.contains("/no/such/directory/pid"), "{sentence}");
}
