#!/usr/bin/python3
"""With a real server: how long recovery takes with each restore_command, and what archiving costs a server that writes at full speed.

    tests/setup.sh && cargo build --release && benches/live.py [--segments 100] [--rounds 2] [--pairs 5] [--seconds 20] [--json FILE]

    replay  a base backup of a pgbench database and the WAL that follows it (--wal: of pgbench, or of rows of hashed text); the server is started on a fresh copy each time and ends itself at
            the last record. What is timed is the whole of it, from start to exit. The tools take turns, in one order and then in the other.
            The last rows read from an S3 server: behind a link with a round trip of 20 ms, and behind the same link without it. The
            server and its proxies run on the same processors, which the difference of the two leaves out.
    live    bulk inserts of hashed text for some seconds at a time, in pairs A B, B A: A archives with /bin/true, B with pitr and its agent.
            TPS of each, the longest queue, and the CPU seconds of pitr: its clients' and its agent's. "Accounted for" are they by what share
            of the machine they took: a TPS of B is divided by what was left.

Root or not: as root, everything is done as user postgres. Ratios are medians of the ratios within a round or a pair. A first recovery is not counted: it fills the page cache.
"""
import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

import processes
from common import BIN, BUILT, ENVIRONMENT, Site, run
from processes import Failed
from tools import S3, pgbackrest_conf, pitr_toml

CORES = os.cpu_count()


class Replay:
    """The same recovery with one restore_command after another."""

    def __init__(self, bench):
        self.bench, self.o = bench, bench.o
        self.source = Site(f"{bench.dir}/source")
        self.base, self.copy = f"{bench.dir}/base", f"{bench.dir}/copy"

    def make(self):
        source, o = self.source, self.o
        os.mkdir(source.dir)
        source.make_server()
        source.archive_with(f"cp %p {source.wal}/%f")
        run([f"{BIN}/pgbench", "-h", source.dir, "-U", "postgres", "-i", "-q", "-s", str(o.scale), "postgres"])
        source.sql("create table text_rows (id bigserial, a text, b text, c text)")
        run([f"{BIN}/pg_basebackup", "-h", source.dir, "-U", "postgres", "-D", self.base, "-X", "none", "-c", "fast"])
        archived = lambda: sorted(name for name in os.listdir(source.wal) if len(name) == 24)
        begun = len(archived())
        while len(archived()) < begun + o.segments:
            source.write(o.wal)
        # No archive_command from here on: `pitr init` leaves a server alone that archives elsewhere.
        source.archive_with("")
        source.server("stop")
        names = archived()
        # The end: where the last of them begins, which all before it lead to.
        log, segment = int(names[-1][8:16], 16), int(names[-1][16:], 16)
        self.end = f"{log:X}/{segment << 24:X}"
        first = re.search(r"START WAL LOCATION: \S+ \(file (\w+)\)", open(f"{self.base}/backup_label", encoding="utf8").read()).group(1)
        self.names = [name for name in names if first <= name]

    def settings(self, command):
        return (f"\nrestore_command = '{command}'\nrecovery_target_lsn = '{self.end}'\nrecovery_target_inclusive = off\n"
                f"recovery_target_action = shutdown\nhot_standby = off\narchive_mode = off\nfsync = on\nlisten_addresses = ''\n"
                f"unix_socket_directories = '{self.copy}'\nshared_buffers = 256MB\nmax_wal_size = 8GB\n")

    def once(self, row):
        """Seconds from start to exit."""
        shutil.rmtree(self.copy, ignore_errors=True)
        run(["cp", "-r", self.base, self.copy])
        with open(f"{self.copy}/postgresql.auto.conf", "a", encoding="utf8") as conf:
            conf.write(self.settings(row.command()))
        with open(f"{self.copy}/recovery.signal", "w", encoding="utf8"):
            pass
        run(["sync"])
        row.start()
        try:
            begin = time.monotonic()
            with open(f"{self.bench.dir}/recovery.log", "wb") as log:
                subprocess.run([f"{BIN}/postgres", "-D", self.copy], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                               env=ENVIRONMENT, cwd="/", check=False)
            took = time.monotonic() - begin
        finally:
            row.stop()
        with open(f"{self.bench.dir}/recovery.log", encoding="utf8", errors="replace") as log:
            said = log.read()
        if "recovery stopping before WAL location" not in said and "recovery stopping after WAL location" not in said:
            raise Failed(f"{row.name}: recovery did not get to {self.end}:\n{said[-2000:]}")
        return took

    def run(self):
        self.make()
        kinds = [Cp, PgBackRest, PgBackRestAsync, Pitr, PitrAgent, PitrAgentS3, PitrAgentNear]
        wanted = [kind for kind in kinds if kind is Cp or not self.o.rows or kind.slug in self.o.rows]
        try:
            if any(issubclass(kind, PitrAgentS3) for kind in wanted):
                self.bench.s3 = S3(self.bench)
        except Failed as why:
            print(f"S3 is left out: {why}", file=sys.stderr, flush=True)
            wanted = [kind for kind in wanted if not issubclass(kind, PitrAgentS3)]
        rows = [kind(self) for kind in wanted]
        samples = {row.name: [] for row in rows}
        self.once(rows[0])
        for number in range(self.o.rounds):
            for row in rows if number % 2 == 0 else rows[::-1]:
                samples[row.name].append(self.once(row))
                print(f"  {row.name}: {samples[row.name][-1]:.1f} s", file=sys.stderr, flush=True)
        print(f"\nrecovery of {len(self.names)} segments of {self.o.wal} by a real server\n")
        print("| restore_command | wall | s |\n|---|---|---|")
        for name, took in samples.items():
            ratios = [t / first for t, first in zip(took, samples[rows[0].name])]
            print(f"| {name} | {statistics.median(ratios):.2f} | {statistics.median(took):.1f} |", flush=True)
        self.bench.report["replay"] = {"wal": self.o.wal, "segments": len(self.names), "seconds": samples}


class Row:
    """One restore_command; its repository is filled once."""

    def __init__(self, replay):
        self.replay, self.place = replay, f"{replay.bench.dir}/{type(self).__name__}-{len(os.listdir(replay.bench.dir))}"
        os.mkdir(self.place)
        self.fill()

    def fill(self):
        pass

    def start(self):
        pass

    def stop(self):
        processes.end(processes.orphans())


class Cp(Row):
    name, slug = "`cp`", "cp"

    def command(self):
        return f"cp {self.replay.source.wal}/%f %p"


class PgBackRest(Row):
    name, slug, more = "pgBackRest", "pgbackrest", ""

    def config(self, data):
        text = pgbackrest_conf(self.place, data, f"repo1-path={self.place}/repo\n", self.more)
        return self.replay.source.make(f"{os.path.basename(self.place)}.conf", text)

    def fill(self):
        os.mkdir(f"{self.place}/spool")
        source = self.replay.source
        base = ["pgbackrest", f"--config={self.config(source.data)}", "--stanza=bench"]
        run([*base, "--no-online", "stanza-create"])
        for name in self.replay.names:
            run([*base, "--no-archive-async", "archive-push", f"{source.wal}/{name}"], cwd=source.data)

    def command(self):
        shutil.rmtree(f"{self.place}/spool")
        os.mkdir(f"{self.place}/spool")
        return f"pgbackrest --config={self.config(self.replay.copy)} --stanza=bench archive-get %f \"%p\""


class PgBackRestAsync(PgBackRest):
    name, slug, more = "pgBackRest, async", "pgbackrest-async", "archive-async=y\n"


class Pitr(Row):
    name, slug = "**pitr**", "pitr"

    def config(self, data):
        text = pitr_toml(self.place, self.replay.source.dir, data, self.repository())
        return self.replay.source.make(f"{os.path.basename(self.place)}.toml", text)

    def repository(self):
        return f'url = "file://{self.place}/repo"\n'

    @property
    def program(self):
        return f"{self.replay.bench.pitr} --config {self.config(self.replay.copy)}"

    def fill(self):
        source = self.replay.source
        base = [self.replay.bench.pitr, "--config", self.config(source.data)]
        source.server("start")
        self.init(base)
        source.server("stop")
        for name in self.replay.names:
            run([*base, "archive-push", f"{source.wal}/{name}"], cwd=source.data)

    def init(self, base):
        run([*base, "init"])

    def command(self):
        return f"{self.program} archive-get --timeline 1 %f \"%p\""


class PitrAgent(Pitr):
    name, slug = "**pitr, agent**", "agent"

    def start(self):
        socket = f"{self.place}/agent.sock"
        args = [*self.program.split(), "agent"]
        self.daemon = processes.daemon(self.name, args, f"{self.place}/agent.log", lambda: processes.listens_at(socket))

    def stop(self):
        processes.end({self.daemon, *processes.orphans()})


class PitrAgentS3(PitrAgent):
    name, slug, near = "**pitr, agent**, S3, 20 ms", "agent-s3", False

    def repository(self):
        return self.replay.bench.s3.pitr(f"replay-{self.slug}", self.near)

    def init(self, base):
        # s3s-fs honours the condition of a create but lets several racing ones win, which `init` finds out. Nobody races here.
        with open(base[2], "a", encoding="utf8") as config:
            config.write("allow_unsafe_store = true\n")
        run([*base, "init"])
        self.config(self.replay.source.data)


class PitrAgentNear(PitrAgentS3):
    name, slug, near = "**pitr, agent**, S3, 0 ms", "agent-s3-near", True


class Live:
    """Bulk inserts, with and without archiving."""

    def __init__(self, bench):
        self.bench, self.o = bench, bench.o
        self.server = Site(f"{bench.dir}/live")

    def make(self):
        server = self.server
        os.mkdir(server.dir)
        run([f"{BIN}/initdb", "-D", server.data, "-U", "postgres", "-A", "trust", "--locale=C", "-k"])
        server.settings(f"listen_addresses=''\nunix_socket_directories='{server.dir}'\narchive_mode=on\n"
                        "max_wal_size=2GB\nshared_buffers=256MB")
        server.server("start")
        self.script = server.make("bulk.sql", "insert into bulk (a, b) select md5(n::text || random()), sha256(random()::text::bytea)::text "
                                              "from generate_series(1, 500) n;\n")
        text = pitr_toml(server.dir, server.dir, server.data, f'url = "file://{server.dir}/repo"\n')
        self.config = server.make("pitr.toml", text)
        run([self.bench.pitr, "--config", self.config, "init"])
        self.program = [self.bench.pitr, "--config", self.config]
        socket = f"{server.dir}/agent.sock"
        self.agent = processes.daemon("agent", [*self.program, "agent"], f"{server.dir}/agent.log", lambda: processes.listens_at(socket))

    def queue(self):
        return sum(name.endswith(".ready") for name in os.listdir(f"{self.server.data}/pg_wal/archive_status"))

    def archiver(self):
        """CPU seconds of the commands that the archiver has started and waited for."""
        found = processes.table()
        for pid, (_, waited) in found.items():
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as line:
                    if line.read().startswith(b"postgres: archiver"):
                        return waited
            except OSError:
                pass
        raise Failed("the server has no archiver")

    def once(self, archives):
        """TPS, longest queue, CPU seconds of pitr."""
        command = f"{' '.join(self.program)} archive-push %p" if archives else "/bin/true"
        self.server.archive_with(command)
        self.server.sql("drop table if exists bulk; create table bulk (a text, b text); checkpoint")
        deadline = time.monotonic() + 300
        while self.queue() and time.monotonic() < deadline:
            time.sleep(0.1)
        longest, over = [0], threading.Event()

        def watch():
            while not over.wait(0.2):
                longest[0] = max(longest[0], self.queue())

        watcher = threading.Thread(target=watch)
        watcher.start()
        before = self.archiver() + processes.clock(self.agent)
        said = subprocess.run([f"{BIN}/pgbench", "-h", self.server.dir, "-U", "postgres", "-n", "-f", self.script, "-c", "2",
                               "-T", str(self.o.seconds), "postgres"], capture_output=True, text=True, env=ENVIRONMENT, check=True).stdout
        used = self.archiver() + processes.clock(self.agent) - before
        over.set()
        watcher.join()
        return float(re.search(r"tps = ([0-9.]+)", said).group(1)), longest[0], used if archives else 0.0

    def run(self):
        self.make()
        self.once(True)
        pairs = []
        for number in range(self.o.pairs):
            order = (False, True) if number % 2 == 0 else (True, False)
            seen = {archives: self.once(archives) for archives in order}
            pairs.append(seen)
            print(f"  /bin/true {seen[False][0]:.0f}, pitr {seen[True][0]:.0f} TPS, queue {seen[True][1]}", file=sys.stderr, flush=True)
        share = [seen[True][2] / (CORES * self.o.seconds) for seen in pairs]
        raw = [seen[True][0] / seen[False][0] for seen in pairs]
        accounted = [ratio / (1 - part) for ratio, part in zip(raw, share)]
        print(f"\nbulk inserts for {self.o.seconds} s at a time, {self.o.pairs} pairs; TPS with pitr to TPS with /bin/true\n")
        print("| | median | lowest | highest |\n|---|---|---|---|")
        for what, values in (("as measured", raw), ("pitr's CPU accounted for", accounted), ("share of the machine that pitr took", share)):
            print(f"| {what} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
        print(f"\nlongest queue: {max(seen[True][1] for seen in pairs)} segments", flush=True)
        self.bench.report["live"] = [{"true": seen[False], "pitr": seen[True]} for seen in pairs]


class Bench:
    def __init__(self, o, directory, proxy, pitr):
        self.o, self.dir, self.proxy, self.pitr, self.s3 = o, directory, proxy, pitr, None
        self.report = {"options": vars(o), "load": [os.getloadavg()]}

    def make(self, name, text):
        return Site(self.dir).make(name, text)


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=100, help="that are recovered, at least")
    parser.add_argument("--wal", choices=("pgbench", "text"), default="pgbench", help="what is replayed")
    parser.add_argument("--rows", nargs="*", help="slugs of the commands that recover besides cp: pgbackrest, pgbackrest-async, pitr, agent, agent-s3, agent-s3-near")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=20, help="of bulk inserts at a time")
    parser.add_argument("--scale", type=int, default=20, help="pgbench scale")
    parser.add_argument("--only", nargs="*", choices=("replay", "live"), default=("replay", "live"))
    parser.add_argument("--pitr", default=BUILT, help="the program to measure")
    parser.add_argument("--round-trip-ms", type=float, default=20)
    parser.add_argument("--test-cache", default="/var/cache/pitr-tests" if os.geteuid() == 0 else os.path.expanduser("~/.cache/pitr-tests"),
                        help="where tests/setup.sh put the S3 server")
    parser.add_argument("--dir", default="/var/tmp", help="where the scratch directory goes")
    parser.add_argument("--json", metavar="FILE", help="every sample as JSON")
    return parser.parse_args()


def main():
    o = options()
    # Opened while we may: the server's user can't write everywhere.
    samples = open(o.json, "w", encoding="utf8") if o.json else None
    with processes.bench(o.dir, o.pitr) as (directory, proxy, pitr):
        bench = Bench(o, directory, proxy, pitr)
        replay, live = Replay(bench), Live(bench)
        try:
            if "replay" in o.only:
                replay.run()
            if "live" in o.only:
                live.run()
        finally:
            for site in (replay.source, live.server):
                site.stop_at_once()
            if samples:
                bench.report["load"].append(os.getloadavg())
                json.dump(bench.report, samples, indent=1)
                samples.close()


if __name__ == "__main__":
    main()
