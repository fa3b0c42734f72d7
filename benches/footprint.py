#!/usr/bin/env python3
"""Footprint of a node: bytes per item and connection, memory under pressure, idle CPU, expiry.

Starts the release binary (and Debian's memcached, if installed, for comparison) on free ports of
127.0.0.1, one after the other, loads them with bounded data and prints one Markdown table. Figures
are resident bytes from /proc, so they include everything: index, slabs, allocator, slack.

    cargo build --release && benches/footprint.py [--quick] [--only NAME,...] [--json FILE]

Needs Python 3 and nothing else. --quick uses a twentieth of the items, for a smoke test.
"""

import argparse
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
# What the server keeps besides items and index: program text, glommio's reactors, receive buffers
# of every core (256 of 16 KiB), and output buffers in flight.
FIXED_MIB = 24


class Server:
    """A server process that listens on a free port of 127.0.0.1."""

    def __init__(self, command):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = tempfile.TemporaryFile()
        arguments = [part.replace("{port}", str(self.port)) for part in command]
        self.process = subprocess.Popen(arguments, stdout=self.log, stderr=self.log)
        for _ in range(100):
            try:
                self.client = self.connect()
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.log.seek(0)
        sys.exit(f"{' '.join(arguments)} does not serve: {self.log.read().decode()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.process.terminate()
        self.process.wait()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def resident_bytes(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the server is gone")

    def cpu_seconds(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def stats(self):
        self.client.sendall(b"stats\r\n")
        answer = b""
        while not answer.endswith(b"END\r\n"):
            answer += self.client.recv(65536)
        lines = (line.split(maxsplit=2) for line in answer.decode().splitlines())
        return {line[1]: line[2] for line in lines if line[0] == "STAT"}

    def load(self, items):
        """Stores (key, exptime, value) quietly, then waits until all are stored."""
        batch = bytearray()
        for key, exptime, value in items:
            batch += b"set %s 0 %d %d noreply\r\n%s\r\n" % (key, exptime, len(value), value)
            if len(batch) > 100_000:
                self.client.sendall(batch)
                batch.clear()
        self.client.sendall(batch)
        self.stats()


def ringlane(*flags):
    return Server([str(ROOT / "target/release/ringlane"), "-p", "{port}", *flags])


def memcached(*flags):
    return Server(["memcached", "-p", "{port}", "-U", "0", "-l", "127.0.0.1", "-u", "nobody", *flags])


def bytes_per_item(server, count, key_bytes, value_bytes, exptime):
    with server:
        before = server.resident_bytes()
        value = b"v" * value_bytes
        server.load((b"%0*d" % (key_bytes, i), exptime, value) for i in range(count))
        stats = server.stats()
        assert int(stats["curr_items"]) == count and int(stats["evictions"]) == 0, stats
        grown = server.resident_bytes() - before
        return grown / count - key_bytes - value_bytes


def items(scale, rows):
    for count, key, value, exptime, reach in [
        (3_000_000, 20, 32, 3600, 40),
        (3_000_000, 20, 32, 0, 32),
        (1_000_000, 50, 500, 0, 75),
    ]:
        count //= scale
        ttl = "with" if exptime else "without"
        name = f"bytes over key + value, {count:,} items of {key} + {value} {ttl} a TTL"
        ours = bytes_per_item(ringlane("-t", "1", "-m", "2048"), count, key, value, exptime)
        peer = None
        if shutil.which("memcached"):
            server = memcached("-t", "1", "-m", "4096")
            peer = bytes_per_item(server, count, key, value, exptime)
        rows.append((name, ours, f"at most {reach}", ours <= reach, peer))


def pressure(scale, rows):
    limit = 256
    random.seed(1)
    blob = random.randbytes(MIB)
    total = 10 * limit * MIB // scale
    with ringlane("-t", "2", "-m", str(limit)) as server:
        most, written, number = 0, 0, 0
        while written < total:
            part = []
            for _ in range(200):
                size = min(int(2 ** random.uniform(0, 20)), 1_048_000)
                part.append((b"key%d" % number, 0, blob[:size]))
                number, written = number + 1, written + size
            server.load(part)
            most = max(most, server.resident_bytes())
    reach = limit * 1.05 + FIXED_MIB
    name = f"most MiB resident with --memory {limit}MiB, {written // MIB:,} MiB of mixed sizes written"
    rows.append((name, most / MIB, f"at most {reach:.0f}", most / MIB <= reach, None))


def connections(scale, rows):
    count = 10_000 // scale
    with ringlane("-t", "2", "-c", "12000") as server:
        before = server.resident_bytes()
        clients = [server.connect() for _ in range(count)]
        time.sleep(1)
        idle = (server.resident_bytes() - before) / count
        for client in clients:
            client.sendall(b"get a\r\nget b")
        for client in clients:
            assert client.recv(100) == b"END\r\n"
        used = (server.resident_bytes() - before) / count
        for client in clients:
            client.close()
    rows.append((f"bytes per connection, {count:,} idle", idle, "at most 4096", idle <= 4096, None))
    name = "the same after one request each and half of another"
    rows.append((name, used, "at most 4096", used <= 4096, None))


def idle_cpu(_, rows):
    with ringlane() as server:
        time.sleep(1)
        before, seconds = server.cpu_seconds(), 10
        time.sleep(seconds)
        share = (server.cpu_seconds() - before) / seconds * 100
    rows.append(("% of one CPU, idle, default flags", share, "under 0.5", share < 0.5, None))


def expiry(scale, rows):
    count, longest = 1_000_000 // scale, 60 if scale == 1 else 5
    with ringlane("-t", "1") as server:
        server.load((b"key%d" % i, 1 + i % longest, b"0123456789") for i in range(count))
        last_deadline = time.time() + longest
        while time.time() < last_deadline - 1:
            time.sleep(0.5)
        while int(server.stats()["curr_items"]) > 0 and time.time() < last_deadline + 10:
            time.sleep(0.05)
        late = time.time() - last_deadline
        stats = server.stats()
        assert stats["curr_items"] == "0" and stats["bytes"] == "0", stats
    name = f"seconds from the last deadline to none left, {count:,} items never touched again"
    rows.append((name, late, "at most 2", late <= 2, None))


CHECKS = [items, pressure, connections, idle_cpu, expiry]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the items")
    parser.add_argument("--only", help="names of checks: " + ", ".join(c.__name__ for c in CHECKS))
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    rows = []
    for check in CHECKS:
        if not options.only or check.__name__ in options.only.split(","):
            check(20 if options.quick else 1, rows)
    print("| what | ringlane | reach | reached | memcached |\n|---|---|---|---|---|")
    for name, ours, reach, reached, peer in rows:
        peer = "" if peer is None else f"{peer:.1f}"
        verdict = "not judged" if options.quick else "yes" if reached else "NO"
        print(f"| {name} | {ours:.1f} | {reach} | {verdict} | {peer} |")
    if options.json:
        keys = ["what", "ringlane", "reach", "reached", "memcached"]
        Path(options.json).write_text(json.dumps([dict(zip(keys, row)) for row in rows], indent=1))
    # A twentieth of the items is dominated by the fixed part: only full runs are judged.
    if not options.quick and not all(row[3] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
