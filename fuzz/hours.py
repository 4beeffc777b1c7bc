#!/usr/bin/env python3
"""Fuzzes for long, at the lowest priority, and keeps a record of it: fuzz/record.tsv, one line per run.

    tests/setup.sh --fuzz && fuzz/hours.py [--minutes 10] [--jobs 1] [--total 60] [TARGET...]
    fuzz/hours.py --sum       runs nothing: prints what is on record

Each run takes, of the targets named (all by default), the one that had the least CPU time so far. What counts is CPU time: on a busy
machine a run of ten minutes is worth less. A run that finds something ends all; its input is left in fuzz/artifacts/.
New inputs are kept in the cache of tests/setup.sh and are where the next run begins, beside the committed seeds.
"""

import argparse
import collections
import csv
import datetime
import os
import re
import subprocess
import sys
import threading
import time

FUZZ = os.path.dirname(os.path.abspath(__file__))
RECORD = f"{FUZZ}/record.tsv"
FIELDS = ["day", "commit", "target", "cpu_seconds", "executions", "inputs", "ended"]
CACHE = os.environ.get("PITR_TEST_CACHE") or ("/var/cache/pitr-tests" if os.geteuid() == 0 else os.path.expanduser("~/.cache/pitr-tests"))
TRIPLE = "x86_64-unknown-linux-gnu"


def recorded():
    """CPU seconds and executions by target, since it last found something: what was mended is proven anew."""
    sums = collections.defaultdict(lambda: [0, 0])
    if os.path.exists(RECORD):
        with open(RECORD, newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                if row["ended"] != "no finding":
                    sums[row["target"]] = [0, 0]
                    continue
                sums[row["target"]][0] += int(row["cpu_seconds"])
                sums[row["target"]][1] += int(row["executions"])
    return sums


class Hours:
    """Runs until the time is over or something is found."""

    def __init__(self, o):
        self.o = o
        self.ends = time.monotonic() + 60 * o.total if o.total else float("inf")
        self.lock = threading.Lock()
        self.running, self.found = set(), []
        self.commit = subprocess.run(["git", "-C", FUZZ, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()

    def work(self):
        while not self.found:
            minutes = min(self.o.minutes, (self.ends - time.monotonic()) / 60)
            if minutes < 0.5:
                return
            with self.lock:
                sums = recorded()
                free = [target for target in self.o.targets if target not in self.running]
                if not free:
                    return
                target = min(free, key=lambda name: sums[name][0])
                self.running.add(target)
            self.run(target, minutes)
            with self.lock:
                self.running.discard(target)

    def run(self, target, minutes):
        corpus, artifacts = f"{CACHE}/fuzz-corpus/{target}", f"{FUZZ}/artifacts/{target}"
        os.makedirs(corpus, exist_ok=True)
        os.makedirs(artifacts, exist_ok=True)
        seeds = f"{FUZZ}/seeds/{target}"
        command = [f"{CACHE}/fuzz-target/{TRIPLE}/release/{target}", f"-max_total_time={int(60 * minutes)}", "-print_final_stats=1",
                   "-rss_limit_mb=2048", "-timeout=60", f"-artifact_prefix={artifacts}/", corpus] + [seeds] * os.path.isdir(seeds)
        with open(f"{CACHE}/fuzzing-{target}.log", "w+b") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=lambda: os.nice(19))
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            said = log.read().decode(errors="replace")
        # A finding ends libFuzzer before it prints its sums: then the last line of its progress tells.
        done = re.findall(r"^stat::number_of_executed_units:\s*(\d+)", said, re.M) or re.findall(r"^#(\d+)\s", said, re.M)[-1:] or ["0"]
        ended = "no finding" if child.returncode == 0 else f"exit {child.returncode}"
        row = [datetime.date.today().isoformat(), self.commit, target, int(usage.ru_utime + usage.ru_stime), done[0], len(os.listdir(corpus)), ended]
        with self.lock:
            new = not os.path.exists(RECORD)
            with open(RECORD, "a", newline="") as file:
                writer = csv.writer(file, delimiter="\t", lineterminator="\n")
                writer.writerows([FIELDS] * new + [row])
            print(*row, sep="\t", flush=True)
            if child.returncode:
                self.found.append(target)
                print(said[-4000:], file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of one run")
    parser.add_argument("--total", type=float, default=0, help="minutes in all; 0: until it is stopped")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--sum", action="store_true")
    parser.add_argument("targets", nargs="*")
    o = parser.parse_args()
    known = sorted(name[:-3] for name in os.listdir(f"{FUZZ}/fuzz_targets") if name.endswith(".rs"))
    o.targets = o.targets or known
    if unknown := set(o.targets) - set(known):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if not o.sum:
        subprocess.run(["cargo", "+nightly", "fuzz", "build", "--codegen-units", "16", "--target", TRIPLE, "--target-dir", f"{CACHE}/fuzz-target"], check=True,
                       cwd=os.path.dirname(FUZZ), env=os.environ | {"PATH": f"{CACHE}/cargo/bin:{os.environ['PATH']}"})
        hours = Hours(o)
        workers = [threading.Thread(target=hours.work) for _ in range(o.jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    sums = recorded()
    print("target\tCPU minutes\texecutions")
    for target in sorted(o.targets, key=lambda name: sums[name][0]):
        print(f"{target}\t{sums[target][0] / 60:.0f}\t{sums[target][1]}")
    return 1 if not o.sum and hours.found else 0


if __name__ == "__main__":
    sys.exit(main())
