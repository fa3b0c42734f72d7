"""libmemcached's own programs: its capability test in both protocols, and files by memccp."""

import os
import subprocess
import tempfile

from harness import binary_from_arguments, core_counts, require_program, server

require_program("memccapable", "memccp", "memccat", "memcrm", "memcexist", "memcstat", "memcflush")


def run(*arguments, good=(0,)):
    done = subprocess.run(arguments, capture_output=True, timeout=60)
    assert done.returncode in good, f"{arguments}: {done.returncode} {done.stdout} {done.stderr}"
    return done.stdout


def capable(running):
    report = run("memccapable", "-h", "127.0.0.1", "-p", str(running.port)).decode()
    failed = [line for line in report.splitlines() if "[FAIL]" in line]
    assert not failed and "All tests passed" in report, report
    return report.count("[pass]")


def files(running, directory, *protocol):
    """Stores files under their names and reads them back."""
    servers = f"--servers={running.address}"
    contents = {f"file{i}.bin": os.urandom(1000 * i + 1) for i in range(20)}
    for name, value in contents.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(value)
    run("memccp", servers, *protocol, *(os.path.join(directory, name) for name in contents))
    for name, value in contents.items():
        read_back = os.path.join(directory, "out")
        run("memccat", servers, *protocol, f"--file={read_back}", name)
        with open(read_back, "rb") as file:
            assert file.read() == value, name
    run("memcexist", servers, *protocol, "file1.bin")
    run("memcrm", servers, *protocol, "file1.bin")
    run("memcexist", servers, *protocol, "file1.bin", good=(1,))
    assert b"curr_items" in run("memcstat", servers)
    run("memcflush", servers, *protocol)
    run("memcexist", servers, *protocol, "file2.bin", good=(1,))


def main():
    binary = binary_from_arguments()
    for cores in core_counts():
        with server(binary, 64, cores) as running, tempfile.TemporaryDirectory() as directory:
            passed = capable(running)
            files(running, directory)
            files(running, directory, "--binary")
        print(f"libmemcached's tools, {cores} cores: {passed} capabilities pass", flush=True)


main()
