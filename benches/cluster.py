#!/usr/bin/env python3
"""Cost and fault tolerance of a cluster: forwarding, replication, kill -9, return, join.

Starts nodes of the release binary on free ports of 127.0.0.1, loads them with the release build of
`ringload`, and prints one Markdown table. memcached behind Debian's nutcracker (twemproxy) is
measured beside it if both are installed. Nodes run on --node-cpus, the load on --load-cpus, and a
joining node on --join-cpus: on a separate CPU it disturbs the others only as a remote host would.

    cargo build --release --workspace && benches/cluster.py [--quick] [--only NAME,...]

Needs Python 3 and nothing else. --quick loads a twentieth of the data, for a smoke test.
"""

import argparse
import hashlib
import json
import mmap
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
QUORUM = ["--replicas", "3", "--write-quorum", "2", "--read-quorum", "2"]
OPTIONS = None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A server process that ends with the measurement."""

    running = []

    def __init__(self, name, arguments, port, cpus=None):
        self.name, self.arguments, self.port = name, arguments, port
        self.cpus = cpus or OPTIONS.node_cpus
        self.log = tempfile.NamedTemporaryFile(mode="w+b", prefix=f"{name}-", suffix=".log")
        self.begin()

    def begin(self):
        self.log.truncate(0)
        command = ["taskset", "-c", self.cpus, *self.arguments]
        self.child = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        Process.running.append(self.child)
        for _ in range(200):
            if self.child.poll() is not None:
                break
            try:
                return self.connect(1).close()
            except OSError:
                time.sleep(0.05)
        sys.exit(f"{' '.join(self.arguments)} does not serve:\n{self.text()}")

    def text(self):
        return Path(self.log.name).read_text(errors="replace")

    def connect(self, timeout):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def kill(self):
        self.child.kill()
        self.child.wait()

    def ask(self, line, timeout=30):
        """One admin command; its lines up to END."""
        with self.connect(timeout) as connection:
            connection.sendall(line + b"\r\n")
            answer = bytearray()
            while not answer.endswith(b"END\r\n"):
                part = connection.recv(1 << 20)
                if not part:
                    raise OSError("closed")
                answer += part
        return bytes(answer).decode().splitlines()[:-1]

    def stat(self, name):
        lines = (line.split(maxsplit=2) for line in self.ask(b"stats"))
        return next(line[2] for line in lines if line[1] == name)


class Cluster:
    """Nodes that know each other. The first is the one that the others join."""

    def __init__(self, count, *flags):
        self.flags, self.nodes = flags, []
        for _ in range(count):
            self.add()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end_all()

    def add(self, cpus=None):
        cpus = cpus or OPTIONS.node_cpus
        name, port, address = f"n{len(self.nodes) + 1}", free_port(), f"127.0.0.1:{free_port()}"
        join = ["--join", self.first] if self.nodes else []
        if not self.nodes:
            self.first = address
        command = [str(ROOT / "target/release/ringlane"), "-l", "127.0.0.1", "-p", str(port)]
        command += ["-t", "1", "--cpus", cpus.split("-")[0].split(",")[0]]
        command += ["-m", "2048", "--busy-poll", "0", "--log", "info", "--node-id", name]
        command += ["--cluster-listen", address, *join, *self.flags]
        self.nodes.append(Process(name, command, port, cpus))
        self.wait_for_roster()

    def wait_for_roster(self, within=60):
        """Until every running node has heard of a roster with all of them."""
        names = ", ".join(node.name for node in self.nodes)
        end = time.monotonic() + within
        while any(
            not roster_of(node) == names for node in self.nodes if node.child.poll() is None
        ):
            if time.monotonic() > end:
                sys.exit(f"no roster of {names}:\n" + "\n".join(n.text() for n in self.nodes))
            time.sleep(0.05)
        time.sleep(1.5)

    def owner(self, key):
        """The name of the node that owns a key, by the published ring."""
        points = []
        for node in self.nodes:
            points += [(place(f"{node.name}:{i}".encode()), node.name) for i in range(150)]
        points.sort()
        at = place(key)
        return next((name for point, name in points if point >= at), points[0][1])


def place(of):
    return int.from_bytes(hashlib.md5(of).digest()[:4], "big")


def roster_of(node):
    lines = [line for line in node.text().splitlines() if "roster " in line]
    return lines[-1].split(": ", 1)[1] if lines else None


def end_all():
    for child in Process.running:
        if child.poll() is None:
            child.send_signal(signal.SIGCONT)
            child.kill()
            child.wait()
    Process.running.clear()


def ringload(*arguments):
    """Runs a load; its figures."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [str(ROOT / "target/release/ringload"), "run", "--cpus", OPTIONS.load_cpus]
        command += ["--quiet", "--json", out.name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 3):
            sys.exit(f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}")
        return json.load(open(out.name))["runs"][0]


def cpu_per_get(address, pids, pipeline, keys):
    pids = ",".join(str(pid) for pid in pids)
    run = ringload(
        *address, "--server-pid", pids, "--closed", "--connections", "50", "--mix", "get=1",
        "--pipeline", str(pipeline), "--keys", str(keys), "--seconds", "3", "--warmup", "0.5",
    )  # fmt: skip
    if run["faults"] or (run["hit_ratio"] or 0) < 0.999:
        print(f"  faults {run['faults']}, hits {run['hit_ratio']}", file=sys.stderr)
    return run["server_cpu"]["micros_per_request"]


def forwarding(scale, rows):
    keys = 100_000 // scale
    ours, theirs = {}, {}
    with Cluster(2) as cluster:
        one, two = cluster.nodes
        pids = [one.child.pid, two.child.pid]
        ports = (one.port, two.port)
        right = ["--nodes", "n1=127.0.0.1:%d,n2=127.0.0.1:%d" % ports]
        wrong = ["--nodes", "n1=127.0.0.1:%d,n2=127.0.0.1:%d" % ports[::-1]]
        for pipeline in (1, 16):
            local = cpu_per_get(right, pids, pipeline, keys)
            ours[pipeline] = local, cpu_per_get(wrong, pids, pipeline, keys)
    if shutil.which("memcached") and shutil.which("nutcracker"):
        port, proxy_port = free_port(), free_port()
        command = ["memcached", "-p", str(port), "-U", "0", "-l", "127.0.0.1", "-u", "nobody"]
        server = Process("memcached", [*command, "-t", "1", "-m", "2048"], port)
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as settings:
            settings.write(
                f"pool:\n  listen: 127.0.0.1:{proxy_port}\n  hash: md5\n"
                f"  distribution: ketama\n  preconnect: true\n"
                f"  servers:\n   - 127.0.0.1:{port}:1\n"
            )
            settings.flush()
            stats = str(free_port())
            command = ["nutcracker", "-c", settings.name, "-s", stats, "-a", "127.0.0.1"]
            proxy = Process("nutcracker", command, proxy_port)
            for pipeline in (1, 16):
                address = ["--address", f"127.0.0.1:{proxy_port}"]
                pids = [server.child.pid, proxy.child.pid]
                theirs[pipeline] = cpu_per_get(address, pids, pipeline, keys)
        end_all()
    for pipeline, (local, forwarded) in ours.items():
        name = f"CPU of a forwarded get, both nodes, pipeline {pipeline}"
        figure = f"{forwarded:.2f} µs, a local one {local:.2f} µs: {forwarded / local:.2f} x"
        rows.append((name, figure, "at most 2.2 x", forwarded <= 2.2 * local))
        peer = theirs.get(pipeline)
        if peer:
            figure = f"{forwarded:.2f} µs against {peer:.2f} µs: {forwarded / peer:.2f} x"
            name = f"the same against nutcracker and memcached, pipeline {pipeline}"
            rows.append((name, figure, "below 1 x", forwarded < peer))


def latencies(port, keys):
    run = ringload(
        "--address", f"127.0.0.1:{port}", "--rate", "5000", "--mix", "get=1,set=1",
        "--keys", str(keys), "--connections", "20", "--seconds", "8", "--populate=yes",
    )  # fmt: skip
    if run["faults"]:
        print(f"  faults {run['faults']}", file=sys.stderr)
    found = {}
    for each in run["classes"]:
        kind = each["name"].split()[0]
        if kind in ("get", "set") and each["name"] != "get miss":
            found[kind] = each["latency"]["p50"], each["latency"]["p99"]
    return found


def replication(scale, rows):
    keys = 50_000 // scale
    with Cluster(1) as cluster:
        single = latencies(cluster.nodes[0].port, keys)
    with Cluster(3, *QUORUM) as cluster:
        three = latencies(cluster.nodes[0].port, keys)
    for kind in ("get", "set"):
        for index, quantile, most in ((0, "median", 2), (1, "p99", 3)):
            ours, base = three[kind][index], single[kind][index]
            figure = f"{ours:.0f} µs, single node {base:.0f} µs: {ours / base:.2f} x"
            name = f"{kind}, {quantile}, N=3 W=2 R=2, 5,000 requests/s"
            rows.append((name, figure, f"at most {most} x", ours <= most * base))


class Witness(threading.Thread):
    """A client that writes its keys in turn, reads each back, and remembers what it was told."""

    def __init__(self, ports, keys, until):
        super().__init__(daemon=True)
        self.ports, self.keys, self.until = ports, keys, until
        self.acknowledged = dict.fromkeys(keys, 0)
        self.good = {key: [] for key in keys}
        self.errors, self.misses, self.wrong = [], [], []

    def run(self):
        connections, number = {}, 0
        while time.monotonic() < self.until:
            number += 1
            for key in self.keys:
                port = self.ports[number % len(self.ports)]
                try:
                    if port not in connections:
                        made = socket.create_connection(("127.0.0.1", port), timeout=10)
                        connections[port] = made, made.makefile("rb")
                    self.once(*connections[port], key, number)
                except OSError as error:
                    self.errors.append((time.monotonic(), key, str(error)))
                    connections.pop(port, None)
                time.sleep(0.002)

    def once(self, connection, lines, key, number):
        value = b"%d" % number
        connection.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key, len(value), value))
        answer = lines.readline().strip()
        if answer == b"STORED":
            self.acknowledged[key] = number
            self.good[key].append(time.monotonic())
        else:
            self.errors.append((time.monotonic(), key, answer.decode()))
        self.read(connection, lines, key, number)

    def read(self, connection, lines, key, number):
        connection.sendall(b"get %s\r\n" % key)
        answer = lines.readline().strip()
        if answer.startswith(b"VALUE"):
            seen = int(lines.readline())
            lines.readline()
            if not self.acknowledged[key] <= seen <= number:
                self.wrong.append((key, seen, self.acknowledged[key]))
            self.good[key].append(time.monotonic())
        elif answer == b"END":
            self.misses.append((time.monotonic(), key))
        else:
            self.errors.append((time.monotonic(), key, answer.decode()))


def watch_a_kill(cluster, seconds=14):
    """Witnesses at all nodes but the last, which is killed. What they saw, and when it died."""
    ports = [node.port for node in cluster.nodes[:-1]]
    until = time.monotonic() + seconds
    witnesses = [
        Witness(ports, [b"w%d-%d" % (number, key) for key in range(8)], until)
        for number in range(8)
    ]
    for witness in witnesses:
        witness.start()
    time.sleep(3)
    cluster.nodes[-1].kill()
    killed = time.monotonic()
    for witness in witnesses:
        witness.join()
    return witnesses, killed


def gaps(witness):
    return [b - a for times in witness.good.values() for a, b in zip(times, times[1:])]


def kill_of_a_replica(_, rows):
    with Cluster(3, *QUORUM) as cluster:
        witnesses, killed = watch_a_kill(cluster)
    errors = [error for witness in witnesses for error in witness.errors]
    longest = max(max(gaps(witness)) for witness in witnesses)
    lost = sum(len(w.wrong) for w in witnesses) + sum(len(w.misses) for w in witnesses)
    writes = sum(sum(witness.acknowledged.values()) for witness in witnesses)
    rows.append((
        f"acknowledged writes lost, kill -9 of one of three, N=3 W=2 R=2, about {writes:,} writes",
        str(lost), "0", lost == 0,
    ))  # fmt: skip
    rows.append(("longest time without service for a key", f"{longest:.2f} s", "under 3 s", longest < 3))
    late = [at - killed for at, _, _ in errors if at > killed + 3 or at < killed]
    last = max((at - killed for at, _, _ in errors), default=0)
    kinds = sorted({text for _, _, text in errors})
    figure = f"{len(errors)} errors, the last after {last:.2f} s {kinds if kinds else ''}"
    rows.append(("errors after the kill", figure, "none after 3 s", not late))


def kill_of_an_owner(_, rows):
    with Cluster(3) as cluster:
        witnesses, killed = watch_a_kill(cluster)
        owner = {key: cluster.owner(key) for witness in witnesses for key in witness.keys}
    dead = cluster.nodes[-1].name
    others = misses = 0
    last = 0.0
    for witness in witnesses:
        for at, key, _ in witness.errors:
            others += owner[key] != dead
            last = max(last, at - killed)
        for _, key in witness.misses:
            misses += 1
            others += owner[key] != dead
        others += sum(owner[key] != dead for key, _, _ in witness.wrong)
    figure = f"{others}; for the dead node's keys {misses} misses, errors for {last:.2f} s"
    rows.append(("kill -9 at N=1: errors and misses of other nodes' keys", figure, "0", others == 0))


def kept(node, prefix):
    """Keys and versions that a node itself holds."""
    found = {}
    for line in node.ask(b"lru_crawler metadump all"):
        fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
        key = unquote(fields.get("key", ""))
        if key.startswith(prefix):
            found[key] = fields["cas"]
    return found


def back_after_absence(scale, rows):
    seconds = 30 if scale == 1 else 8
    for how in ("stopped", "killed"):
        with Cluster(3, *QUORUM) as cluster:
            absent = cluster.nodes[-1]
            if how == "killed":
                absent.kill()
            else:
                absent.child.send_signal(signal.SIGSTOP)
            present = cluster.nodes[0].port
            away = ringload(
                "--address", f"127.0.0.1:{present}", "--mix", "set=1", "--rate", "2000",
                "--keys", "20000", "--key-prefix", "away:", "--seconds", str(seconds),
                "--warmup", "0", "--populate=no",
            )  # fmt: skip
            returned = time.monotonic()
            if how == "killed":
                absent.begin()
            else:
                absent.child.send_signal(signal.SIGCONT)
            going_on = subprocess.Popen(
                [str(ROOT / "target/release/ringload"), "run", "--cpus", OPTIONS.load_cpus, "-q",
                 "--address", f"127.0.0.1:{present}", "--mix", "set=1", "--rate", "1000",
                 "--keys", "5000", "--key-prefix", "later:", "--seconds", "60", "--populate=no"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            equal = None
            while equal is None and time.monotonic() < returned + 60:
                time.sleep(0.2)
                try:
                    held = [kept(node, "away:") for node in cluster.nodes]
                except OSError:
                    continue
                if held[0] and held[0] == held[1] == held[2]:
                    equal = time.monotonic() - returned
            going_on.kill()
            going_on.wait()
        name = f"node {how} for {seconds} s with {away['requests']:,} writes going on: all equal"
        figure = "not within 60 s" if equal is None else f"{equal:.1f} s after its return"
        if equal is None:
            figure += f": {[len(h) for h in held]} keys, " + str(
                sum(held[0].get(k) != held[2].get(k) for k in held[0])
            ) + " differ"
        rows.append((name, figure, "within 30 s", equal is not None and equal <= 30))


def join(scale, rows):
    """A fourth node of its default settings on the machine as it is."""
    join_of(scale, rows, "")


def join_locked(scale, rows):
    """The memory of every node is there from its start."""
    join_of(scale, rows, ", --lock-memory", "-m", "512", "--lock-memory")


def join_warm(scale, rows):
    """As `join_locked`, on a machine whose memory was in use a moment before: the host of a virtual
    machine may take milliseconds to find a huge page that was not."""
    join_of(scale, rows, ", --lock-memory, warm machine", "-m", "512", "--lock-memory", warm=True)


def warm_memory(size):
    """Touches each huge page of so much memory, and gives it back."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, size, 2 << 20):
            memory[page] = 1


def join_of(scale, rows, how, *flags, warm=False):
    value, keys = 4096, 250_000 // scale
    # It takes a second or two to be seated, and then takes in 32 MiB a second.
    seconds = 2 + round(keys * value / 4 / (32 << 20))
    with Cluster(3, *flags) as cluster:
        address = ["--address", f"127.0.0.1:{cluster.nodes[0].port}"]
        load = [*address, "--keys", str(keys), "--value-bytes", str(value), "--rate", "2000"]
        ringload(*load, "--populate=yes", "--mix", "get=1", "--seconds", "1")
        load += ["--populate=no", "--mix", "get=9,set=1", "--warmup", "0"]
        before = ringload(*load, "--seconds", str(seconds))
        if warm:
            warm_memory(600 << 20)
        begun = time.monotonic()
        adding = threading.Timer(0.2, cluster.add, [OPTIONS.join_cpus])
        adding.start()
        during = ringload(*load, "--seconds", str(seconds))
        adding.join()
        while not is_filled(cluster.nodes[-1]):
            time.sleep(0.05)
        took = time.monotonic() - begun
        after = ringload(*load, "--seconds", str(seconds))
        counts = [int(node.stat("curr_items")) for node in cluster.nodes]
        arrived = len(kept(cluster.nodes[-1], "key:"))
    data = f"{keys * value / 1e9:.2f} GB in three"
    share = arrived / keys
    figure = f"{100 * share:.1f} % of the keys at the fourth (items by node: {counts})"
    name = f"join of a fourth node, {data}{how}: moved keys"
    rows.append((name, figure, "22.5 to 27.5 %", 0.225 <= share <= 0.275))
    hits = lambda run: [s["hit_ratio"] for s in run["timeline"] if s["hit_ratio"] is not None]
    best, worst = min(hits(before)), min(hits(during) + hits(after))
    figure = f"{100 * worst:.2f} %, before {100 * best:.2f} %"
    name = f"the worst second's hit ratio during the join and after it{how}"
    rows.append((name, figure, "at most 2 points less", worst >= best - 0.02))
    quiet, busy = before["latency"]["p99"], during["latency"]["p99"]
    figure = f"{busy:.0f} µs, before {quiet:.0f} µs, after {after['latency']['p99']:.0f} µs: "
    figure += f"{busy / quiet:.2f} x"
    name = f"p99 of {seconds} s, from the start of its process{how} (all there after {took:.1f} s)"
    rows.append((name, figure, "at most 2 x", busy <= 2 * quiet))
    worst_seconds = ", ".join(f"{s['p99']:.0f}" for s in during["timeline"])
    print(f"  p99 of each second: {worst_seconds} µs", file=sys.stderr)
    faults = sum(s["faults"] for run in (before, during, after) for s in run["timeline"])
    rows.append((f"errors during the join{how}", str(faults), "0", faults == 0))


def is_filled(node):
    """Whether a node has a seat and all that became its own."""
    lines = (line.split(maxsplit=2)[1:] for line in node.ask(b"stats cluster"))
    stats = {name: value for name, value in lines}
    return stats.get("epoch") not in (None, "0") and (
        stats.get(f"member:{node.name}:settled") == stats["epoch"]
    )


CHECKS = [forwarding, replication, kill_of_a_replica, kill_of_an_owner, back_after_absence]
CHECKS += [join, join_locked, join_warm]


def main():
    global OPTIONS
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the data")
    parser.add_argument("--only", help="names of checks: " + ", ".join(c.__name__ for c in CHECKS))
    parser.add_argument("--node-cpus", default="0", help="CPUs of all nodes")
    parser.add_argument("--join-cpus", help="CPUs of the node that joins, those of all by default")
    parser.add_argument("--load-cpus", default="1", help="CPUs of the load")
    OPTIONS = parser.parse_args()
    rows = []
    try:
        for check in CHECKS:
            if not OPTIONS.only or check.__name__ in OPTIONS.only.split(","):
                begun = len(rows)
                check(20 if OPTIONS.quick else 1, rows)
                for row in rows[begun:]:
                    print(f"  {row[0]}: {row[1]}", file=sys.stderr, flush=True)
    finally:
        end_all()
    print("| what | measured | reach | reached |\n|---|---|---|---|")
    for name, figure, reach, reached in rows:
        print(f"| {name} | {figure} | {reach} | {'yes' if reached else 'NO'} |")
    if not OPTIONS.quick and not all(row[3] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
