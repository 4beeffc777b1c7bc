"""The programs that archive, each with a data directory and a repository of its own, on a disk or in an S3 server far away."""
import base64
import glob
import os
import shutil
import subprocess

import processes
from common import BIN, ENVIRONMENT
from processes import Failed

KEY, SECRET, BUCKET = "tester", "not-so-secret", "bucket"


def run(*args, cwd="/"):
    """Runs to its end; returns what it said."""
    done = subprocess.run(args, cwd=cwd, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        raise Failed(f"`{' '.join(args)}` ended with {done.returncode}: {said}")
    return said


def files(root):
    return {os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names}


def link(path, target):
    """Another name for a segment, or a copy where names can't be shared."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copy(path, target)


def pgbackrest_conf(place, data_dir, repository, more=""):
    """pgBackRest's configuration: where it works, what it archives, lines of the repository, more lines."""
    return f"""[global]
{repository}log-path={place}
lock-path={place}/lock
spool-path={place}/spool
log-level-console=error
compress-type=zst
compress-level=1
process-max=2
archive-check=n
{more}[bench]
pg1-path={data_dir}
"""


def pitr_toml(place, host, data_dir, repository, level=1):
    """pitr's configuration: where it works, where the server listens, what it archives, lines of the repository, how hard it compresses."""
    return f"""cluster = "bench"
timezone = "UTC"
state_dir = "{place}/state"
[postgres]
conninfo = "host={host} user=postgres"
data_dir = "{data_dir}"
bin_dir = "{BIN}"
[agent]
receive = false
socket = "{place}/agent.sock"
[archive]
level = {level}
[[repository]]
name = "store"
{repository}"""


class Disk:
    """Repositories are directories."""
    label = "file"
    races = True

    def __init__(self, bench):
        self.root = f"{bench.dir}/disk"
        os.mkdir(self.root)

    def folder(self, slug):
        path = f"{self.root}/{slug}"
        os.makedirs(path, exist_ok=True)
        return path

    def pitr(self, slug):
        return f'url = "file://{self.folder(slug)}"\n'

    def pgbackrest(self, slug):
        return f"repo1-path={self.folder(slug)}\n"

    def removed(self, path):
        """Called after an object was removed behind the store's back."""

    def close(self):
        shutil.rmtree(self.root, ignore_errors=True)


class S3:
    """s3s-fs behind its TLS end and a link with a round trip. TLS because pgBackRest has nothing else."""
    label = "S3"
    races = False

    def __init__(self, bench):
        self.root, self.keys = f"{bench.dir}/s3", f"{bench.dir}/tls"
        os.makedirs(f"{self.root}/{BUCKET}")
        os.mkdir(self.keys)
        program = os.environ.get("PITR_S3S_FS") or f"{bench.o.test_cache}/cargo/bin/s3s-fs"
        if not os.access(program, os.X_OK):
            raise Failed(f"no S3 server at {program}: run tests/setup.sh")
        self.certificate()
        # Credentials in files, not in the list of processes.
        self.credentials = bench.make("s3.keys", f"access_key_id = {KEY}\nsecret_access_key = {SECRET}\n")
        self.curl = bench.make("s3.curl", f'user = "{KEY}:{SECRET}"\naws-sigv4 = "aws:amz:us-east-1:s3"\n'
                                          f'header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"\ncacert = "{self.keys}/ca.crt"\n'
                                          "silent\nshow-error\nfail\n")
        ports = [processes.free_port() for _ in range(4)]
        self.port, self.near = ports[2], ports[3]
        # Debian's Python by path: one that root keeps in its home is closed to the server's user.
        proxy = ["/usr/bin/python3", bench.proxy]
        chain = (
            ("s3s-fs", [program, "--host", "127.0.0.1", "--port", str(ports[0]), "--access-key", KEY, "--secret-key", SECRET, self.root]),
            ("the TLS end", [*proxy, "--listen", str(ports[1]), "--to", str(ports[0]), "--cert", f"{self.keys}/server.crt",
                             "--key", f"{self.keys}/server.key"]),
            ("the slow link", [*proxy, "--listen", str(ports[2]), "--to", str(ports[1]), "--round-trip-ms", str(bench.o.round_trip_ms)]),
            ("the link without a delay", [*proxy, "--listen", str(ports[3]), "--to", str(ports[1]), "--round-trip-ms", "0"]),
        )
        self.daemons = [processes.daemon(what, args, f"{bench.dir}/s3.log", lambda port=port: processes.listens(port))
                        for (what, args), port in zip(chain, ports)]

    def certificate(self):
        key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes".split()
        with open(f"{self.keys}/server.ext", "w", encoding="utf8") as out:
            out.write("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        run("openssl", "req", "-new", "-x509", *key, "-days", "2", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority", cwd=self.keys)
        run("openssl", "req", "-new", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost", cwd=self.keys)
        run("openssl", "x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-extfile", "server.ext", "-days", "2", "-out", "server.crt", cwd=self.keys)

    def folder(self, slug):
        path = f"{self.root}/{BUCKET}/{slug}"
        os.makedirs(path, exist_ok=True)
        return path

    def pitr(self, slug, near=False):
        port = self.near if near else self.port
        return (f'url = "s3://{BUCKET}/{slug}"\nendpoint = "https://127.0.0.1:{port}"\nregion = "us-east-1"\n'
                f'ca_file = "{self.keys}/ca.crt"\ncredentials_file = "{self.credentials}"\nsealed = false\n')

    def pgbackrest(self, slug):
        return (f"repo1-type=s3\nrepo1-path=/{slug}\nrepo1-s3-bucket={BUCKET}\nrepo1-s3-endpoint=localhost\nrepo1-s3-region=us-east-1\n"
                f"repo1-s3-key={KEY}\nrepo1-s3-key-secret={SECRET}\nrepo1-s3-uri-style=path\nrepo1-storage-host=127.0.0.1\n"
                f"repo1-storage-port={self.port}\nrepo1-storage-ca-file={self.keys}/ca.crt\nrepo1-storage-verify-tls=n\n")

    def url(self, slug):
        return f"https://127.0.0.1:{self.port}/{BUCKET}/{slug}"

    def removed(self, path):
        key = os.path.relpath(path, f"{self.root}/{BUCKET}").encode()
        name = base64.urlsafe_b64encode(key).decode().rstrip("=")
        for notes in glob.glob(glob.escape(f"{self.root}/.bucket-") + f"*.object-{name}[.=]*"):
            os.unlink(notes)

    def close(self):
        processes.end(self.daemons)
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.rmtree(self.keys, ignore_errors=True)


class Tool:
    """One row. `share` is a tool whose repository it uses, to read what that one stored."""
    name = "?"

    def __init__(self, bench, store, share=None):
        self.bench, self.store, self.daemons = bench, store, []
        self.slug = "".join(c if c.isalnum() else "-" for c in f"{self.name}-{store.label}-{len(bench.places)}").lower()
        bench.places.append(self.slug)
        self.place = f"{bench.dir}/{self.slug}"
        self.data, self.log = f"{self.place}/data", f"{self.place}/log"
        self.repository = share.repository if share else self.slug
        os.mkdir(self.place)
        self.load([])
        if not share:
            self.set_up()
        self.bare = files(store.folder(self.repository))

    def set_up(self):
        """Makes the repository, once; the server runs meanwhile."""

    def start(self):
        """Starts what is resident."""

    def stop(self):
        """Ends what is resident, or was left behind."""
        processes.end({*self.daemons, *processes.orphans()})
        self.daemons = []

    def load(self, paths):
        """A data directory as far as these tools look at one, with these segments in it."""
        shutil.rmtree(self.data, ignore_errors=True)
        for name in ("global", "pg_wal/archive_status"):
            os.makedirs(f"{self.data}/{name}", mode=0o700)
        for name in ("PG_VERSION", "global/pg_control"):
            shutil.copy(f"{self.bench.server.data}/{name}", f"{self.data}/{name}")
        os.chmod(self.data, 0o700)
        for path in paths:
            link(path, f"{self.data}/pg_wal/{os.path.basename(path)}")

    def status(self, name, what):
        return f"{self.data}/pg_wal/archive_status/{name}.{what}"

    def ready(self, name):
        with open(self.status(name, "ready"), "w", encoding="utf8"):
            pass

    def done(self, name):
        os.rename(self.status(name, "ready"), self.status(name, "done"))

    def added(self):
        return files(self.store.folder(self.repository)) - self.bare

    def wipe(self):
        """Forgets what was pushed."""
        for path in self.added():
            os.unlink(path)
            self.store.removed(path)

    def lacks(self, names):
        """Which of `names` the repository doesn't hold: what was acknowledged must be there."""
        held = {os.path.basename(path)[:24] for path in self.added()}
        return [name for name in names if name not in held]

    def stored(self):
        """Bytes in the repository: who compresses less is faster."""
        return sum(os.path.getsize(path) for path in self.added())

    def command(self, text):
        return processes.command(text, self.data, self.log)

    def complaint(self):
        """What its commands said since this was last asked: a row of warnings measures something else than it says."""
        if not os.path.exists(self.log):
            return ""
        with open(self.log, encoding="utf8", errors="replace") as log:
            said = log.read().strip().splitlines()
        os.unlink(self.log)
        return f"{len(said)} lines of warnings, the first: {said[0]}" if said else ""


class Dd(Tool):
    """The least a copy can cost: one process that writes and syncs, and leaves the directory unsynced."""
    name = "cp + fsync"

    def push(self, name):
        return f"dd if=pg_wal/{name} of={self.store.folder(self.repository)}/{name} bs=1M conv=fsync status=none"


class Zstd(Tool):
    name = "zstd -1 + fsync"

    def push(self, name):
        return (f"zstd -q -1 --single-thread -c pg_wal/{name} | "
                f"dd of={self.store.folder(self.repository)}/{name} bs=1M conv=fsync iflag=fullblock status=none")


class ZstdGet(Zstd):
    """Kept compressed, as everybody else here keeps it."""
    name = "zstd -d"

    def get(self, name):
        return f"zstd -q -d -c {self.store.folder(self.repository)}/{name} > pg_wal/RECOVERYXLOG"


class ZstdCores(Zstd):
    """The same as fast as this machine can: one on each processor. For a backlog only; an archive_command is given one segment at a time."""
    name = "zstd -1 + fsync, all cores"

    def push_all(self, names):
        one = self.push("{}").replace('"', '\\"')
        return f"printf '%s\\n' {' '.join(names)} | xargs -P {os.cpu_count()} -I {{}} sh -c \"{one}\""


class Curl(Tool):
    """The least of a shell script: S3 wants to know the length first, so the compressed file is written beside it."""
    name = "zstd -1, curl"

    def push(self, name):
        temporary = f"{self.place}/upload"
        return (f"zstd -q -1 -f --single-thread pg_wal/{name} -o {temporary} && "
                f"curl -K {self.store.curl} -T {temporary} {self.store.url(self.repository)}/{name}")


class CurlGet(Curl):
    name = "curl, zstd -d"

    def get(self, name):
        return f"curl -K {self.store.curl} {self.store.url(self.repository)}/{name} | zstd -q -d -f -o pg_wal/RECOVERYXLOG"


class Cp(Tool):
    """The usual restore_command, from a directory of segments that are not compressed."""
    name = "cp"

    def push(self, name):
        return f"cp pg_wal/{name} {self.store.folder(self.repository)}/{name}"

    def get(self, name):
        return f"cp {self.store.folder(self.repository)}/{name} pg_wal/RECOVERYXLOG"


class PgBackRest(Tool):
    name = "pgBackRest"
    more = ""

    def __init__(self, bench, store, share=None):
        if not shutil.which("pgbackrest"):
            raise Failed("pgbackrest is not installed")
        super().__init__(bench, store, share)

    @property
    def program(self):
        return f"pgbackrest --config={self.config} --stanza=bench"

    def load(self, paths):
        super().load(paths)
        shutil.rmtree(f"{self.place}/spool", ignore_errors=True)
        os.mkdir(f"{self.place}/spool")
        text = pgbackrest_conf(self.place, self.data, self.store.pgbackrest(self.repository), self.more)
        self.config = self.bench.make(f"{self.slug}/pgbackrest.conf", text)

    def set_up(self):
        run(*self.program.split(), "--no-online", "stanza-create")

    def push(self, name):
        return f"{self.program} archive-push pg_wal/{name}"

    def get(self, name):
        return f"{self.program} archive-get {name} pg_wal/RECOVERYXLOG"


class PgBackRestAsync(PgBackRest):
    name = "pgBackRest, async"
    more = "archive-async=y\n"


class Pitr(Tool):
    name = "pitr"
    level = 1

    def configure(self, name, data_dir):
        text = pitr_toml(self.place, self.bench.server.dir, data_dir, self.store.pitr(self.repository), self.level)
        return self.bench.make(f"{self.slug}/{name}", text)

    def load(self, paths):
        super().load(paths)
        self.config = self.configure("pitr.toml", self.data)

    @property
    def program(self):
        return f"{self.bench.pitr} --config {self.config}"

    def set_up(self):
        # s3s-fs honours the condition of a create but lets several racing ones win, which `init` finds out. Nobody races here, so all
        # that is measured goes by the one conditional request that every conforming store is sent.
        unsafe = "" if self.store.races else "allow_unsafe_store = true\n"
        config = self.configure("init.toml", self.bench.server.data)
        with open(config, "a", encoding="utf8") as out:
            out.write(unsafe)
        run(self.bench.pitr, "--config", config, "init")

    def push(self, name):
        return f"{self.program} archive-push pg_wal/{name}"

    def get(self, name):
        return f"{self.program} archive-get {name} pg_wal/RECOVERYXLOG"


class PitrAgent(Pitr):
    name = "pitr, agent"

    def __init__(self, bench, store, share=None):
        try:
            run(bench.pitr, "agent", "--help")
        except Failed:
            raise Failed("this pitr has no agent: `pitr agent --help` fails") from None
        super().__init__(bench, store, share)

    def start(self):
        socket = f"{self.place}/agent.sock"
        self.daemons = [processes.daemon(self.name, [*self.program.split(), "agent"], f"{self.place}/agent.log", lambda: processes.listens_at(socket))]


class PitrHard(Pitr):
    """Configured to compress harder than this machine can in a backlog."""
    name = "pitr, level 9"
    level = 9


class PitrAgentHard(PitrAgent):
    """The same; the agent compresses less hard while segments wait."""
    name = "pitr, agent, level 9"
    level = 9


class PitrAhead(Pitr):
    """`archive-get` as a server starts it: it leaves a process behind that fetches the next segments while that server lives."""
    name = "pitr, fetching ahead"

    def __init__(self, bench, store, share=None):
        try:
            run(bench.pitr, "fetch-ahead", "--help")
        except Failed:
            raise Failed("this pitr does not fetch ahead: `pitr fetch-ahead --help` fails") from None
        super().__init__(bench, store, share)

    def load(self, paths):
        super().load(paths)
        # Where there are no such files, as for plain `pitr`, nobody recovers and nothing is fetched ahead.
        with open(f"{self.data}/recovery.signal", "w", encoding="utf8"):
            pass
        with open(f"{self.data}/postmaster.pid", "w", encoding="utf8") as out:
            out.write(f"{os.getpid()}\n")
