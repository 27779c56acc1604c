#!/usr/bin/env bash
# Fetches libchdb.so, ClickHouse as a library, for `sluice clickhouse`, `demo` and the tests.
#
# It comes from npm, as the package that chDB's own Node binding uses, in one pinned version; the
# tarball (178 MB) is checked against the hash below before anything of it is unpacked. The library
# goes to $SLUICE_CACHE/libchdb/libchdb.so (.cache in the repository by default), outside target/, so
# that `cargo clean` keeps it. Prints the path of the library; says what it does on standard error.
# Running it again is quick and changes nothing.
set -euo pipefail

package='@chdb/lib-linux-x64-gnu'
version='26.7.3-stable.1'
# sha512, base64, as npm's `integrity` field has it.
integrity='XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw=='

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${SLUICE_CACHE:-$repository/.cache}/libchdb
library=$folder/libchdb.so
stamp=$folder/version

say() { printf 'libchdb: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

if [[ -s $library && -f $stamp && $(<"$stamp") == "$version" ]]; then
    printf '%s\n' "$library"
    exit 0
fi

[[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] ||
    fail "this version of libchdb is for Linux on x86_64 only; use a ClickHouse server instead"
for tool in npm sha512sum tar; do
    command -v "$tool" >/dev/null || fail "$tool is missing; install it (Debian: apt-get install npm coreutils tar) and run this again"
done

mkdir -p "$folder"
# Two that fetch at the same time must not use the same names; the last move wins, with the same bytes.
work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

# A tarball that is already here, put by hand on a machine without a network, is as good.
tarball=$folder/chdb-lib-linux-x64-gnu-$version.tgz
if [[ ! -f $tarball ]]; then
    say "downloading $package@$version (178 MB, once)"
    name=$(cd "$work" && npm pack --silent --ignore-scripts "$package@$version" | tail -n 1) ||
        fail "the download failed; check the network, or put the tarball of that package at $tarball"
    tarball=$work/$name
fi

say "checking and unpacking it"
expected=$(base64 -d <<<"$integrity" | od -An -v -tx1 | tr -d ' \n')
actual=$(sha512sum < "$tarball" | cut -d ' ' -f 1)
[[ $actual == "$expected" ]] ||
    fail "the tarball $tarball is not the expected one (sha512 $actual, expected $expected); remove it and run this again"
tar -xzf "$tarball" -C "$work" --no-same-owner package/libchdb.so
mv -f "$work/package/libchdb.so" "$library"
printf '%s\n' "$version" > "$work/version"
mv -f "$work/version" "$stamp"
say "ready: $library"
printf '%s\n' "$library"
