#!/usr/bin/env bash
# Builds the modules that ship with Sluice, and the compiler target that modules need.
#
#   modules.sh target       make wasm32-unknown-unknown available: by rustup; where rustup cannot download
#                           it, with Debian's rustc-web, unpacked (not installed) into the cache
#   modules.sh build        build the modules and put them into target/modules
#   modules.sh cargo ARGS   run cargo with whatever compiler has the target, for modules of your own:
#                           modules.sh cargo build --profile guest --target wasm32-unknown-unknown -p NAME
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${SLUICE_CACHE:-$repository/.cache}
target=wasm32-unknown-unknown
# Debian's compiler for this target, and the sources of the standard library to build with it.
debian=$cache/rustc-web

say() { echo "modules: $*"; }
die() { echo "modules: $*" >&2; exit 1; }

# SLUICE_WASM_TARGET=debian takes Debian's compiler even where rustup's has the target.
native_target() {
  [ "${SLUICE_WASM_TARGET:-}" != debian ] && [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]
}
debian_target() { [ -x "$debian/usr/bin/rustc" ] && [ -x "$debian/usr/bin/cargo" ]; }

ensure_target() {
  command -v rustc >/dev/null || die "rustc is missing: install Rust with rustup"
  if native_target || debian_target; then
    return
  fi
  if [ "${SLUICE_WASM_TARGET:-}" != debian ] && command -v rustup >/dev/null; then
    say "installing the target $target with rustup"
    if rustup target add "$target" && native_target; then
      return
    fi
    say "rustup could not install it"
  fi
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    die "the target $target is missing: run rustup target add $target (or this as root on Debian)"
  fi
  say "unpacking Debian's rustc-web, cargo-web and rust-web-src into $debian (140 MB to fetch; nothing is installed)"
  mkdir -p "$cache"
  local partial package
  partial=$(mktemp -d "$cache/rustc-web.XXXXXX")
  mkdir -p "$partial/packages/partial" "$partial/root"
  apt-get update -qq || say "apt-get update failed, trying with the lists that are there"
  # --download-only brings the packages' libraries too, as far as they are not installed.
  apt-get install -y -qq --download-only --no-install-recommends -o APT::Sandbox::User=root \
    -o Dir::Cache::archives="$partial/packages" rustc-web cargo-web rust-web-src >"$partial/apt.log" 2>&1 || {
    tail -n 5 "$partial/apt.log" >&2
    die "Debian's packages could not be fetched: run rustup target add $target where rustup can download"
  }
  for package in "$partial"/packages/*.deb; do
    dpkg -x "$package" "$partial/root"
  done
  rm -rf "$debian"
  mv "$partial/root" "$debian"
  rm -rf "$partial"
  debian_target || die "no rustc in $debian: remove that folder and run rustup target add $target"
}

# Runs cargo with a compiler that has the target.
guest_cargo() {
  if native_target; then
    cargo "$@"
    return
  fi
  debian_target || die "the target $target is missing: run make setup"
  # Debian's compiler brings no wasm linker; rustup's toolchain does.
  local linker
  linker=$(find "$(rustc --print sysroot)/lib/rustlib" -name rust-lld -type f | head -n 1)
  [ -n "$linker" ] || die "no rust-lld in $(rustc --print sysroot): install Rust with rustup"
  # The standard library is compiled for the target once, in about a minute, and kept in the target folder.
  LD_LIBRARY_PATH=$debian/usr/lib/x86_64-linux-gnu:$debian/usr/lib RUSTC=$debian/usr/bin/rustc \
    RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$linker \
    "$debian/usr/bin/cargo" "$@" -Zbuild-std=std,panic_abort
}

# A whole file or none: a watcher must never see half a module.
install_module() {
  local from=$1 to=$2
  mkdir -p "$(dirname "$to")"
  if cmp -s "$from" "$to"; then
    return
  fi
  install -m 644 "$from" "$to.partial"
  mv "$to.partial" "$to"
  say "$(realpath --relative-to="$repository" "$to") ($(stat -c %s "$to") bytes)"
}

build() {
  ensure_target
  cd "$repository"
  guest_cargo build --profile guest --target "$target" -p purchase-rules -p purchase-rows
  guest_cargo build --profile guest --target "$target" -p purchase-rules --example paid_purchases
  local built=${CARGO_TARGET_DIR:-target}/$target/guest
  # Golden cases first: a host that watches these folders tries a module by those that belong to it.
  install_module modules/purchase-rules/purchase-rules.cases.jsonl target/modules/purchases/validators/purchase-rules.cases.jsonl
  install_module modules/purchase-rows/purchase-rows.cases.jsonl target/modules/purchases/purchase-rows.cases.jsonl
  install_module "$built/purchase_rules.wasm" target/modules/purchases/validators/purchase-rules.wasm
  install_module "$built/purchase_rows.wasm" target/modules/purchases/purchase-rows.wasm
  install_module "$built/examples/paid_purchases.wasm" target/modules/demo/purchase-rules.wasm
  say "target/modules is up to date"
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
  target) ensure_target ;;
  build) build ;;
  cargo)
    ensure_target
    guest_cargo "$@"
    ;;
  *)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
