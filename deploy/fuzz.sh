#!/usr/bin/env bash
# Fuzzes every target of host/fuzz with libFuzzer, guided by coverage, FUZZ_SECONDS (60) each. Needs a C++ compiler.
#
# The flags are those of `cargo fuzz --sanitizer none`: LLVM's own coverage pass, which a stable compiler has.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
seconds=${FUZZ_SECONDS:-60}
built=$repository/target/fuzz
found=$built/found

command -v c++ >/dev/null || { echo "fuzz: libFuzzer is built from C++: install g++ or clang" >&2; exit 1; }
host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1"
for argument in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=" -Cllvm-args=-sanitizer-coverage-$argument"
done

echo "fuzz: building"
# With --target the flags are not those of build scripts, which lack libFuzzer to link with.
RUSTFLAGS=$flags cargo build --quiet --release --locked --target "$host" --target-dir "$built" \
  --manifest-path "$repository/host/fuzz/Cargo.toml" --bins
failed=
for folder in "$repository"/host/fuzz/corpus/*/; do
  target=$(basename "$folder")
  mkdir -p "$built/corpus/$target" "$found"
  echo "fuzz: $target, ${seconds} s"
  # New inputs go into the first folder; the repository's own is read.
  if "$built/$host/release/$target" "$built/corpus/$target" "$folder" -max_total_time="$seconds" -max_len=4096 \
    -artifact_prefix="$found/$target-" -print_final_stats=1 >"$built/$target.log" 2>&1; then
    grep -E "^(Done|stat::(number_of_executed_units|new_units_added))" "$built/$target.log"
  else
    failed+=" $target"
    grep -E "panicked|Test unit written|ERROR: libFuzzer" -A 1 "$built/$target.log" || tail -n 20 "$built/$target.log"
  fi
done
[ -z "$failed" ] || { echo "fuzz: found something in$failed; see $built/TARGET.log" >&2; exit 1; }
echo "fuzz: nothing found"
