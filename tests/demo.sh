#!/usr/bin/env bash
# A real point-in-time restore on a fresh Debian machine with Rust: installs PostgreSQL if it is missing, builds pitr, and lets it
# show itself on a throw-away cluster (`pitr demo`): load, archive, back up, load more, damage, restore to the moment before.
# Touches nothing of an existing cluster. Arguments go to `pitr demo` (--keep, --bin-dir DIR).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

have_postgres() { compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || command -v postgres >/dev/null; }
if ! have_postgres; then
  echo "demo: installing PostgreSQL (Debian package postgresql)"
  if [[ $EUID == 0 ]]; then sudo=(); else sudo=(sudo); fi
  # The demo makes a cluster of its own: none is wanted on port 5432.
  "${sudo[@]}" mkdir -p /etc/postgresql-common/createcluster.d
  "${sudo[@]}" tee /etc/postgresql-common/createcluster.d/pitr-demo.conf >/dev/null <<<'create_main_cluster = false'
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null
fi
command -v cargo >/dev/null || { echo "demo: FAILED: no cargo; install Rust 1.95 or later" >&2; exit 1; }

echo "demo: building pitr (some minutes the first time)"
cargo build --release --locked --quiet
exec target/x86_64-unknown-linux-gnu/release/pitr demo "$@"
