"""memjs, the JavaScript client; it speaks only the classic binary protocol. See memjs.js."""

import os
import subprocess
import sys

from harness import binary_from_arguments, core_counts, require_program, server

require_program("node")


def main():
    binary = binary_from_arguments()
    if subprocess.run(["node", "-e", "require('memjs')"], capture_output=True).returncode != 0:
        print("SKIPPED: no memjs; npm install it and point NODE_PATH there", flush=True)
        sys.exit(77)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "memjs.js")
    for cores in core_counts():
        with server(binary, 64, cores) as running:
            subprocess.run(["node", script, running.address], check=True, timeout=120)
        print(f"memjs, {cores} cores: all answers right", flush=True)


main()
