"""What the whole-process benchmarks share: a scratch directory, a server of their own, and WAL of two kinds."""
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time

BIN = "/usr/lib/postgresql/15/bin"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILT = os.path.join(ROOT, "target/x86_64-unknown-linux-gnu/release/pitr")
# Servers refuse to run as root. Whoever isn't root runs them as what he is.
USER = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
SEGMENT = 16 * 1024 * 1024


def drop():
    if os.geteuid() != 0:
        return
    os.initgroups(USER.pw_name, USER.pw_gid)
    os.setgid(USER.pw_gid)
    os.setuid(USER.pw_uid)


def give(path):
    """Makes a file or directory the server's."""
    if os.geteuid() == 0:
        os.chown(path, USER.pw_uid, USER.pw_gid)


def run(args, cwd="/", ok=True):
    """Runs as postgres; returns (wall s, cpu s, peak MiB)."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(args, cwd=cwd, preexec_fn=drop, stdin=subprocess.DEVNULL, stdout=said,
                                 stderr=subprocess.STDOUT, env=ENVIRONMENT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if ok and child.returncode != 0:
            said.seek(0)
            sys.exit(f"{' '.join(args)} ended with {child.returncode}:\n{said.read().decode(errors='replace')}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def shell(text, **more):
    return run(["/bin/sh", "-ec", text], **more)


class Site:
    """A scratch directory, and below it a server that copies its WAL to `wal`."""

    def __init__(self, directory):
        self.dir = directory
        self.data = f"{self.dir}/data"
        self.wal = f"{self.dir}/wal"

    def make(self, name, text, mode=0o600):
        path = f"{self.dir}/{name}"
        with open(path, "w", encoding="utf8") as out:
            out.write(text)
        give(path)
        os.chmod(path, mode)
        return path

    def sql(self, statement):
        run([f"{BIN}/psql", "-h", self.dir, "-U", "postgres", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement])

    def settings(self, text):
        with open(f"{self.data}/postgresql.conf", "a", encoding="utf8") as conf:
            conf.write(f"{text}\n")

    def make_server(self):
        run([f"{BIN}/initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--locale=C", "-k"])
        os.mkdir(self.wal)
        give(self.wal)
        self.settings(f"listen_addresses=''\nunix_socket_directories='{self.dir}'\narchive_mode=on\nfsync=off\n"
                      "max_wal_size=8GB\nshared_buffers=256MB")
        self.server("start")

    def archive_with(self, command):
        self.settings(f"archive_command='{command}'")
        self.server("reload")

    def server(self, what):
        run([f"{BIN}/pg_ctl", "-D", self.data, "-w", "-m", "fast", "-l", f"{self.dir}/log", what])

    def stop_at_once(self):
        subprocess.run([f"{BIN}/pg_ctl", "-D", self.data, "-m", "immediate", "stop"], preexec_fn=drop, check=False,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def write(self, kind):
        """Some more WAL of one kind."""
        if kind == "pgbench":
            run([f"{BIN}/pgbench", "-h", self.dir, "-U", "postgres", "-n", "-N", "-c", "4", "-T", "5", "postgres"])
        else:
            self.sql("insert into text_rows (a, b, c) select md5(n::text || random()), sha256((n * random())::text::bytea)::text,"
                     " md5(random()::text) from generate_series(1, 100000) n")

    def segments(self, kind, count, scale):
        """Makes WAL of one kind until enough segments were archived; returns their paths, in order and without a hole."""
        before = set(os.listdir(self.wal))
        have = lambda: sorted(n for n in set(os.listdir(self.wal)) - before if len(n) == 24)
        if kind == "pgbench":
            run([f"{BIN}/pgbench", "-h", self.dir, "-U", "postgres", "-i", "-q", "-s", str(scale), "postgres"])
            before = set(os.listdir(self.wal))
        else:
            self.sql("create table text_rows (id bigserial, a text, b text, c text)")
        while len(have()) < count + 2:
            self.write(kind)
        time.sleep(1)
        # The first may hold the end of what came before.
        return [f"{self.wal}/{n}" for n in have()[1:count + 1]]


def scratch(parent):
    """A new directory of the server's user."""
    path = tempfile.mkdtemp(prefix="pitr-bench-", dir=parent)
    give(path)
    return path


def borrow(program, directory):
    """Copies a program to where the server's user can run it."""
    path = f"{directory}/{os.path.basename(program)}"
    shutil.copy(program, path)
    os.chmod(path, 0o755)
    return path
