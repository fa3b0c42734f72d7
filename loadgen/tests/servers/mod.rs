//! Servers for tests: a small one that can misbehave in one way, and Debian's memcached.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How a server misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Not at all.
    Honest,
    /// It says STORED and keeps the first value of a key for ever.
    Stale,
    /// A get is answered with another key's value under the key asked for.
    Swapped,
    /// One bit of every value is flipped.
    Damaged,
    /// It says something else than the protocol.
    Foreign,
    /// It reads and never answers.
    Mute,
    /// It closes every connection after so many requests.
    Closes(u32),
    /// It dies, connections and all, after so many requests.
    DiesAfter(u32),
    /// Every set is refused.
    Full,
    /// An increment does not count.
    Stuck,
}

type Store = Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>;

/// Starts a server on a free port; it lives as long as the test's process.
pub fn start(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let store = Store::default();
    let requests = Arc::new(AtomicU32::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if is_dead(manner, &requests) {
                return;
            }
            let (store, requests) = (store.clone(), requests.clone());
            std::thread::spawn(move || {
                let own = stream.local_addr();
                let _ = serve(stream, manner, &store, &requests);
                if is_dead(manner, &requests) {
                    // Lets the listener see it, which nobody may be left to do.
                    let _ = own.map(TcpStream::connect);
                }
            });
        }
    });
    address
}

fn is_dead(manner: Manner, requests: &AtomicU32) -> bool {
    matches!(manner, Manner::DiesAfter(count) if requests.load(Ordering::SeqCst) >= count)
}

fn serve(
    stream: TcpStream,
    manner: Manner,
    store: &Store,
    requests: &AtomicU32,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    for served in 0.. {
        if matches!(manner, Manner::Closes(after) if served >= after) {
            return Ok(());
        }
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        requests.fetch_add(1, Ordering::SeqCst);
        if is_dead(manner, requests) {
            return Ok(());
        }
        let words: Vec<&[u8]> = line.trim_ascii_end().split(|&byte| byte == b' ').collect();
        let mut answer = Vec::new();
        match words[0] {
            b"get" => words[1..].iter().for_each(|key| get(manner, store, key, &mut answer)),
            b"set" | b"add" => {
                let length: usize = String::from_utf8_lossy(words[4]).parse().expect("a length");
                let mut value = vec![0; length + 2];
                input.read_exact(&mut value)?;
                value.truncate(length);
                let mut store = store.lock().expect("unpoisoned");
                let exists = store.contains_key(words[1]);
                let keep = exists && (words[0] == b"add" || manner == Manner::Stale);
                if manner == Manner::Full {
                    answer.extend_from_slice(b"SERVER_ERROR out of memory storing object\r\n");
                } else if exists && words[0] == b"add" {
                    answer.extend_from_slice(b"NOT_STORED\r\n");
                } else {
                    if !keep {
                        store.insert(words[1].to_vec(), value);
                    }
                    answer.extend_from_slice(b"STORED\r\n");
                }
            }
            b"delete" => {
                let gone = store.lock().expect("unpoisoned").remove(words[1]).is_some();
                answer.extend_from_slice(if gone { b"DELETED\r\n" } else { b"NOT_FOUND\r\n" });
            }
            b"incr" => {
                let mut store = store.lock().expect("unpoisoned");
                match store.get_mut(words[1]) {
                    None => answer.extend_from_slice(b"NOT_FOUND\r\n"),
                    Some(value) => {
                        let number: u64 = String::from_utf8_lossy(value).parse().expect("a number");
                        let grown = number + u64::from(manner != Manner::Stuck);
                        *value = grown.to_string().into_bytes();
                        answer.extend_from_slice(value);
                        answer.extend_from_slice(b"\r\n");
                    }
                }
            }
            _ => answer.extend_from_slice(b"ERROR\r\n"),
        }
        if words[0] == b"get" {
            answer.extend_from_slice(b"END\r\n");
        }
        match manner {
            Manner::Mute => continue,
            Manner::Foreign => out.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")?,
            _ => out.write_all(&answer)?,
        }
    }
    Ok(())
}

fn get(manner: Manner, store: &Store, key: &[u8], answer: &mut Vec<u8>) {
    let store = store.lock().expect("unpoisoned");
    let mut from = key.to_vec();
    if manner == Manner::Swapped {
        let last = from.last_mut().expect("a key");
        *last = if *last == b'0' { b'1' } else { b'0' };
    }
    let Some(mut value) = store.get(&from).cloned() else { return };
    if manner == Manner::Damaged {
        value[20] ^= 4;
    }
    answer.extend_from_slice(b"VALUE ");
    answer.extend_from_slice(key);
    answer.extend_from_slice(format!(" 0 {}\r\n", value.len()).as_bytes());
    answer.extend_from_slice(&value);
    answer.extend_from_slice(b"\r\n");
}

/// memcached on a free port; ends with its value.
pub struct Memcached {
    child: Child,
    /// Where it listens.
    pub address: String,
}

impl Memcached {
    /// Starts it; `None`, said aloud, where it is not installed.
    pub fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let port_text = port.to_string();
        let arguments = ["-p", &port_text, "-U", "0", "-l", "127.0.0.1", "-t", "1", "-m", "64"];
        let child = Command::new("memcached")
            .args(arguments)
            // It refuses to be root, and ignores the name otherwise.
            .args(["-u", "nobody"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            eprintln!("SKIPPED: memcached is not installed");
            return None;
        };
        let memcached = Self { child, address: format!("127.0.0.1:{port}") };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(&memcached.address).is_err() {
            assert!(Instant::now() < deadline, "memcached does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(memcached)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
