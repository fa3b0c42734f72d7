//! The configuration file: TOML whose keys are long flag names.

use std::fs;
use std::path::Path;

use super::CliError;
use super::settings::Settings;
use super::values::printable;

/// Reads settings from the file at `path`. An unknown key is an error that names it.
pub fn read(path: &Path) -> Result<Settings, CliError> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| {
        CliError(format!(
            "cannot read the configuration file {shown} ({error}): give a readable TOML file"
        ))
    })?;
    parse(&text).map_err(|complaint| CliError(format!("{shown}{complaint}")))
}

/// Reads settings from the text of a file. An error starts with the line's number and text.
fn parse(text: &str) -> Result<Settings, String> {
    toml::from_str(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        match error.span() {
            None => format!(": {message}"),
            Some(span) => {
                let number = text[..span.start].matches('\n').count();
                let line = text.lines().nth(number).unwrap_or_default().trim();
                let line = printable(line);
                format!(" line {}: `{line}` {}", number + 1, sentence(&message))
            }
        }
    })
}

/// The TOML parser's message, phrased to follow the quoted line.
fn sentence(message: &str) -> String {
    if message.starts_with("is ") || message.starts_with("are ") {
        return message.to_owned();
    }
    match message.strip_prefix("unknown field ") {
        Some(rest) => format!(
            "has the unknown key {}: keys are the long flag names that `ringlane --help` lists",
            rest.split(", expected").next().unwrap_or(rest),
        ),
        None => format!("is not valid: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_says_everything_that_flags_can() {
        let key = std::env::temp_dir().join(format!("ringlane-key-{}", std::process::id()));
        fs::write(&key, "a secret of some length\n").expect("a writable directory");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let file = parse(
            &r#"
            listen = ["127.0.0.1:11300", "[::1]:11300"]
            port = 11300
            shard-ports = 12000
            unix-socket = "/tmp/ringlane.sock"
            unix-mode = "770"
            backlog = 64
            max-connections = 100
            connection-memory = "32MiB"
            idle-timeout = 60
            admin = "127.0.0.1:9000"
            cores = 2
            cpus = [0, 1]
            busy-poll = 0
            memory = "256MiB"
            lock-memory = true
            max-item-size = "512k"
            eviction = "none"
            disable-evictions = true
            default-ttl = 3600
            disable-cas = true
            disable-flush-all = true
            enable-shutdown = true
            disable-dumping = true
            prefix-delimiter = ":"
            pid-file = "/tmp/ringlane.pid"
            cluster-listen = "0.0.0.0:7000"
            cluster-advertise = "127.0.0.2:7000"
            node-id = "a"
            join = ["127.0.0.3:7000", "127.0.0.4:7000"]
            members = ["a=127.0.0.2:7000", "b=127.0.0.3:7000"]
            cluster-name = "test"
            cluster-key-file = "KEY"
            cluster-insecure = true
            replicas = 3
            write-quorum = 2
            read-quorum = 2
            vnodes = 100
            ring-hash = "xxh3"
            weight = 2
            probe-period = "500ms"
            dead-after = 2
            forget-after = "5m"
            operation-timeout = "2s"
            hint-memory = "32MiB"
            hint-age = "1m"
            link-queue = "1MiB"
            link-memory = "8MiB"
            operation-memory = "16MiB"
            rebalance-rate = "8MiB"
            leave-timeout = "30s"
            hot-key-window = "10s"
            hot-key-threshold = 50
            hot-key-memory = "1MiB"
            hot-key-age = "500ms"
            log = "warn"
            verbose = 1
            "#
            .replace("KEY", &key.display().to_string()),
        )
        .expect("a valid file");
        assert_eq!(file.clone().or(Settings::default()), file);
        assert_eq!(Settings::default().or(file.clone()), file);
        // A field that is still unset means a key that is read but not stored.
        assert!(!format!("{file:?}").contains(": None"), "{file:?}");
        let _ = fs::remove_file(key);
    }

    #[test]
    fn values_read_the_same_as_on_the_command_line() {
        let file = parse("memory = 64\ncpus = \"2-3\"\nlisten = \"127.0.0.1\"").expect("valid");
        assert_eq!(file.memory.map(|m| m.0), Some(64 << 20));
        assert_eq!(file.cpus.map(|c| c.0), Some(vec![2, 3]));
        assert_eq!(file.listen.map(|l| l.len()), Some(1));
    }

    #[test]
    fn a_refusal_names_line_value_and_the_fix() {
        let complaint = |text: &str| {
            let sentence = parse(text).expect_err(text);
            assert!(!sentence.contains('\n'), "one sentence: {sentence}");
            sentence
        };
        let unknown = complaint("port = 1\nmemry = 64\n");
        assert!(unknown.contains("line 2") && unknown.contains("unknown key `memry`"), "{unknown}");
        let bad = complaint("port = 1\n\nmemory = \"12x\"\n");
        assert!(bad.contains("line 3: `memory = \"12x\"` is not a size: use 64MiB"), "{bad}");
        let negative = complaint("cores = -1");
        assert!(negative.contains("`cores = -1` is out of range: use a number"), "{negative}");
        assert!(complaint("port").contains("line 1"));
        assert!(complaint("disable-cas = 3").contains("line 1"));
        assert!(complaint("[cluster]\nport = 1").contains("unknown key `cluster`"));
    }
}
