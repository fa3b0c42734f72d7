"""`memcached`, the older JavaScript client; it speaks the text protocol. See memcached.js."""

import os
import subprocess
import sys

from harness import binary_from_arguments, core_counts, require_program, server

require_program("node")


def main():
    binary = binary_from_arguments()
    if subprocess.run(["node", "-e", "require('memcached')"], capture_output=True).returncode != 0:
        print("SKIPPED: no npm package memcached; install it and point NODE_PATH there", flush=True)
        sys.exit(77)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "memcached.js")
    for cores in core_counts():
        with server(binary, 64, cores) as running:
            subprocess.run(["node", script, running.address], check=True, timeout=120)
        print(f"memcached of Node.js, {cores} cores: all answers right", flush=True)


main()
