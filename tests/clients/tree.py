"""A real source tree through real clients: every file a value, its path the key.

Loads every regular file below the Rust toolchain's library source over several connections at
once, reads all back over others, and compares byte by byte; with one core and with every core,
with pymemcache and with libmemcached (pylibmc). Then the same with a quarter of the memory that
the data needs: misses are allowed, wrong bytes and errors are not, and the memory stays in bounds.

For the second part the tree is stored four times under different prefixes: its largest file
would not fit a quarter of a single tree.
"""

import hashlib
import os
import subprocess
import sys
import threading

from harness import MIB, binary_from_arguments, core_counts, require, server

pymemcache, pylibmc = require("pymemcache", "pylibmc")

CONNECTIONS = 4
KEY_BYTES_MAX = 250
# What a process needs besides its items: program, stacks, rings, buffers of its cores.
FIXED_BYTES = 8 * MIB
FIXED_BYTES_PER_CORE = 16 * MIB


def tree_directory():
    sysroot = subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip()
    library = os.path.join(sysroot, "lib/rustlib/src/rust/library")
    if os.path.isdir(library):
        return library
    print("SKIPPED: no library source; run `rustup component add rust-src`", flush=True)
    sys.exit(77)


def key_of(path):
    key = path.replace(" ", "%20")
    if len(key.encode()) > KEY_BYTES_MAX or not key.isascii():
        key = "sha256:" + hashlib.sha256(path.encode()).hexdigest()
    return key


def load_tree(directory):
    """Every regular file: key to contents."""
    files = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    files[key_of(os.path.relpath(path, directory))] = file.read()
    assert len(files) > 1000, f"only {len(files)} files below {directory}"
    return files


class Pymemcache:
    name = "pymemcache"

    def __init__(self, port):
        # Without Nagle, each value costs one delayed acknowledgement less.
        self.client = pymemcache.Client(("127.0.0.1", port), no_delay=True, timeout=60)

    def set(self, key, value):
        assert self.client.set(key, value, noreply=False), f"{key} was not stored"

    def get(self, key):
        return self.client.get(key)

    def get_many(self, keys):
        return self.client.get_many(keys)


class Pylibmc:
    name = "pylibmc"

    def __init__(self, port):
        behaviors = {"tcp_nodelay": True}
        self.client = pylibmc.Client([f"127.0.0.1:{port}"], binary=False, behaviors=behaviors)

    def set(self, key, value):
        assert self.client.set(key, value), f"{key} was not stored"

    def get(self, key):
        return self.client.get(key)

    def get_many(self, keys):
        return self.client.get_multi(keys)


class PylibmcBinary(Pylibmc):
    name = "pylibmc, binary protocol"

    def __init__(self, port):
        self.client = pylibmc.Client([f"127.0.0.1:{port}"], binary=True)


def over_connections(kind, port, keys, work):
    """Divides keys among connections, each in its own thread; the first failure is raised."""
    failures = []

    def run(part):
        try:
            client = kind(port)
            work(client, part)
        except BaseException as error:  # to be raised where the test sees it
            failures.append(error)

    keys = list(keys)
    parts = [keys[start::CONNECTIONS] for start in range(CONNECTIONS)]
    threads = [threading.Thread(target=run, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def store_all(kind, port, files):
    def work(client, keys):
        for key in keys:
            client.set(key, files[key])

    over_connections(kind, port, files, work)


def read_all(kind, port, files):
    """Compares every value; returns the keys that were found, once singly and once in batches."""
    single, batched = set(), set()

    def work(client, keys):
        for key in keys:
            value = client.get(key)
            if value is not None:
                assert value == files[key], f"{key}: {len(value)} bytes differ"
                single.add(key)
        for start in range(0, len(keys), 50):
            batch = keys[start : start + 50]
            for key, value in client.get_many(batch).items():
                assert key in batch, f"{key} was not asked for"
                assert value == files[key], f"{key}: {len(value)} bytes differ in a batch"
                batched.add(key)

    over_connections(kind, port, files, work)
    return single, batched


def with_enough_memory(binary, kind, cores, files):
    with server(binary, 256, cores, "8m") as running:
        store_all(kind, running.port, files)
        single, batched = read_all(kind, running.port, files)
        assert single == set(files), f"{len(files) - len(single)} of {len(files)} are missing"
        assert batched == set(files), f"{len(files) - len(batched)} are missing from batches"
        stats = running.stats()
        assert int(stats["curr_items"]) == len(files), stats["curr_items"]
        assert int(stats["evictions"]) == 0, stats["evictions"]
    print(f"{kind.name}, {cores} cores, enough memory: {len(files)} files identical", flush=True)


def with_a_quarter(binary, kind, cores, files):
    files = {f"{copy}/{key}"[:KEY_BYTES_MAX]: v for copy in range(4) for key, v in files.items()}
    data_bytes = sum(len(value) for value in files.values())
    memory_mib = data_bytes // 4 // MIB
    with server(binary, memory_mib, cores, "8m") as running:
        store_all(kind, running.port, files)
        single, batched = read_all(kind, running.port, files)
        stats = running.stats()
        rss = running.rss_bytes()
        hit_bytes = sum(len(files[key]) for key in single)
        assert int(stats["evictions"]) > 0, "nothing was evicted"
        # At least half of the memory must hold values that can still be read.
        assert hit_bytes > memory_mib * MIB / 2, f"only {hit_bytes} bytes were found again"
        assert hit_bytes < memory_mib * MIB, "more was found than the memory holds"
        bound = memory_mib * MIB * 1.05 + FIXED_BYTES + cores * FIXED_BYTES_PER_CORE
        assert rss < bound, f"RSS of {rss} bytes with {memory_mib} MiB of memory"
    print(
        f"{kind.name}, {cores} cores, {memory_mib} MiB for {data_bytes >> 20} MiB: "
        f"{len(single)} of {len(files)} files identical ({hit_bytes >> 20} MiB), "
        f"the rest missing, RSS {rss >> 20} MiB",
        flush=True,
    )


def main():
    binary = binary_from_arguments()
    directory = tree_directory()
    files = load_tree(directory)
    total = sum(len(value) for value in files.values())
    print(f"{len(files)} files, {total} bytes below {directory}", flush=True)
    for kind in (Pymemcache, Pylibmc, PylibmcBinary):
        for cores in core_counts():
            with_enough_memory(binary, kind, cores, files)
            with_a_quarter(binary, kind, cores, files)


main()
