#!/usr/bin/env bash
# All of pitr's checks and tests, on Debian 12 with Rust; .ci/run runs this too. It stops at the first
# kind of check that fails, but within the tests it runs them all. For one test at a time, run
# tests/setup.sh once, and then cargo nextest or cargo test as usual.
#
#   PITR_TEST_CACHE      where what the tests need is kept (see tests/setup.sh)
#   PITR_FUZZ_SECONDS    how long each fuzz target runs; 5 by default, 0 to leave the fuzz run out
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The rule of tests/setup.sh, exported so that the tests look in the same place.
if [[ $EUID == 0 ]]; then cache=/var/cache/pitr-tests; else cache=$HOME/.cache/pitr-tests; fi
export PITR_TEST_CACHE=${PITR_TEST_CACHE:-$cache}
fuzz_seconds=${PITR_FUZZ_SECONDS:-5}

for program in cargo gcc; do
  command -v "$program" >/dev/null || { echo "run: FAILED: no $program; see the README on what is needed" >&2; exit 1; }
done

# Sets no_fuzz to why there can't be a fuzz run, or to nothing.
no_fuzz=''
if [[ $fuzz_seconds == 0 ]]; then
  no_fuzz='PITR_FUZZ_SECONDS is 0'
elif [[ ! -f fuzz/Cargo.toml ]]; then
  no_fuzz='no fuzz crate'
elif ! command -v rustup >/dev/null || [[ $(rustup toolchain list) != *nightly-x86_64* ]]; then
  no_fuzz='no nightly toolchain'
fi

run() {
  printf '\n== %s\n' "$*"
  "$@"
}

if [[ -z $no_fuzz ]]; then run tests/setup.sh --fuzz; else run tests/setup.sh; fi

run cargo fmt --check
run cargo clippy --all-targets --all-features --locked -- -D warnings
RUSTDOCFLAGS='-D warnings' run cargo doc --no-deps --document-private-items --locked

# A smoke run: each target starts from the committed seeds and what earlier runs here found, for a
# few seconds. RUSTFLAGS, which cargo fuzz sets, displaces the static linking of .cargo/config.toml:
# AddressSanitizer can't be linked statically. New inputs and the build are kept in the cache.
if [[ -n $no_fuzz ]]; then
  printf '\nSKIPPED fuzz smoke: %s\n' "$no_fuzz"
else
  export PATH=$PITR_TEST_CACHE/cargo/bin:$PATH
  # cargo fuzz knows no --locked: refuse here what it would silently resolve anew.
  run cargo +nightly fetch --manifest-path fuzz/Cargo.toml --locked --target x86_64-unknown-linux-gnu
  targets=$(cargo +nightly fuzz list)
  for target in $targets; do
    corpora=("$PITR_TEST_CACHE/fuzz-corpus/$target")
    mkdir -p "${corpora[0]}"
    [[ ! -d fuzz/seeds/$target ]] || corpora+=("fuzz/seeds/$target")
    [[ ! -d fuzz/corpus/$target ]] || corpora+=("fuzz/corpus/$target")
    # The codegen units of fuzz/Cargo.toml: cargo fuzz itself would build with one, on one processor.
    run cargo +nightly fuzz run --codegen-units 16 --target x86_64-unknown-linux-gnu --target-dir "$PITR_TEST_CACHE/fuzz-target" \
      "$target" "${corpora[@]}" -- "-max_total_time=$fuzz_seconds"
  done
fi

# Last, so that the summary of the tests is what is seen at the end; nextest runs no doc tests.
if cargo nextest --version >/dev/null 2>&1; then
  run cargo test --doc --all-features --locked
  run cargo nextest run --profile ci --all-features --locked --no-fail-fast
else
  run cargo test --all-features --locked --no-fail-fast
fi
