"""The examples of README.md, run as they stand there (but for the port)."""

import os
import re
import subprocess
import sys

from harness import binary_from_arguments, require, require_program, server

require("pymemcache")
require_program("nc")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


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
        (session,) = blocks(text, "console")
        command, *expected = session.splitlines()
        command = command.removeprefix("$ ").replace("11211", str(running.port))
        done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60)
        assert done.stdout.decode().split("\r\n") == [*expected, ""], done.stdout
    print("the README's examples work", flush=True)


main()
