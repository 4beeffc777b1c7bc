#!/usr/bin/python3
"""Archiving and recovery as PostgreSQL drives them: a shell command per segment, tool beside tool in one run.

    tests/setup.sh && cargo build --release && benches/archive.py [--segments 24] [--recover 200] [--rounds 2] [--json FILE]

Root or not: as root, everything is done as user postgres. The WAL is kept for the next run (--cache). Two kinds of it: of pgbench, and of
rows of hashed text, which compress about 2.6 : 1. Two stores: a directory, and an S3 server (s3s-fs) with TLS behind a link of 20 ms.

    single    one segment at a time, .ready to .done; the tools take turns at every segment, in one order and then in the other
    backlog   all segments are .ready at once; the tools take turns by the round
    paced     one segment becomes .ready every 300 ms
    effort    single and backlog, configured to compress at level 9: what the agent does about a queue
    client    what the command itself costs where there is nothing to do
    recovery  restore_command for one segment after the other; each is read once, then the one before is removed

Times are medians, a ratio is the median of the ratios to the first row taken side by side (same segment, or same round). CPU is user +
system of the command and of all that it leaves in the background, agents included, on average; not of the S3 server. The syncs are real: what the disk does besides
is in the figures.
"""
import argparse
import fcntl
import filecmp
import json
import os
import shutil
import statistics
import sys
import time

import processes
from common import BIN, BUILT, SEGMENT, Site, give, run
from processes import Failed, cpu, settle
from tools import (Cp, Curl, CurlGet, Dd, Disk, PgBackRest, PgBackRestAsync, Pitr, PitrAgent, PitrAgentHard, PitrAhead, PitrHard, S3, Zstd,
                   ZstdCores, ZstdGet)

PARTS = ("single", "backlog", "paced", "effort", "client", "recovery")
KINDS = ("pgbench", "text")
PACE = 0.3


def wal(cache, options):
    """Segments of both kinds from the cache, made there if it has too few; and the server that wrote them, not running."""
    server = Site(cache)
    want = {"pgbench": options.segments, "text": max(options.segments, options.recover, 64)}
    have = {kind: len(os.listdir(f"{cache}/{kind}")) if os.path.isdir(f"{cache}/{kind}") else 0 for kind in KINDS}
    if not os.path.exists(f"{cache}/complete") or any(have[kind] < want[kind] for kind in KINDS):
        print("making WAL, kept for the next run", file=sys.stderr, flush=True)
        for name in os.listdir(cache):
            path = f"{cache}/{name}"
            if name != "lock":
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        server.make_server()
        server.archive_with(f"cp %p {server.wal}/%f")
        for kind in KINDS:
            paths = server.segments("pgbench" if kind == "pgbench" else "hashed text", want[kind], options.scale)
            os.mkdir(f"{cache}/{kind}")
            for path in paths:
                os.rename(path, f"{cache}/{kind}/{os.path.basename(path)}")
        # What is left is a small cluster whose identity the segments carry.
        server.sql("drop table pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history, text_rows")
        # No archive_command: `pitr init` leaves a server alone that archives elsewhere.
        server.archive_with("")
        server.server("stop")
        # Without the segments that it has in stock for the next WAL, which are many.
        run([f"{BIN}/pg_resetwal", "-D", server.data])
        shutil.rmtree(server.wal)
        server.make("complete", "")
    return server, {kind: sorted(f"{cache}/{kind}/{n}" for n in os.listdir(f"{cache}/{kind}"))[:want[kind]] for kind in KINDS}


class Report:
    """Tables for people as they come, and everything for `--json`."""

    def __init__(self, options):
        self.whole = {"options": vars(options), "load": [os.getloadavg()], "notes": [], "parts": []}

    def skip(self, what, why):
        self.note(what, f"left out: {why}")

    def note(self, what, text):
        print(f"\n{what}: {text}", flush=True)
        self.whole["notes"].append({"what": what, "text": text})

    def part(self, title, first_column, samples, speed_of=None, stored=None):
        """samples: name -> [(wall s, CPU s)], per segment; index by index they were taken side by side. stored: name -> bytes."""
        rows, base = [], None
        for name, taken in samples.items():
            walls, cpus = zip(*taken)
            base = base or (walls, cpus)
            beside = lambda mine, first: statistics.median(m / max(f, 1e-6) for m, f in zip(mine, first))
            wall = statistics.median(walls)
            row = {"name": name, "ms": wall * 1000, "ratio": beside(walls, base[0]), "walls_ms": [w * 1000 for w in walls]}
            if speed_of:
                row["mb_per_s"] = speed_of / wall / 1e6
            if any(cpus):
                mean = statistics.mean(cpus)
                row |= {"cpu_ms": mean * 1000, "cpu_ratio": mean / max(statistics.mean(base[1]), 1e-6), "cpus_ms": [c * 1000 for c in cpus]}
            if stored:
                row["stored"] = stored[name] / 2**20
            rows.append(row)
        self.whole["parts"].append({"title": title, "rows": rows})
        columns = [("ms", "{:.1f}"), ("mb_per_s", "{:.0f}"), ("ratio", "{:.2f}"), ("cpu_ms", "{:.1f}"), ("cpu_ratio", "{:.2f}"), ("stored", "{:.1f}")]
        columns = [c for c in columns if c[0] in rows[0]]
        heads = {"ms": "ms", "mb_per_s": "MB/s", "ratio": "ratio", "cpu_ms": "CPU ms", "cpu_ratio": "ratio", "stored": "MiB stored"}
        print(f"\n### {title}\n\n| {first_column} | " + " | ".join(heads[c] for c, _ in columns) + " |\n|" + "---|" * (len(columns) + 1))
        for row in rows:
            print(f"| {row['name']} | " + " | ".join(form.format(row[c]) for c, form in columns) + " |", flush=True)

    def save(self, out):
        self.whole["load"].append(os.getloadavg())
        with out:
            json.dump(self.whole, out, indent=1)


class Bench:
    def __init__(self, options, directory, proxy, pitr):
        self.o, self.dir, self.proxy, self.pitr = options, directory, proxy, pitr
        self.places, self.server = [], None
        self.stored = {}  # bytes per segment of the last block, by the tool's name
        self.report = Report(options)

    def make(self, name, text):
        return Site(self.dir).make(name, text)

    def tools(self, store, kinds, shared=None):
        """Those of `kinds` that can be had with `store`. The rest is said, and left out."""
        made = []
        self.server.server("start")  # `pitr init` asks it who it is
        for kind in kinds:
            try:
                share = (shared or {}).get(kind)
                made.append(kind(self, store, next((t for t in made if type(t) is share), None)))
            except Failed as why:
                self.report.skip(f"{kind.name} ({store.label})", why)
        self.server.server("stop")
        return made

    def turn(self, tools, index):
        """In one order, then in the other: what drifts hits all alike."""
        return tools if index % 2 == 0 else tools[::-1]

    def ready_to_push(self, tool, paths):
        tool.stop()
        tool.wipe()
        tool.load(paths)
        tool.start()

    def finish_push(self, tool, names):
        settle(tool.daemons)
        missing = tool.lacks(names)
        if missing:
            raise SystemExit(f"{tool.name} said yes and does not hold {', '.join(missing)}")
        self.stored[tool.name] = tool.stored() / len(names)
        self.finish(tool)

    def finish(self, tool):
        tool.stop()
        if said := tool.complaint():
            self.report.note(f"{tool.name} ({tool.store.label})", said)

    def single(self, tools, kind, paths):
        names = [os.path.basename(p) for p in paths]
        samples = {t.name: [] for t in tools}
        for round_ in range(self.o.rounds):
            for tool in tools:
                self.ready_to_push(tool, paths)
            os.sync()
            for index, name in enumerate(names):
                for tool in self.turn(tools, index + round_):
                    before = cpu(tool.daemons)
                    tool.ready(name)
                    wall = tool.command(tool.push(name))
                    tool.done(name)
                    settle(tool.daemons)
                    samples[tool.name].append((wall, cpu(tool.daemons) - before))
            for tool in tools:
                self.finish_push(tool, names)
        self.report.part(f"one segment at a time, {kind}, {tools[0].store.label}: of {len(names)} segments", "push", samples, stored=self.stored)

    def backlog(self, tools, kind, paths):
        names = [os.path.basename(p) for p in paths]
        samples = {t.name: [] for t in tools}
        for round_ in range(self.o.rounds):
            for tool in self.turn(tools, round_):
                self.ready_to_push(tool, paths)
                os.sync()
                before, begin = cpu(tool.daemons), time.monotonic()
                for name in names:
                    tool.ready(name)
                if isinstance(tool, ZstdCores):
                    tool.command(tool.push_all(names))
                else:
                    for name in names:
                        tool.command(tool.push(name))
                        tool.done(name)
                wall = time.monotonic() - begin
                settle(tool.daemons)
                samples[tool.name].append((wall / len(names), (cpu(tool.daemons) - before) / len(names)))
                self.finish_push(tool, names)
        self.report.part(f"backlog of {len(names)} segments, {kind}, {tools[0].store.label}: per segment", "push", samples, SEGMENT, self.stored)

    def paced(self, tools, kind, paths):
        paths = paths[:self.o.paced]
        samples = {t.name: [] for t in tools}
        for round_ in range(self.o.rounds):
            for tool in self.turn(tools, round_):
                self.ready_to_push(tool, paths)
                os.sync()
                due = time.monotonic() + PACE
                for name in map(os.path.basename, paths):
                    time.sleep(max(0.0, due - time.monotonic()))
                    # Who needs longer than the pace gets the next one as soon as he is done.
                    begin = time.monotonic()
                    due = begin + PACE
                    tool.ready(name)
                    tool.command(tool.push(name))
                    samples[tool.name].append((time.monotonic() - begin, 0))
                    tool.done(name)
                self.finish_push(tool, [os.path.basename(p) for p in paths])
        self.report.part(f"a segment every 300 ms, {kind}, {tools[0].store.label}: from .ready to the command's return", "push", samples)

    def client(self, store, path):
        """The command where there is nothing left to do: its segment is stored already."""
        name = os.path.basename(path)
        tools = self.tools(store, (PitrAgent, PgBackRestAsync, Pitr))
        for tool in tools:
            self.ready_to_push(tool, [path])
            tool.ready(name)
            tool.command(tool.push(name))
            settle(tool.daemons)
        rows = [("/bin/true", None, "/bin/true"), ("pitr --version", None, f"{self.pitr} --version")]
        rows += [(f"{t.name}: push of a stored segment", t, t.push(name)) for t in tools]
        samples = {title: [] for title, _, _ in rows}
        for index in range(self.o.client):
            for title, tool, text in self.turn(rows, index):
                daemons = tool.daemons if tool else []
                before = cpu(daemons)
                wall = tool.command(text) if tool else processes.command(text, self.dir, f"{self.dir}/client.log")
                settle(daemons) if processes.orphans() else None
                samples[title].append((wall, cpu(daemons) - before))
        for tool in tools:
            self.finish(tool)
            tool.wipe()
        self.report.part(f"what the command costs, {store.label}: of {self.o.client}", "sh -c", samples)

    def recover(self, tool, paths):
        """One recovery over all segments; returns (wall s, CPU s) per segment."""
        tool.stop()
        tool.load([])
        tool.start()
        os.sync()
        inbox = f"{tool.data}/pg_wal"
        before, begin, last = cpu(tool.daemons), time.monotonic(), None
        for name in map(os.path.basename, paths):
            tool.command(tool.get(name))
            os.rename(f"{inbox}/RECOVERYXLOG", f"{inbox}/{name}")
            replay(f"{inbox}/{name}", self.o.replay_ms / 1000)
            if last:
                os.unlink(f"{inbox}/{last}")
            last = name
        wall = time.monotonic() - begin
        settle(tool.daemons)
        used = cpu(tool.daemons) - before
        self.finish(tool)
        if not filecmp.cmp(f"{inbox}/{last}", paths[-1], shallow=False):
            raise SystemExit(f"{tool.name} restored other bytes as {last}")
        return wall / len(paths), used / len(paths)

    def recovery(self, store, paths):
        kinds = (*((Cp, ZstdGet) if isinstance(store, Disk) else (CurlGet,)), PgBackRest, PgBackRestAsync, Pitr, PitrAgent, PitrAhead)
        tools = self.tools(store, kinds, {PgBackRestAsync: PgBackRest, PitrAgent: Pitr, PitrAhead: Pitr})
        for tool in tools:
            if tool.repository == tool.slug:
                tool.load(paths)
                for path in paths:
                    tool.command(tool.push(os.path.basename(path)))
        samples = {t.name: [] for t in tools}
        for round_ in range(self.o.rounds):
            for tool in self.turn(tools, round_):
                samples[tool.name].append(self.recover(tool, paths))
        for tool in tools:
            tool.wipe()
        self.report.part(f"recovery of {len(paths)} segments, {store.label}: per segment", "restore_command", samples, SEGMENT)

    def all(self, segments):
        for kind_of_store in (Disk, S3):
            if kind_of_store.label not in self.o.stores:
                continue
            try:
                store = kind_of_store(self)
            except Failed as why:
                self.report.skip(kind_of_store.label, why)
                continue
            local = (Zstd, Dd, ZstdCores) if kind_of_store is Disk else (Curl,)
            pushing = [part for part in ("single", "backlog", "paced") if part in self.o.only]
            tools = self.tools(store, (*local, PgBackRest, PgBackRestAsync, Pitr, PitrAgent)) if pushing else []
            for part in pushing:
                these = [tool for tool in tools if part == "backlog" or not isinstance(tool, ZstdCores)]
                for kind in self.o.kinds:
                    getattr(self, part)(these, kind, segments[kind][:self.o.segments])
            for tool in tools:
                tool.wipe()
            if "effort" in self.o.only and kind_of_store is Disk:
                tools = self.tools(store, (PitrHard, PitrAgentHard))
                self.single(tools, "text", segments["text"][:self.o.segments])
                # Long enough to be more than is under way at once.
                self.backlog(tools, "text", segments["text"][:max(self.o.segments, 64)])
                for tool in tools:
                    tool.wipe()
            if "client" in self.o.only and kind_of_store is Disk:
                self.client(store, segments["text"][0])
            if "recovery" in self.o.only:
                self.recovery(store, segments["text"][:self.o.recover])
            store.close()


def replay(path, at_least):
    """Reads a segment once, and spends as long on it as a server would."""
    begin = time.monotonic()
    size = 0
    with open(path, "rb", buffering=0) as segment:
        while chunk := segment.read(1 << 17):
            size += len(chunk)
    if size != SEGMENT:
        raise SystemExit(f"{path} has {size} bytes")
    while time.monotonic() - begin < at_least:
        pass


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=24, help="that are pushed, of each kind")
    parser.add_argument("--paced", type=int, default=12, help="of them in the paced part")
    parser.add_argument("--recover", type=int, default=200, help="segments of the recovery")
    parser.add_argument("--client", type=int, default=200, help="commands of each kind in the client part")
    parser.add_argument("--rounds", type=int, default=2, help="an even number runs every order as often as its reverse")
    parser.add_argument("--replay-ms", type=float, default=0, help="how long replay is busy with a segment, at least; 0: reads it only")
    parser.add_argument("--round-trip-ms", type=float, default=20)
    parser.add_argument("--scale", type=int, default=40, help="pgbench scale")
    parser.add_argument("--pitr", default=BUILT, help="the program to measure")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--stores", nargs="*", choices=("file", "S3"), default=("file", "S3"))
    parser.add_argument("--dir", default="/var/tmp", help="where the scratch directory goes")
    parser.add_argument("--cache", default="/var/tmp/pitr-bench-wal", help="where the WAL is kept; on the disk of --dir, or it is copied")
    parser.add_argument("--test-cache", default="/var/cache/pitr-tests" if os.geteuid() == 0 else os.path.expanduser("~/.cache/pitr-tests"),
                        help="where tests/setup.sh put the S3 server")
    parser.add_argument("--json", metavar="FILE", help="every sample as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the scratch directory")
    return parser.parse_args()


def main():
    o = options()
    # Opened while we may: the server's user can't write everywhere.
    samples = open(o.json, "w", encoding="utf8") if o.json else None
    os.makedirs(o.cache, exist_ok=True)
    give(o.cache)
    with processes.bench(o.dir, o.pitr, o.keep) as (directory, proxy, pitr):
        bench = Bench(o, directory, proxy, pitr)
        lock = open(f"{o.cache}/lock", "w", encoding="utf8")
        fcntl.flock(lock, fcntl.LOCK_EX)  # the cache is also a server
        try:
            bench.server, segments = wal(o.cache, o)
            bench.all(segments)
        finally:
            if bench.server:
                bench.server.stop_at_once()
            if samples:
                bench.report.save(samples)


if __name__ == "__main__":
    main()
