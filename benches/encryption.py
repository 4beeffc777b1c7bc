#!/usr/bin/env python3
"""What encryption costs: the same commands on the same bytes, into a plain repository and into an encrypted one, in one run.

    tests/setup.sh && cargo build --release && benches/encryption.py [--segments 16] [--rounds 4] [--scale 40] [--json FILE]

Root or not: as root, everything is done as user postgres. Every command is a process of its own, from its start to its end, on a directory; CPU is user + system of all of it.
The sides take turns, plain first and then encrypted first, with every segment, backup and restore; a round does each twice. Figures are medians of the rounds, a ratio is
the median of the ratios of the rounds. Two kinds of data: of pgbench, which compress 12 to 36 times, and rows of hashed text (about 2.6 : 1), where there is more to encrypt.

    push      archive-push of one segment after the other
    get       archive-get of them
    backup    a full backup
    restore   a copy of it

The aim: a push takes at most 20 % more CPU. Run it on a machine that does nothing else, or the ratios are wrong.
"""
import argparse
import json
import os
import shutil
import statistics
import sys

from common import BIN, BUILT, Site, borrow, give, run, scratch

PARTS = ("push", "get", "backup", "restore")
SIDES = ("plain", "encrypted")
MOST = 1.20  # CPU of an encrypted push beside a plain one


class Bench(Site):
    def __init__(self, options):
        super().__init__(scratch(options.dir))
        self.o = options
        self.pitr = borrow(options.pitr, self.dir)
        self.configs, self.report = {}, []

    def command(self, side, *args):
        return [self.pitr, "--config", self.configs[side], *args]

    def set_up(self):
        self.make_server()
        key = lambda name: f"{self.dir}/{name}"
        run([self.pitr, "key", "init", "--cluster", "bench", "--host-file", key("host"),
             "--generate", f"daily={key('daily.key')}", "--generate", f"offline={key('offline.key')}"])
        keys = {"plain": "", "encrypted": f'[keys]\nhost_file = "{key("host")}"\nidentity_file = "{key("daily.key")}"\n'}
        for side in SIDES:
            self.configs[side] = self.make(f"{side}.toml", f"""cluster = "bench"
timezone = "UTC"
state_dir = "{self.dir}/state"
[postgres]
conninfo = "host={self.dir} user=postgres"
data_dir = "{self.data}"
bin_dir = "{BIN}"
[[repository]]
name = "store"
url = "file://{self.dir}/{side}"
{keys[side]}""")
            run(self.command(side, "init"))
        # After init, which does not touch a server that archives elsewhere.
        self.archive_with(f"cp %p {self.wal}/%f")

    def compare(self, title, acts, reset=lambda: None):
        """acts: functions of the side; each gives (wall s, CPU s, peak MiB). Both sides do one before either does the next, so that a load of a
        second hits both alike. The first round is not counted."""
        rounds = []
        for index in range(self.o.rounds + 1):
            seen = {side: [] for side in SIDES}
            for turn in range(2):
                reset()
                os.sync()
                for number, act in enumerate(acts):
                    for side in SIDES if (index + turn + number) % 2 == 0 else reversed(SIDES):
                        seen[side].append(act(side))
            if index:
                rounds.append(seen)
        rows = {}
        for side in SIDES:
            of = lambda seen, figure: sum(sample[figure] for sample in seen[side]) / 2
            beside = lambda seen, figure: of(seen, figure) / (sum(sample[figure] for sample in seen["plain"]) / 2)
            rows[side] = {
                "wall_s": statistics.median(of(seen, 0) for seen in rounds),
                "wall_ratio": statistics.median(beside(seen, 0) for seen in rounds),
                "cpu_s": statistics.median(of(seen, 1) for seen in rounds),
                "cpu_ratio": statistics.median(beside(seen, 1) for seen in rounds),
                "peak_mib": max(sample[2] for seen in rounds for sample in seen[side]),
            }
        self.report.append({"title": title, "rows": rows, "rounds": rounds})
        print(f"\n### {title}\n\n| | wall s | ratio | CPU s | ratio | peak MiB |\n|---|---|---|---|---|---|")
        for side, r in rows.items():
            print(f"| {side} | {r['wall_s']:.3f} | {r['wall_ratio']:.2f} | {r['cpu_s']:.3f} | {r['cpu_ratio']:.2f} | {r['peak_mib']:.0f} |", flush=True)
        return rows["encrypted"]["cpu_ratio"]

    def forget(self, paths):
        """The segments are new to both repositories again."""
        names = {os.path.basename(path) for path in paths}
        for side in SIDES:
            for folder, _, files in os.walk(f"{self.dir}/{side}/bench"):
                for name in files:
                    if name.split(".")[0] in names:
                        os.unlink(f"{folder}/{name}")

    def push(self, kind, paths):
        acts = [lambda side, path=path: run(self.command(side, "archive-push", path)) for path in paths]
        ratio = self.compare(f"archive-push of {len(paths)} segments, {kind}", acts, lambda: self.forget(paths))
        print(f"\nCPU of an encrypted push, {kind}: {ratio:.2f} of a plain one; the aim is {MOST:.2f} at most")

    def get(self, kind, paths):
        out = f"{self.dir}/out"
        os.makedirs(out, exist_ok=True)
        give(out)
        self.forget(paths)
        for side in SIDES:
            for path in paths:
                run(self.command(side, "archive-push", path))
        get = lambda side, path: run(self.command(side, "archive-get", os.path.basename(path), f"{out}/x"), cwd=self.data)
        self.compare(f"archive-get of {len(paths)} segments, {kind}", [lambda side, path=path: get(side, path) for path in paths])

    def backup(self):
        self.archive_in_both()
        self.compare("backup", [lambda side: run(self.command(side, "backup", "--full"))])

    def restore(self):
        if "backup" not in self.o.only:
            self.archive_in_both()
            for side in SIDES:
                run(self.command(side, "backup", "--full"))
        out = f"{self.dir}/restored"

        def restore(side):
            shutil.rmtree(out, ignore_errors=True)
            return run(self.command(side, "restore", "--immediate", "--copy", "--target-dir", out))

        self.compare("restore", [restore])

    def archive_in_both(self):
        both = " && ".join(f"{self.pitr} --config {self.configs[side]} archive-push %p" for side in SIDES)
        self.archive_with(both)

    def run(self):
        self.set_up()
        for kind in ("pgbench", "hashed text"):
            paths = self.segments(kind, self.o.segments, self.o.scale)
            for part in ("push", "get"):
                if part in self.o.only:
                    getattr(self, part)(kind, paths)
        for part in ("backup", "restore"):
            if part in self.o.only:
                getattr(self, part)()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=16, help="that are pushed and fetched, of each kind")
    parser.add_argument("--rounds", type=int, default=4, help="an even number runs every order as often as its reverse")
    parser.add_argument("--scale", type=int, default=40, help="pgbench scale; 1 is about 15 MiB")
    parser.add_argument("--dir", default="/var/tmp", help="where the scratch directory goes")
    parser.add_argument("--pitr", default=BUILT, help="the program to measure")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--json", metavar="FILE", help="every sample as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the scratch directory")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is busy (load {load:.1f}): ratios will be wrong", file=sys.stderr)
    samples = open(options.json, "w", encoding="utf8") if options.json else None
    bench = Bench(options)
    try:
        bench.run()
    finally:
        bench.stop_at_once()
        if samples:
            with samples:
                json.dump({"options": vars(options), "load": load, "parts": bench.report}, samples, indent=1)
        if not options.keep:
            shutil.rmtree(bench.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
