#!/usr/bin/env python3
"""Whole-process figures: pitr beside cp, zstd, pg_basebackup, tar and Debian's pgBackRest, on the same bytes in one run.

    tests/setup.sh && cargo build --release && benches/whole.py [--segments 16] [--rounds 3] [--scale 40]

Run as root (servers run as user postgres). Two kinds of data, because pgbench's compress 12 to 36 times and hide costs: pgbench
tables, and rows of hashed text (about 2.6 : 1). Every figure is the median of several rounds, commands in turn; what is printed
are ratios within this run, since machines differ. CPU is user + system of the whole process tree as the kernel accounts it.
"""
import argparse
import os
import shutil
import statistics
import subprocess

from common import BIN, BUILT, Site, borrow, give, run, scratch, shell


class Bench(Site):
    def __init__(self, options):
        super().__init__(scratch(options.dir))
        self.o = options
        self.pitr = borrow(options.pitr, self.dir)

    def set_up(self):
        self.make_server()
        self.config = self.make("pitr.toml", f"""cluster = "bench"
timezone = "UTC"
state_dir = "{self.dir}/state"
[postgres]
conninfo = "host={self.dir} user=postgres"
data_dir = "{self.data}"
bin_dir = "{BIN}"
[[repository]]
name = "local"
url = "file://{self.dir}/repository"
""")
        run([self.pitr, "--config", self.config, "init"])
        # After init, which does not touch a server that archives elsewhere.
        self.archive_with(f"cp %p {self.wal}/%f")
        self.rest = self.make("pgbackrest.conf", f"""[global]
repo1-path={self.dir}/pgbackrest
log-path={self.dir}
lock-path={self.dir}/lock
spool-path={self.dir}/spool
log-level-console=error
compress-type=zst
compress-level=1
process-max=2
start-fast=y
archive-check=n
[bench]
pg1-path={self.data}
pg1-socket-path={self.dir}
pg1-user=postgres
""")
        self.has_rest = shutil.which("pgbackrest") is not None
        if self.has_rest:
            shell(f"pgbackrest --config={self.rest} --stanza=bench stanza-create")

    def compare(self, title, commands, reset=None):
        """commands: name -> function of the round. Prints medians and ratios to the first."""
        seen = {name: [] for name in commands}
        for index in range(self.o.rounds + 1):
            for name, act in commands.items():
                if reset:
                    reset()
                os.sync()
                figures = act(index)
                if index:
                    seen[name].append(figures)
        print(f"\n### {title}\n\n| | wall | CPU | CPU s | peak MiB |\n|---|---|---|---|---|")
        medians = {n: [statistics.median(r[i] for r in rows) for i in range(3)] for n, rows in seen.items()}
        base = next(iter(medians.values()))
        for name, (wall, cpu, peak) in medians.items():
            print(f"| {name} | {wall / base[0]:.2f} | {cpu / base[1]:.2f} | {cpu:.3f} | {peak:.0f} |", flush=True)

    def total(self, rows):
        rows = list(rows)
        return sum(r[0] for r in rows), sum(r[1] for r in rows), max(r[2] for r in rows)

    def push(self, kind, paths):
        out = f"{self.dir}/out"
        rest = f"pgbackrest --config={self.rest} --stanza=bench"

        def clean():
            shutil.rmtree(out, ignore_errors=True)
            os.mkdir(out)
            give(out)
            for folder in (f"{self.dir}/repository/bench", f"{self.dir}/pgbackrest/archive/bench"):
                for root, _, names in os.walk(folder):
                    for name in names:
                        if len(name) >= 24 and name[:8] == "00000001":
                            os.unlink(os.path.join(root, name))

        each = lambda make: lambda _: self.total(run(make(p, os.path.basename(p))) for p in paths)
        # dd's conv=fsync writes and syncs in one process: the least a copy can cost.
        commands = {
            "zstd -1 + fsync": each(lambda p, n: ["/bin/sh", "-ec", f"zstd -q -1 --single-thread -c {p} | dd of={out}/{n} bs=1M conv=fsync iflag=fullblock status=none"]),
            "cp + fsync": each(lambda p, n: ["dd", f"if={p}", f"of={out}/{n}", "bs=1M", "conv=fsync", "status=none"]),
            "pitr archive-push": each(lambda p, n: [self.pitr, "--config", self.config, "archive-push", p]),
        }
        if self.has_rest:
            commands["pgBackRest archive-push"] = each(lambda p, n: ["/bin/sh", "-ec", f"{rest} archive-push {p}"])
        self.compare(f"push of {len(paths)} segments, one at a time, {kind}", commands, clean)

    def get(self, kind, paths):
        out = f"{self.dir}/out"
        rest = f"pgbackrest --config={self.rest} --stanza=bench"
        for p in paths:
            run([self.pitr, "--config", self.config, "archive-push", p])
            shell(f"zstd -q -f -1 {p} -o {self.dir}/{os.path.basename(p)}.zst")
            if self.has_rest:
                shell(f"{rest} archive-push {p}")
        each = lambda make: lambda _: self.total(run(make(p, os.path.basename(p)), cwd=self.data) for p in paths)
        commands = {
            "zstd -d + fsync": each(lambda p, n: ["/bin/sh", "-ec", f"zstd -q -d -c {self.dir}/{n}.zst | dd of={out}/x bs=1M conv=fsync iflag=fullblock status=none"]),
            "cp + fsync": each(lambda p, n: ["dd", f"if={p}", f"of={out}/x", "bs=1M", "conv=fsync", "status=none"]),
            "pitr archive-get": each(lambda p, n: [self.pitr, "--config", self.config, "archive-get", n, f"{out}/x"]),
        }
        if self.has_rest:
            commands["pgBackRest archive-get"] = each(lambda p, n: ["/bin/sh", "-ec", f"{rest} archive-get {n} {out}/x"])
        self.compare(f"get of {len(paths)} segments, one at a time, {kind}", commands)

    def make_files(self, count):
        """Files that PostgreSQL does not know, but backs up: memory and time per file are the same."""
        for index in range(count):
            folder = f"{self.data}/many/{index // 1000:06}"
            if index % 1000 == 0:
                os.makedirs(folder)
            with open(f"{folder}/{index % 1000:03}", "wb") as out:
                out.write(b"%-1023d\n" % index)
        subprocess.run(["chown", "-R", "postgres:", f"{self.data}/many"], check=True)

    def backup(self):
        out = f"{self.dir}/base"
        clean = lambda: shutil.rmtree(out, ignore_errors=True)
        self.archive_with(f"{self.pitr} --config {self.config} archive-push %p")
        commands = {
            "pg_basebackup -Ft, client zstd:1, 2 workers": lambda _: run(
                [f"{BIN}/pg_basebackup", "-h", self.dir, "-U", "postgres", "-D", out, "-Ft", "-X", "none", "-c", "fast",
                 "--compress=client-zstd:level=1,workers=2"]),
            "pitr backup": lambda _: run([self.pitr, "--config", self.config, "backup"]),
        }
        if self.has_rest:
            commands["pgBackRest backup (zst, 2 processes)"] = lambda _: shell(
                f"pgbackrest --config={self.rest} --stanza=bench --type=full --no-archive-check backup")
        self.compare("full backup", commands, clean)

    def restore(self):
        out, archive = f"{self.dir}/restored", f"{self.dir}/base-tar"
        if "backup" not in self.o.only:
            self.archive_with(f"{self.pitr} --config {self.config} archive-push %p")
            run([self.pitr, "--config", self.config, "backup"])
            if self.has_rest:
                shell(f"pgbackrest --config={self.rest} --stanza=bench --type=full --no-archive-check backup")
        run([f"{BIN}/pg_basebackup", "-h", self.dir, "-U", "postgres", "-D", archive, "-Ft", "-X", "none", "-c", "fast",
             "--compress=client-zstd:level=1,workers=2"])

        def clean():
            shutil.rmtree(out, ignore_errors=True)

        commands = {
            "tar --zstd -x": lambda _: shell(f"mkdir {out} && tar --zstd -xf {archive}/base.tar.zst -C {out}"),
            "tar --zstd -x, then sync -f": lambda _: shell(f"mkdir {out} && tar --zstd -xf {archive}/base.tar.zst -C {out} && sync -f {out}"),
            "pitr restore": lambda _: run([self.pitr, "--config", self.config, "restore", "--immediate", "--copy", "--target-dir", out]),
        }
        if self.has_rest:
            commands["pgBackRest restore (2 processes)"] = lambda _: shell(
                f"mkdir -m 700 {out} && pgbackrest --config={self.rest} --stanza=bench --pg1-path={out} --type=immediate restore")
        self.compare("restore of a full backup", commands, clean)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=40, help="pgbench scale; 1 is about 15 MiB")
    parser.add_argument("--dir", default="/var/tmp")
    parser.add_argument("--pitr", default=BUILT, help="the program to measure")
    parser.add_argument("--only", nargs="*", choices=("wal", "backup", "restore"), default=("wal", "backup", "restore"))
    parser.add_argument("--many-files", type=int, default=0, help="also back up and restore so many files of 1 KiB")
    parser.add_argument("--keep", action="store_true")
    bench = Bench(parser.parse_args())
    try:
        bench.set_up()
        for kind in ("pgbench", "hashed text"):
            paths = bench.segments(kind, bench.o.segments, bench.o.scale)
            if "wal" in bench.o.only:
                bench.push(kind, paths)
                bench.get(kind, paths)
        if bench.o.many_files:
            bench.make_files(bench.o.many_files)
        if "backup" in bench.o.only:
            bench.backup()
        if "restore" in bench.o.only:
            bench.restore()
    finally:
        bench.stop_at_once()
        if not bench.o.keep:
            shutil.rmtree(bench.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
