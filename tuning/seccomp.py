#!/usr/bin/env python3
"""The container's seccomp profile: derives its list, and proves that it works.

    seccomp.py run COMMAND...   runs a command under the profile
    seccomp.py trace SERVER     exercises the server under strace and compares with the profile
    seccomp.py test SERVER      exercises the server under the profile, and tries forbidden operations

The profile is loaded by libseccomp, as in container runtimes. Exit codes: 0 success, 1 failure,
77 a requirement is missing, which is named.
"""

import contextlib
import ctypes
import ctypes.util
import errno
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROFILE = Path(__file__).with_name("seccomp.json")
# The content of /etc/os-release on systems with the image's C library (tuning/Dockerfile).
IMAGE_SYSTEM = "VERSION_CODENAME=bookworm"
SKIPPED = 77
MIB = 1 << 20

# The start of a rule's comment states when its calls are made.
ALWAYS, AT_TIMES, RUNTIME = "always: ", "at times: ", "container runtime: "


def skip(reason):
    print(f"SKIPPED: {reason}")
    sys.exit(SKIPPED)


# The profile -----------------------------------------------------------------------------------


def rules():
    return json.loads(PROFILE.read_text())["syscalls"]


def names(*kinds):
    """The calls of the rules of these kinds."""
    found = set()
    for rule in rules():
        kind = rule["comment"].partition(": ")[0] + ": "
        assert kind in (ALWAYS, AT_TIMES, RUNTIME), rule["comment"]
        if kind in kinds:
            found |= set(rule["names"])
    return found


class Comparison(ctypes.Structure):
    _fields_ = [
        ("index", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("value_two", ctypes.c_uint64),
    ]


OPERATORS = {"SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}


def library():
    name = ctypes.util.find_library("seccomp") or "libseccomp.so.2"
    try:
        seccomp = ctypes.CDLL(name, use_errno=True)
    except OSError:
        skip("no libseccomp")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    seccomp.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison),
    ]
    return seccomp


def action(name, code):
    return {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_ERRNO": 0x00050000 | code}[name]


def load_profile():
    """Puts the profile in force for this process and all that comes of it."""
    profile, seccomp = json.loads(PROFILE.read_text()), library()
    if os.uname().machine != "x86_64":
        skip("the profile is for x86_64")
    default = action(profile["defaultAction"], profile["defaultErrnoRet"])
    context = seccomp.seccomp_init(default)
    assert context, "seccomp_init"
    for rule in profile["syscalls"]:
        todo = action(rule["action"], rule.get("errnoRet", 0))
        if todo == default:
            continue  # libseccomp refuses to say twice what happens anyway.
        args = [
            Comparison(a["index"], OPERATORS[a["op"]], a["value"], a.get("valueTwo", 0))
            for a in rule.get("args", [])
        ]
        for name in rule["names"]:
            number = seccomp.seccomp_syscall_resolve_name(name.encode())
            assert number >= 0, f"x86_64 has no call {name}"
            array = (Comparison * len(args))(*args)
            outcome = seccomp.seccomp_rule_add_array(context, todo, number, len(args), array)
            assert outcome == 0, f"{name}: {os.strerror(-outcome)}"
    # Sets no_new_privs too, without which only root may load a filter.
    assert seccomp.seccomp_load(context) == 0, "seccomp_load"


# The exercise ----------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_ports(count):
    """The first of several free ports in a row."""
    while True:
        base = free_port()
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
        return base


class Client:
    def __init__(self, address, family=socket.AF_INET):
        deadline = time.monotonic() + 60
        while True:
            self.socket = socket.socket(family)
            self.socket.settimeout(60)
            try:
                self.socket.connect(address)
                break
            except OSError:
                self.socket.close()
                assert time.monotonic() < deadline, f"nothing listens on {address}"
                time.sleep(0.05)
        self.stream = self.socket.makefile("rwb")

    def ask(self, line, end=b"END\r\n"):
        self.stream.write(line)
        self.stream.flush()
        answer = b""
        while not answer.endswith(end):
            more = self.stream.readline()
            assert more, f"the connection ended after {answer[-80:]!r}"
            answer += more
        return answer

    def set_and_get(self, key, value):
        line = b"set %s 5 0 %d\r\n%s\r\n" % (key, len(value), value)
        assert self.ask(line, b"\r\n") == b"STORED\r\n"
        wanted = b"VALUE %s 5 %d\r\n%s\r\nEND\r\n" % (key, len(value), value)
        assert self.ask(b"get " + key + b"\r\n") == wanted, f"{key} came back changed"

    def ended_by_server(self):
        while True:
            try:
                if not self.socket.recv(MIB):
                    return True
            except ConnectionResetError:
                return True
            except TimeoutError:
                return False


def talk(client):
    """What a client may ask for: small, large and many values, every kind of command."""
    for size in (1, 100, 20_000, 300_000, MIB - 200):
        client.set_and_get(b"key%d" % size, b"v" * size)
    many = b"".join(b"set many%d 0 0 10 noreply\r\n0123456789\r\n" % n for n in range(20_000))
    keys = b" ".join(b"many%d" % n for n in range(0, 100))
    assert client.ask(many + b"get " + keys + b"\r\n").count(b"VALUE") == 100
    assert client.ask(b"set n 0 1 1\r\n1\r\nincr n 5\r\n", b"6\r\n") == b"STORED\r\n6\r\n"
    assert client.ask(b"mg key1 v\r\nmn\r\n", b"MN\r\n") == b"VA 1\r\nv\r\nMN\r\n"
    for group in (b"", b" settings", b" items", b" slabs", b" sizes", b" conns"):
        assert client.ask(b"stats" + group + b"\r\n").startswith(b"STAT"), group
    assert client.ask(b"stats reset\r\n", b"RESET\r\n")
    client.ask(b"lru_crawler metadump all\r\n")
    time.sleep(1.2)  # Idle: the cores go to sleep, and n expires.
    assert client.ask(b"get n\r\n") == b"END\r\n"


def ask_admin(port):
    """Statistics over HTTP; a build without them does not listen."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    except ConnectionRefusedError:
        return
    with connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        answer = b""
        while part := connection.recv(MIB):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:80]


def terminate(server):
    """SIGTERM for the server itself; strace, its parent, would not hand it on."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    os.kill(int(children[0]) if children else server.pid, signal.SIGTERM)


def ended(server):
    assert server.wait(30) == 0, f"the server ended with {server.returncode}"


def kill(server):
    """Leaves nothing behind when the exercise has failed."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def exercise(server_path, wrapper=(), watch=lambda pid: None):
    """Runs the server several times, as differently as its flags allow, and talks to it."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        unix, pid_file = f"{directory}/socket", Path(directory, "pid")
        config = Path(directory, "ringlane.toml")
        config.write_text('memory = "64MiB"\nbusy-poll = 0\n')

        def start(*flags, **streams):
            command = [*wrapper, server_path, *map(str, flags)]
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, start_new_session=True, **streams
            )
            stack.callback(kill, server)
            return server

        # TCP over IPv4 and IPv6, every allowed CPU; ended by SIGTERM with clients connected.
        port, admin = free_port(), free_port()
        six = ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]
        server = start("-l", ",".join(six), "-p", port, "-m", 64, "--log", "debug",
                       "--admin", f"127.0.0.1:{admin}")
        for address in six:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            talk(client := Client((address, port), family))
        ask_admin(admin)
        watch(server.pid)
        terminate(server)
        ended(server)
        assert client.ended_by_server()

        # A unix socket, a file of settings, a log on a terminal; no polling. A socket and a pid
        # file that an earlier run has left are replaced.
        socket.socket(socket.AF_UNIX).bind(unix)
        pid_file.write_text("1\n")
        terminal, log = pty.openpty()
        server = start("--config", config, "-s", unix, "-P", pid_file, stderr=log)
        os.close(log)
        time.sleep(0.1)
        talk(Client(unix, socket.AF_UNIX))
        watch(server.pid)
        terminate(server)
        ended(server)
        os.close(terminal)
        assert not os.path.exists(unix), "the socket's file is left behind"
        assert not pid_file.exists(), "the pid file is left behind"

        # Shard ports, refused and silent connections; ended by a client.
        port, shards = free_port(), free_ports(os.cpu_count())
        server = start("-p", port, "-m", 64, "--shard-ports", shards, "-c", 2, "-A",
                       "-P", pid_file, "--idle-timeout", 5, "--disable-evictions")
        first = Client(("127.0.0.1", shards))
        talk(first)
        second = Client(("127.0.0.1", port))
        second.ask(b"version\r\n", b"\r\n")
        assert Client(("127.0.0.1", port)).ended_by_server(), "a third connection was kept"
        assert second.ended_by_server(), "a silent connection was kept"
        watch(server.pid)
        # The silent connection's place may not be free yet; then this one is refused.
        deadline = time.monotonic() + 30
        # Nor is it waited for: once it is told, it does not listen, and may take a while to end.
        while server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port), timeout=60) as last:
                    last.sendall(b"shutdown\r\n")
                    while last.recv(MIB):
                        pass
            time.sleep(0.2)
        ended(server)

        # Two nodes of a cluster, which answer for each other; one is killed, one leaves.
        key = Path(directory, "key")
        key.touch(mode=0o600)
        key.write_text("a secret of both of them")
        ports, gossip = [free_port(), free_port()], [free_port(), free_port()]
        nodes = [
            start("-p", port, "-m", 64, "--cluster-listen", f"127.0.0.1:{own}",
                  "--join", f"127.0.0.1:{gossip[0]}", "--cluster-key-file", key)
            for port, own in zip(ports, gossip)
        ]
        clients = [Client(("127.0.0.1", port)) for port in ports]
        deadline = time.monotonic() + 60
        while not all(b"epoch 2" in client.ask(b"stats cluster\r\n") for client in clients):
            assert time.monotonic() < deadline, "the two nodes found no cluster"
            time.sleep(0.2)
        for number in range(50):
            writer, reader = clients[number % 2], clients[1 - number % 2]
            line = b"set both%d 0 0 1\r\n1\r\n" % number
            assert writer.ask(line, b"\r\n") == b"STORED\r\n"
            assert b"VALUE" in reader.ask(b"get both%d\r\n" % number)
        writer.set_and_get(b"long", b"v" * 300_000)
        reader.set_and_get(b"long", b"w" * 300_000)
        for node in nodes:
            watch(node.pid)
        kill(nodes[1])
        while b":state dead" not in clients[0].ask(b"stats cluster\r\n"):
            assert time.monotonic() < deadline, "the killed node is not held for dead"
            time.sleep(0.2)
        terminate(nodes[0])
        ended(nodes[0])

        # Only looking; and a port that is taken, which is refused in a sentence.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        assert start("check", "-p", free_port(), "-m", 64, **quiet).wait(30) == 0
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            refused = start("-p", taken.getsockname()[1], "-m", 64, **quiet)
            assert b"already in use" in refused.communicate(timeout=30)[1]
            assert refused.returncode == 1


# The commands ----------------------------------------------------------------------------------


def run(command):
    load_profile()
    os.execv(shutil.which(command[0]) or command[0], command)


def trace(server_path):
    """What the server calls, against what the profile says."""
    if not shutil.which("strace"):
        skip("no strace")
    with tempfile.TemporaryDirectory() as directory:
        # One file per thread: whole lines, no `unfinished`.
        strace = ["strace", "-ff", "-qq", "-o", f"{directory}/calls"]
        exercise(server_path, strace)
        called = set()
        for path in Path(directory).iterdir():
            called |= set(re.findall(r"^(\w+)\(", path.read_text(errors="replace"), re.M))
    called -= {"execve"}  # Made by the process that starts the server.
    # The C library falls back to clone.
    called |= {"clone"} if "clone3" in called else set()
    print("called:", " ".join(sorted(called)))
    missing = called - names(ALWAYS, AT_TIMES)
    idle = names(ALWAYS) - called
    if missing:
        print("called, but not allowed by the profile:", " ".join(sorted(missing)))
    if idle:
        print("allowed as always called, but not called:", " ".join(sorted(idle)))
    if not missing and not idle:
        return 0
    if IMAGE_SYSTEM not in Path("/etc/os-release").read_text():
        skip("the profile is for the C library of the image, Debian 12; another may call otherwise")
    return 1


def under_profile(attempt):
    """The exit code of a child that loads the profile and tries something; 0 for true."""
    child = os.fork()
    if child == 0:
        load_profile()
        os._exit(0 if attempt() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forbidden():
    """Tries, under the profile, what the server never does. Each must be answered ENOSYS."""
    libc = ctypes.CDLL(None, use_errno=True)
    seccomp = library()
    number = lambda name: seccomp.seccomp_syscall_resolve_name(name.encode())
    PROT_READ_WRITE_EXEC, PRIVATE_ANONYMOUS, AF_NETLINK, SIGCHLD = 7, 0x22, 16, 17
    attempts = {
        "a new process": ("clone", SIGCHLD, 0, 0, 0, 0),
        "a new process by fork": ("fork",),
        "a user namespace": ("unshare", 0x10000000),
        "looking into another process": ("ptrace", 16, 1, 0, 0),
        "reading another's memory": ("process_vm_readv", 1, 0, 0, 0, 0, 0),
        "a signal to others": ("kill", 1, 0),
        "another's limits": ("prlimit64", 1, 7, 0, 0),
        "netlink": ("socket", AF_NETLINK, 3, 0),
        "memory to write and execute": ("mmap", 0, 4096, PROT_READ_WRITE_EXEC, PRIVATE_ANONYMOUS, -1, 0),
        "making memory executable": ("mprotect", 0, 4096, 5),
        "a mount": ("mount", 0, 0, 0, 0, 0),
        "another root": ("chroot", b"/"),
        "a kernel module": ("finit_module", -1, b"", 0),
        "a program in the kernel": ("bpf", 0, 0, 0),
        "another user": ("setuid", 65534),
        "a debugger's flag": ("prctl", 4, 1, 0, 0, 0),
        "typing into a terminal": ("ioctl", 0, 0x5412, b"x"),
    }
    calls = {what: [number(call), *args] for what, (call, *args) in attempts.items()}

    def attempt():
        refused = True
        for what, call in calls.items():
            ctypes.set_errno(0)
            wide = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in call]
            outcome, code = libc.syscall(*wide), ctypes.get_errno()
            if outcome != -1 or code != errno.ENOSYS:
                os.write(2, f"not refused: {what}: {outcome}, {os.strerror(code)}\n".encode())
                refused = False
        return refused

    assert under_profile(attempt) == 0, "something forbidden was possible"
    print(f"refused: {', '.join(calls)}")
    # System call numbers of another ABI would bypass a list of names; a process that uses them is killed.
    ended = under_profile(lambda: libc.syscall(ctypes.c_long(0x40000000 + 39)))
    assert ended == -signal.SIGSYS, f"a call of the x32 ABI: {ended}"
    print("ended: who makes a call of the x32 ABI")


def test(server_path):
    forbidden()

    def filtered(pid):
        for task in Path(f"/proc/{pid}/task").iterdir():
            status = (task / "status").read_text()
            assert re.search(r"^Seccomp:\s+2$", status, re.M), f"thread {task.name} is unfiltered"

    exercise(server_path, [sys.executable, __file__, "run"], filtered)
    print("the server does all it should under the profile")
    return 0


def main(arguments):
    match arguments:
        case ["run", _, *_]:
            run(arguments[1:])
        case ["trace", server]:
            sys.exit(trace(server))
        case ["test", server]:
            sys.exit(test(server))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
