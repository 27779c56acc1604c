#!/usr/bin/env python3
"""Checks every dependency against deny.toml: its licence, its source, and whether it is banned.

`cargo deny` does this and more, but takes minutes to build and wants its advisory database from a
git host. This reads the same deny.toml and what cargo itself knows, so it runs anywhere in a second.
Not checked here: security advisories and yanked versions (`make advisories` does).
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def tokens(expression: str) -> list[str]:
    # "MIT/Apache-2.0" is how older crates write OR.
    return re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))


def allowed(expression: str, allow: set[str]) -> bool:
    """Whether an SPDX expression can be met with the licences of `allow`."""
    rest = tokens(expression)

    def term() -> bool:
        token = rest.pop(0)
        if token == "(":
            value = disjunction()
            if rest.pop(0) != ")":
                raise ValueError("unbalanced parenthesis")
            return value
        if rest and rest[0] == "WITH":
            rest.pop(0)
            token = f"{token} WITH {rest.pop(0)}"
        return token in allow

    def conjunction() -> bool:
        value = term()
        while rest and rest[0] == "AND":
            rest.pop(0)
            value = term() and value
        return value

    def disjunction() -> bool:
        value = conjunction()
        while rest and rest[0] == "OR":
            rest.pop(0)
            value = conjunction() or value
        return value

    value = disjunction()
    if rest:
        raise ValueError(f"unexpected {rest[0]}")
    return value


def packages(targets: list[str]) -> list[dict]:
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    for target in targets:
        command += ["--filter-platform", target]
    metadata = json.loads(subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout)
    return metadata["packages"]


def main() -> int:
    rules = tomllib.loads((REPOSITORY / "deny.toml").read_text())
    allow = set(rules["licenses"]["allow"])
    banned = {ban["crate"] for ban in rules["bans"]["deny"]}

    faults = []
    count = 0
    used = set()
    for package in packages(rules["graph"]["targets"]):
        name = f"{package['name']} {package['version']}"
        source = package["source"]
        if source is None:
            continue  # ours
        count += 1
        if not source.startswith("registry+"):
            faults.append(f"{name} comes from {source}: only the crate registry is allowed")
        if package["name"] in banned:
            faults.append(f"{name} is banned: see [bans] in deny.toml")
        licence = package["license"]
        if licence is None:
            faults.append(f"{name} states no licence: read its licence file, then decide")
            continue
        used.add(licence)
        try:
            if not allowed(licence, allow):
                faults.append(f"{name} is under '{licence}', which [licenses] in deny.toml does not allow")
        except (ValueError, IndexError) as error:
            faults.append(f"{name} has the licence expression '{licence}', which cannot be read: {error}")

    for fault in faults:
        print(f"licences: {fault}", file=sys.stderr)
    print(f"licences: {count} dependencies, {len(used)} licence expressions, {len(faults)} not as deny.toml wants them")
    print("licences: not checked here: security advisories, yanked versions (make advisories does)")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
