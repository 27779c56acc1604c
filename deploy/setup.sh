#!/usr/bin/env bash
# Installs what building and testing Sluice needs and this machine lacks; what is there stays untouched.
# As root on Debian or Ubuntu it installs with apt-get; elsewhere it says what to install and stops.
#
#   setup.sh            what `make build test demo` need
#   setup.sh --checks   and what `.ci/run` needs beyond that (shellcheck, docker-compose)
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

has() { command -v "$1" >/dev/null 2>&1; }

# Debian packages that are missing, one for each thing that is not found.
missing=()
need() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}

need gcc has gcc
need g++ has g++
need make has make
need pkg-config has pkg-config
# TLS for ClickHouse and Kafka, from the system's OpenSSL.
need libssl-dev test -e /usr/include/openssl/ssl.h
need zlib1g-dev test -e /usr/include/zlib.h
# The embedded ClickHouse engine comes as an npm package.
need npm has npm
# Apache Kafka, for tests: its jars come through Maven and run on Java.
need default-jdk-headless has java
need maven has mvn
# A Kafka client that is not ours, to check what we wrote.
need kcat has kcat
need python3 has python3
if [ "${1:-}" = --checks ]; then
  need shellcheck has shellcheck
  need docker-compose has docker-compose
  need python3-yaml has docker-compose
fi

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && has apt-get; then
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
      tail -n 20 "$log" >&2
      die "apt-get failed (whole output in $log): mend that, then run this again"
    }
    rm -f "$log"
  elif has apt-get; then
    die "missing: ${missing[*]}. Run: sudo apt-get update && sudo apt-get install ${missing[*]}"
  else
    die "missing (by their Debian names): ${missing[*]}. Install them, then run this again"
  fi
fi

has cargo || die "cargo is missing: install Rust 1.95 or newer with rustup, then run this again"
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repository/Cargo.toml" | head -n 1)
have=$(rustc --version | cut -d ' ' -f 2)
if [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
  die "rustc is $have, Sluice needs $wanted or newer: run rustup update stable"
fi
for component in clippy:cargo-clippy rustfmt:rustfmt; do
  if ! "${component#*:}" --version >/dev/null 2>&1; then
    say "installing ${component%:*}"
    rustup component add "${component%:*}" || die "${component%:*} is missing: run rustup component add ${component%:*}"
  fi
done

"$repository/deploy/modules.sh" target
say "everything needed is there"
