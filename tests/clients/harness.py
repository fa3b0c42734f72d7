"""Starts a server for the client tests and looks at it from outside.

Only flags that memcached has too are used, so that the same tests run against it:
    python3 tests/clients/tree.py /usr/bin/memcached
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

MIB = 1 << 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One running server on a free port of 127.0.0.1."""

    def __init__(self, binary, memory_mib=64, cores=1, item_max="1m", *flags):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        arguments = [binary, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-u", "root"]
        arguments += ["-m", str(memory_mib), "-t", str(cores), "-I", item_max, *flags]
        self.process = subprocess.Popen(arguments)
        deadline = time.monotonic() + 20
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"{' '.join(arguments)}: ended with {self.process.returncode}")
            try:
                self.connect().close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    self.process.kill()
                    raise SystemExit(f"{' '.join(arguments)}: does not listen after 20 s")
                time.sleep(0.02)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def stats(self, argument=""):
        """The answer to `stats`, as a dictionary of text."""
        with self.connect() as connection, connection.makefile("rb") as lines:
            connection.sendall(f"stats {argument}".strip().encode() + b"\r\n")
            found = {}
            for line in lines:
                word, _, rest = line.rstrip(b"\r\n").partition(b" ")
                if word == b"END":
                    return found
                assert word == b"STAT", line
                name, _, value = rest.partition(b" ")
                found[name.decode()] = value.decode()
            raise AssertionError("the connection ended within the statistics")

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) << 10
        raise AssertionError("no VmRSS")

    def stop(self):
        """Asks it to end, and says how it did."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("still running 10 s after SIGTERM")


@contextlib.contextmanager
def server(binary, *arguments):
    running = Server(binary, *arguments)
    try:
        yield running
    except BaseException:
        running.process.kill()
        running.process.wait()
        raise
    status = running.stop()
    assert status == 0, f"exit code {status} after SIGTERM"


def every_core():
    return len(os.sched_getaffinity(0))


def core_counts():
    """1 and every core, without saying the same twice."""
    return sorted({1, every_core()})


def require(*modules):
    """Imports modules; if one is missing, says so and ends with 77, which means skipped."""
    import importlib

    try:
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        print(f"SKIPPED: {error}; pip install it to run this test", flush=True)
        sys.exit(77)


def require_program(*names):
    import shutil

    missing = [name for name in names if not shutil.which(name)]
    if missing:
        print(f"SKIPPED: no program {', '.join(missing)}", flush=True)
        sys.exit(77)


def binary_from_arguments():
    if len(sys.argv) < 2:
        raise SystemExit(f"usage: {sys.argv[0]} SERVER-BINARY")
    return sys.argv[1]
