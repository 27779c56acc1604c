#!/usr/bin/env python3
"""Runs the benches; their figures go to target/bench.json and, as a table, to standard output.

    deploy/bench.py [CARGO]

Each bench prints one line of JSON: its name, and its figures by name. Compare ratios within one run: the
machines are shared.
"""

import json
import os
import subprocess
import sys

BENCHES = ["chain", "compile", "end_to_end"]


def main():
    cargo = sys.argv[1] if len(sys.argv) > 1 else "cargo"
    figures = {}
    for bench in BENCHES:
        print(f"bench: {bench}", flush=True)
        command = [cargo, "bench", "--locked", "-p", "sluice", "--bench", bench, "--", "--json"]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if run.returncode != 0:
            sys.exit(f"bench: {bench} failed; its words are above")
        result = json.loads(run.stdout.strip().splitlines()[-1])
        for name, value in result["figures"].items():
            print(f"  {name:<42} {value:>12,}  {result.get('unit', '') if name.endswith('_ns') else ''}".rstrip())
        figures[bench] = result
    os.makedirs("target", exist_ok=True)
    with open("target/bench.json", "w") as file:
        json.dump(figures, file, indent=2)
        file.write("\n")
    print("bench: target/bench.json")


if __name__ == "__main__":
    main()
