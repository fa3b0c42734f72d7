//! Checks before startup that the host meets the configuration's requirements.
//!
//! Each check tries the operation itself rather than compare version numbers: it sets up a ring,
//! binds a port. It reports a [`Problem`], one sentence with the cause and the fix; all of them are
//! collected, so that one run shows everything to fix.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::admin;
use super::host::{self, HostFacts};
use super::pid_file::{self, PidFileError};
use super::unix_socket::{Occupant, occupant};
use crate::config::size::Size;
use crate::config::{Config, UnixSocket};

/// Lockable memory in bytes that the executors require.
pub const MEMLOCK_BYTES_MIN: u64 = 512 << 10;
/// Longest path of a unix socket in bytes: the kernel's 108 less the terminating NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;
/// Longest total wait at startup for addresses, unix socket and pid file of a previous process. A
/// stopping node releases its pid file last, and the kernel destroys rings only after their process
/// has ended; until then they hold its sockets.
const TAKEN_MAX: Duration = Duration::from_secs(2);
/// Interval between attempts.
const TAKEN_STEP: Duration = Duration::from_millis(20);

/// A reason why the server cannot start: one sentence with the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Finds everything on this host that prevents `config` from running, and raises the soft limits of
/// open files and locked memory as needed. Empty if the server can start.
pub fn run(config: &Config, host: &HostFacts) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(ring(host));
    problems.extend(memlock(config));
    problems.extend(files(config));
    problems.extend(cpus(config, host));
    problems.extend(memory(config, host).or_else(|| address_space(config)));
    let until = Instant::now() + TAKEN_MAX;
    problems.extend(addresses(config, until));
    problems.extend(config.unix_socket.as_ref().and_then(|socket| unix_socket(socket, until)));
    problems.extend(config.pid_file.as_deref().and_then(|path| pid_file(path, until)));
    problems
}

/// Maximum number of file descriptors that `config` needs: one per connection, and each core's
/// rings, eventfds, listeners and links.
pub fn files_needed(config: &Config) -> u64 {
    config.connections_max as u64 + files_besides_connections(config.core_count(), config)
}

/// The part of [`files_needed`] that does not depend on the number of connections.
pub fn files_besides_connections(core_count: usize, config: &Config) -> u64 {
    let listeners = config.listen.len() as u64 * 2 + 1;
    let admin = config.admin.map_or(0, |_| admin::FILES_MAX);
    let links = config.cluster.as_ref().map_or(0, |_| LINKS_PER_CORE);
    64 + admin + core_count as u64 * (24 + listeners + links)
}

/// Number of links to cores of other nodes budgeted per core: 32 nodes of eight cores.
const LINKS_PER_CORE: u64 = 256;

/// Whether io_uring is available with every operation that the net ring uses.
fn ring(host: &HostFacts) -> Option<Problem> {
    let built = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8);
    match built {
        Ok(ring) => missing_operation(&ring).map(|name| {
            Problem(format!(
                "io_uring of kernel {} lacks the operation {name}: use Linux 6.1 or newer",
                host.kernel
            ))
        }),
        Err(error) => Some(Problem(ring_refusal(&error, host, &Restrictions::read()))),
    }
}

fn missing_operation(ring: &IoUring) -> Option<&'static str> {
    let mut probe = Probe::new();
    if ring.submitter().register_probe(&mut probe).is_err() {
        return Some("PROBE");
    }
    let needed = [
        ("ACCEPT", opcode::AcceptMulti::CODE),
        ("RECV", opcode::RecvMulti::CODE),
        ("SEND", opcode::Send::CODE),
        ("SENDMSG", opcode::SendMsg::CODE),
        ("READ", opcode::Read::CODE),
        ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
        ("CLOSE", opcode::Close::CODE),
        ("TIMEOUT", opcode::Timeout::CODE),
        ("MSG_RING", opcode::MsgRingData::CODE),
    ];
    needed.into_iter().find(|&(_, code)| !probe.is_supported(code)).map(|(name, _)| name)
}

/// What may deny io_uring to this process.
#[derive(Debug, Default)]
struct Restrictions {
    /// `kernel.io_uring_disabled`: 0 for all, 1 for the privileged, 2 for none.
    disabled: Option<u8>,
    /// Whether a seccomp filter is in force.
    filtered: bool,
}

impl Restrictions {
    fn read() -> Self {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            disabled: disabled.and_then(|text| text.trim().parse().ok()),
            filtered: status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"])),
        }
    }
}

fn ring_refusal(error: &io::Error, host: &HostFacts, restrictions: &Restrictions) -> String {
    let kernel = &host.kernel;
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSYS) if restrictions.filtered => "io_uring is hidden by a seccomp filter: \
             allow io_uring_setup, io_uring_enter and io_uring_register in the container's profile"
            .into(),
        Some(Errno::NOSYS) => {
            format!("kernel {kernel} has no io_uring: use Linux 6.1 or newer with CONFIG_IO_URING")
        }
        Some(Errno::INVAL) => {
            format!("io_uring of kernel {kernel} lacks DEFER_TASKRUN: use Linux 6.1 or newer")
        }
        Some(Errno::PERM | Errno::ACCESS) => match restrictions.disabled {
            Some(2) => {
                "io_uring is disabled on this host: run `sysctl kernel.io_uring_disabled=0`".into()
            }
            Some(1) => "io_uring is reserved for privileged processes on this host: run `sysctl \
                 kernel.io_uring_disabled=0` or add the user to the group of \
                 kernel.io_uring_group"
                .into(),
            _ if restrictions.filtered => "io_uring is forbidden by a seccomp filter: allow \
                 io_uring_setup, io_uring_enter and io_uring_register in the container's profile"
                .into(),
            _ => "io_uring is forbidden to this process: allow it in the host's security module \
                 (SELinux, AppArmor)"
                .into(),
        },
        Some(Errno::NOMEM) => format!(
            "kernel {kernel} has no memory for io_uring: raise the locked memory limit, for \
             example with `ulimit -l unlimited`"
        ),
        Some(Errno::MFILE | Errno::NFILE) => {
            "no file descriptor is left for io_uring: raise the open file limit with `ulimit -n`"
                .into()
        }
        _ => format!(
            "io_uring cannot be set up on kernel {kernel} ({error}): use Linux 6.1 or newer"
        ),
    }
}

fn memlock(config: &Config) -> Option<Problem> {
    let with_items = (MEMLOCK_BYTES_MIN + config.memory_bytes).next_multiple_of(1 << 20);
    if config.lock_memory && !host::may_lock_any_memory() {
        let allowed = host::raise_memlock_limit(with_items);
        if allowed < with_items {
            return Some(Problem(format!(
                "only {} of memory may be locked but --lock-memory needs {}: run `ulimit -l \
                 unlimited`, set LimitMEMLOCK=infinity in the systemd unit, or omit --lock-memory",
                Size(allowed),
                Size(with_items)
            )));
        }
    }
    let allowed = host::raise_memlock_limit(MEMLOCK_BYTES_MIN);
    (allowed < MEMLOCK_BYTES_MIN).then(|| {
        Problem(format!(
            "only {} of memory may be locked but io_uring needs {}: run `ulimit -l 512` or set \
             LimitMEMLOCK=infinity in the systemd unit",
            Size(allowed),
            Size(MEMLOCK_BYTES_MIN)
        ))
    })
}

fn files(config: &Config) -> Option<Problem> {
    let needed = files_needed(config);
    let allowed = host::raise_file_limit(needed);
    (allowed < needed).then(|| {
        Problem(format!(
            "{} connections need {needed} open files but the limit is {allowed}: run `ulimit -n \
             {needed}`, set LimitNOFILE={needed} in the systemd unit, or lower --max-connections",
            config.connections_max
        ))
    })
}

fn cpus(config: &Config, host: &HostFacts) -> Option<Problem> {
    let outside = config.cpus.iter().find(|cpu| !host.allowed_cpus.contains(cpu))?;
    Some(Problem(format!(
        "CPU {outside} is not among the CPUs that this process may use ({}): list only those in \
         --cpus",
        ranges(&host.allowed_cpus)
    )))
}

fn memory(config: &Config, host: &HostFacts) -> Option<Problem> {
    let owner = if host.memory_is_limited { "control group allows" } else { "host has" };
    let mebibytes = Size(host.memory_bytes >> 20 << 20);
    (config.memory_bytes > host.memory_bytes).then(|| {
        Problem(format!(
            "{} of memory exceeds the {mebibytes} that the {owner}: lower --memory",
            Size(config.memory_bytes)
        ))
    })
}

/// Briefly reserves all of the memory without touching it: an address space limit or strict
/// overcommit accounting would otherwise crash a starting core.
fn address_space(config: &Config) -> Option<Problem> {
    let bytes = config.memory_bytes;
    let asked = usize::try_from(bytes).ok().map(|bytes| Vec::<u8>::new().try_reserve_exact(bytes));
    (!matches!(asked, Some(Ok(())))).then(|| {
        Problem(format!(
            "{} of memory cannot be allocated on this host: run `ulimit -v unlimited`, set \
             vm.overcommit_memory to 0, or lower --memory",
            Size(bytes)
        ))
    })
}

/// Briefly binds every address, without SO_REUSEPORT, so that a second Ringlane is noticed instead
/// of sharing the first one's connections. Waits for addresses in use, all together until `until`.
fn addresses(config: &Config, until: Instant) -> Vec<Problem> {
    let shard_ports = (0..config.core_count()).filter_map(|core| config.shard_port(core));
    let ports: Vec<u16> = std::iter::once(config.port).chain(shard_ports).collect();
    let clients = config
        .listen
        .iter()
        .flat_map(|&address| ports.iter().map(move |&port| SocketAddr::new(address, port)));
    let clients = clients.chain(config.admin).map(|address| (address, Type::STREAM));
    let cluster = config.cluster.iter().flat_map(|cluster| {
        [Type::STREAM, Type::DGRAM].map(|transport| (cluster.listen, transport))
    });
    let mut problems: Vec<Problem> = clients
        .chain(cluster)
        .filter_map(|(address, transport)| {
            bind_problem(address, &bind_when_free(address, transport, until))
        })
        .collect();
    // TCP and UDP report the same.
    problems.dedup();
    problems
}

fn bind_when_free(address: SocketAddr, transport: Type, until: Instant) -> io::Result<()> {
    let is_taken = |outcome: &io::Result<()>| {
        outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    when_free(|| bind(address, transport), is_taken, until)
}

/// The result of `look` once it is no longer `is_taken`, or the last one at `until`.
fn when_free<T>(look: impl Fn() -> T, is_taken: impl Fn(&T) -> bool, until: Instant) -> T {
    loop {
        let found = look();
        if !is_taken(&found) || Instant::now() >= until {
            return found;
        }
        std::thread::sleep(TAKEN_STEP);
    }
}

fn bind(address: SocketAddr, transport: Type) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), transport, None)?;
    if transport == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Binding suffices to notice another listener. Listening too would briefly accept clients that
    // wait for the server to start, and then reset them.
    socket.bind(&address.into())
}

fn bind_problem(address: SocketAddr, outcome: &io::Result<()>) -> Option<Problem> {
    let error = outcome.as_ref().err()?;
    let port = address.port();
    Some(Problem(match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => format!(
            "{address} is already in use: stop the program that listens there or use another port \
             than {port}"
        ),
        Some(Errno::ADDRNOTAVAIL) => format!(
            "{} is not an address of this host: use one that `ip address` shows",
            address.ip()
        ),
        Some(Errno::ACCESS | Errno::PERM) => format!(
            "port {port} is reserved for privileged processes: use one from 1024 or grant \
             CAP_NET_BIND_SERVICE"
        ),
        Some(Errno::AFNOSUPPORT) => {
            let family = match address.ip() {
                IpAddr::V4(_) => "IPv4",
                IpAddr::V6(_) => "IPv6",
            };
            format!("{address} cannot be used since this host has no {family}: use another")
        }
        _ => format!("cannot listen on {address} ({error}): use another"),
    }))
}

/// The directory that contains `path`; `None` if `path` names no file.
fn directory_of(path: &Path) -> Option<&Path> {
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// Checks that the process id can be written to `path`, without writing it.
fn pid_file(path: &Path, until: Instant) -> Option<Problem> {
    let shown = path.display();
    let directory = directory_of(path)?;
    if !directory.is_dir() {
        let directory = directory.display();
        return Some(Problem(format!(
            "the directory of the pid file {shown} does not exist: create {directory}"
        )));
    }
    let checked = when_free(
        || pid_file::check(path),
        |outcome| matches!(outcome, Err(PidFileError::Held(..))),
        until,
    );
    checked.err().map(|error| Problem(error.to_string()))
}

fn unix_socket(socket: &UnixSocket, until: Instant) -> Option<Problem> {
    let path = &socket.path;
    let shown = path.display();
    let bytes = path.as_os_str().len();
    if bytes > UNIX_PATH_BYTES_MAX {
        return Some(Problem(format!(
            "the unix socket path {shown} has {bytes} bytes: use one of at most \
             {UNIX_PATH_BYTES_MAX}"
        )));
    }
    let Some(directory) = directory_of(path) else {
        return Some(Problem(format!("{shown} cannot be a unix socket: name a file")));
    };
    if !directory.is_dir() {
        return Some(Problem(format!(
            "the directory of the unix socket {shown} does not exist: create {}",
            directory.display()
        )));
    }
    match when_free(|| occupant(path), |&occupant| occupant == Occupant::Living, until) {
        // A socket file without a listener is left over from an earlier run and gets replaced.
        Occupant::Nobody | Occupant::Stale => None,
        Occupant::NoSocket => Some(Problem(format!(
            "{shown} exists and is not a socket: remove it or use another path"
        ))),
        Occupant::Living => Some(Problem(format!(
            "the unix socket {shown} is already in use: stop the program that listens there or use \
             another path"
        ))),
    }
}

/// Ascending numbers as people write them: `0-3,8`.
pub fn ranges(numbers: &[usize]) -> String {
    let mut text = String::new();
    let mut rest = numbers;
    while let Some(&first) = rest.first() {
        let run = rest.iter().zip(first..).take_while(|&(&number, next)| number == next).count();
        let separator = if text.is_empty() { "" } else { "," };
        text += &match run {
            1 => format!("{separator}{first}"),
            _ => format!("{separator}{first}-{}", first + run - 1),
        };
        rest = &rest[run..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    fn facts() -> HostFacts {
        HostFacts {
            allowed_cpus: vec![0, 1, 2, 5],
            cpu_quota_millis: None,
            memory_bytes: 8 << 30,
            memory_is_limited: false,
            files_max: 1 << 20,
            memlock_bytes_max: 8 << 20,
            kernel: "5.15.0".into(),
        }
    }

    fn refusal(errno: Errno, restrictions: Restrictions) -> String {
        ring_refusal(&io::Error::from_raw_os_error(errno.raw_os_error()), &facts(), &restrictions)
    }

    #[test]
    fn a_pid_file_needs_a_directory_and_to_be_a_file() {
        let told = |path: &str| {
            pid_file(Path::new(path), Instant::now()).map(|problem| problem.to_string())
        };
        let directory = std::env::temp_dir();
        let shown = directory.display();
        let missing = format!("{shown}/nowhere/x.pid");
        let said = format!(
            "the directory of the pid file {missing} does not exist: create {shown}/nowhere"
        );
        assert_eq!(told(&missing), Some(said));
        let said = format!("the pid file {shown} exists and is not a file: name a file");
        assert_eq!(told(&shown.to_string()), Some(said));
        assert_eq!(told(&format!("{shown}/ringlane-not-there.pid")), None);
    }

    #[test]
    fn each_way_to_lack_io_uring_has_its_own_fix() {
        let free = Restrictions::default;
        assert!(refusal(Errno::NOSYS, free()).contains("kernel 5.15.0 has no io_uring"));
        assert!(refusal(Errno::INVAL, free()).contains("6.1 or newer"));
        let filtered = || Restrictions { filtered: true, ..free() };
        assert!(refusal(Errno::PERM, filtered()).contains("seccomp"));
        assert!(refusal(Errno::NOSYS, filtered()).contains("seccomp"));
        let disabled = |value| Restrictions { disabled: Some(value), filtered: true };
        assert!(refusal(Errno::PERM, disabled(2)).contains("sysctl kernel.io_uring_disabled=0"));
        assert!(refusal(Errno::PERM, disabled(1)).contains("io_uring_group"));
        assert!(refusal(Errno::PERM, free()).contains("SELinux"));
        assert!(refusal(Errno::NOMEM, free()).contains("ulimit -l"));
    }

    #[test]
    fn a_cpu_that_is_not_allowed_is_named_with_those_that_are() {
        let config = Config { cpus: vec![1, 4], ..Config::default() };
        let text = cpus(&config, &facts()).expect("CPU 4 is not allowed").to_string();
        assert!(text.contains("CPU 4") && text.contains("0-2,5"), "{text}");
        assert_eq!(cpus(&Config { cpus: vec![5, 0], ..config }, &facts()), None);
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        let config = Config { memory_bytes: 9 << 30, ..Config::default() };
        let text = memory(&config, &facts()).expect("too much").to_string();
        assert!(text.contains("9GiB") && text.contains("8GiB"), "{text}");
        assert_eq!(memory(&Config { memory_bytes: 8 << 30, ..config }, &facts()), None);
    }

    #[test]
    fn a_taken_port_is_noticed_even_if_its_owner_would_share_it() {
        let owner = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        owner.set_reuse_port(true).expect("SO_REUSEPORT");
        owner.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
        owner.listen(1).expect("to listen");
        let address = owner.local_addr().ok().and_then(|a| a.as_socket()).expect("its address");
        let text =
            bind_problem(address, &bind(address, Type::STREAM)).expect("it is taken").to_string();
        assert!(text.contains(&address.to_string()) && text.contains("already in use"), "{text}");
        drop(owner);
        assert_eq!(
            bind_problem(address, &bind(address, Type::STREAM)),
            None,
            "and free afterwards"
        );
    }

    #[test]
    fn an_address_that_becomes_free_is_waited_for() {
        let former = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = former.local_addr().expect("its address");
        let closer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(former);
        });
        let until = Instant::now() + Duration::from_secs(30);
        bind_when_free(address, Type::STREAM, until).expect("it was given back");
        assert!(Instant::now() < until);
        closer.join().expect("it only sleeps");
    }

    #[test]
    fn an_address_of_another_host_is_refused() {
        let address: SocketAddr = "203.0.113.7:11311".parse().expect("an address");
        let text =
            bind_problem(address, &bind(address, Type::STREAM)).expect("not ours").to_string();
        assert!(text.contains("203.0.113.7 is not an address of this host"), "{text}");
    }

    #[test]
    fn shard_ports_and_the_admin_address_are_probed_too() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = taken.local_addr().expect("its address");
        let config = Config { listen: vec![], admin: Some(address), ..Config::default() };
        assert_eq!(addresses(&config, Instant::now()).len(), 1);
        let config = Config {
            listen: vec![address.ip()],
            port: 1,
            shard_ports: Some(address.port()),
            ..Config::default()
        };
        let found = addresses(&config, Instant::now());
        assert!(found.iter().any(|p| p.to_string().contains(&address.to_string())), "{found:?}");
    }

    #[test]
    fn a_unix_socket_needs_a_directory_and_no_other_file_in_its_place() {
        let at = |path: &str| {
            unix_socket(&UnixSocket { path: path.into(), mode: 0o700 }, Instant::now())
        };
        assert!(at("/nowhere/r.sock").is_some_and(|p| p.to_string().contains("create /nowhere")));
        assert!(at("/proc/self/status").is_some_and(|p| p.to_string().contains("not a socket")));
        let long = format!("/tmp/{}", "x".repeat(103));
        assert!(at(&long).is_some_and(|p| p.to_string().contains("108 bytes")));
        assert_eq!(at("/tmp/ringlane-no-such.sock"), None);
    }

    #[test]
    fn numbers_are_shown_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 8]), "0-3,8");
        assert_eq!(ranges(&[7]), "7");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn every_connection_has_a_file() {
        let config = Config { connections_max: 5000, ..Config::default() };
        assert!(files_needed(&config) > 5000);
    }
}
