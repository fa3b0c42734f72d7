"""The examples of README.md, run as they stand there (but for the port)."""

import os
import re
import subprocess
import sys
import time

from harness import binary_from_arguments, free_port, require, require_program, server

require("pymemcache")
require_program("nc")


def blocks(text, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for named, block in found if named == language]


def main():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
    with open(os.path.join(root, "README.md")) as file:
        text = file.read()
    with server(binary_from_arguments(), 64, 1) as running:
        (python,) = blocks(text, "python")
        python = python.replace("11211", str(running.port))
        done = subprocess.run([sys.executable, "-c", python], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        said = re.findall(r"# prints (.*)", python)
        assert said and done.stdout.decode().splitlines() == said, done.stdout
        session, nodes_session = blocks(text, "console")
        command, *expected = session.splitlines()
        command = command.removeprefix("$ ").replace("11211", str(running.port))
        done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60)
        assert done.stdout.decode().split("\r\n") == [*expected, ""], done.stdout
    (commands,) = [block for block in blocks(text, "") if "--cluster-listen" in block]
    cluster(commands, nodes_session)
    print("the README's examples work", flush=True)


def cluster(commands, session):
    """Three nodes by the README's three commands, then what it shows of them."""
    binary = binary_from_arguments()

    def placed(words):
        for written in re.findall(r"\b(?:1121\d|700\d)\b", commands):
            if written not in ports:
                ports[written] = str(free_port())
        words = re.sub(r"\b(?:1121\d|700\d)\b", lambda found: ports[found[0]], words)
        return re.sub(r"^ringlane\b", binary, words)

    ports, nodes = {}, []
    try:
        for command in commands.splitlines():
            words = ["exec", *placed(command).split(), "-m", "64", "-t", "1"]
            nodes.append(subprocess.Popen(["sh", "-c", " ".join(words)], stderr=subprocess.DEVNULL))
            time.sleep(3)
        for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
            command, *expected = part.splitlines()
            # Through its input, so that `pgrep -f` does not find the shell.
            done = subprocess.run(
                ["sh"], input=placed(command).encode(), capture_output=True, timeout=60
            )
            assert done.returncode == 0, (command, done)
            if expected:
                assert done.stdout.decode().split("\r\n") == [*expected, ""], (command, done)
    finally:
        for node in nodes:
            node.kill()
            node.wait()


main()
