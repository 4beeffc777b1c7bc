"""Commands run as a server runs them, with the time and the CPU of all that they leave behind.

Two of the tools measured go on in the background: pgBackRest's asynchronous half detaches itself, pitr has a resident agent. So this
process makes itself the one that inherits orphans (PR_SET_CHILD_SUBREAPER), and CPU is what the kernel has accounted to children that
ended plus the CPU clocks of those that live. Nothing is left running: `sweep` ends all that descends from here.
"""
import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

from common import ENVIRONMENT, ROOT, borrow, drop, scratch

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIBC = ctypes.CDLL(None, use_errno=True)
TICK = os.sysconf("SC_CLK_TCK")
# Our own long-lived children by process id; the commands measured are none of them.
DAEMONS = {}
ENDED = {}


def adopt_orphans():
    if LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit(f"cannot take in orphans: {os.strerror(ctypes.get_errno())}")


def reap():
    """Takes note of children that ended; a daemon among them is the end of the run."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        ENDED[pid] = os.waitstatus_to_exitcode(status)
        if pid in DAEMONS:
            raise SystemExit(f"{DAEMONS.pop(pid)} ended by itself with {ENDED[pid]}")


def table():
    """Process id -> (parent, CPU seconds of children it waited for), of every living process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    fields = stat.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                found[int(name)] = int(fields[1]), (int(fields[13]) + int(fields[14])) / TICK
    return found


def descendants(processes, roots):
    below, grew = set(roots), True
    while grew:
        more = {pid for pid, (parent, _) in processes.items() if parent in below} - below
        below |= more
        grew = bool(more)
    return below


def orphans():
    reap()
    return {pid for pid, (parent, _) in table().items() if parent == os.getpid()} - set(DAEMONS)


def clock(pid):
    """CPU seconds of a living process: its clock as in clock_getcpuclockid(3), which /proc shows in hundredths only."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def cpu(daemons=()):
    """CPU seconds so far of all commands, what they left behind, and `daemons`; other daemons don't count."""
    reap()
    processes = table()
    apart = descendants(processes, set(DAEMONS) - set(daemons))
    mine = descendants(processes, {os.getpid()}) - {os.getpid()} - apart
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime + sum(clock(pid) + processes[pid][1] for pid in mine)


def settle(daemons=(), patience=15.0):
    """Waits until nothing runs on behind a command: its orphans ended, or have used no CPU for half a second."""
    deadline, quiet, last = time.monotonic() + patience, 0, -1.0
    if not daemons and not orphans():
        return
    while time.monotonic() < deadline and quiet < (10 if orphans() else 1):
        time.sleep(0.05)
        now = cpu(daemons)
        quiet = quiet + 1 if now - last < 0.001 else 0
        last = now


class Failed(Exception):
    """A command that had to succeed did not."""


def command(text, cwd, log):
    """Runs one command through the shell, as PostgreSQL does; returns seconds until it returned."""
    with open(log, "ab") as said:
        begin = time.monotonic()
        # No preexec_fn: Python then starts it by vfork, which costs as little as system(3).
        child = subprocess.Popen(["/bin/sh", "-c", text], cwd=cwd, stdin=subprocess.DEVNULL, stdout=said,
                                 stderr=subprocess.STDOUT, env=ENVIRONMENT)
        _, status, _ = os.wait4(child.pid, 0)
        took = time.monotonic() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        with open(log, "rb") as said:
            said.seek(max(0, os.path.getsize(log) - 2000))
            tail = said.read().decode(errors="replace")
        raise Failed(f"`{text}` ended with {child.returncode}:\n{tail}")
    return took


def daemon(what, args, log, ready, cwd="/"):
    """Starts one of our own long-lived children and waits until `ready()`; returns its process id."""
    # Should this process be killed outright, they go with it.
    die_with_us = lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with open(log, "ab") as said:
        child = subprocess.Popen(args, cwd=cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                                 env=ENVIRONMENT, preexec_fn=die_with_us)
    child.returncode = 0  # waited for by reap(), not by Popen
    DAEMONS[child.pid] = what
    deadline = time.monotonic() + 30
    while not ready():
        reap()
        if time.monotonic() > deadline:
            raise Failed(f"{what} is not there after 30 s, see {log}")
        time.sleep(0.02)
    return child.pid


def end(pids, patience=10.0):
    """Ends processes: asked first, then made to."""
    pids = set(pids)
    for pid in pids:
        DAEMONS.pop(pid, None)
    deadline = time.monotonic() + patience
    for sign in (signal.SIGTERM, signal.SIGKILL):
        alive = pids & set(table())
        for pid in alive:
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                pass
        while pids & set(table()) and time.monotonic() < deadline:
            time.sleep(0.02)
            reap()
        deadline = time.monotonic() + 2
    reap()


def sweep():
    """Ends all that descends from this process."""
    for _ in range(3):
        left = descendants(table(), {os.getpid()}) - {os.getpid()}
        if not left:
            return
        end(left, patience=3.0)


def end_by_signal(number, _frame):
    raise SystemExit(128 + number)


@contextlib.contextmanager
def bench(parent, pitr, keep=False):
    """A scratch directory with the programs in it, as the server's user from here on; nothing is left of it, nor running, afterwards.

    pgBackRest and initdb refuse root, and starting a command costs less without a change of user.
    """
    directory = scratch(parent)
    proxy, pitr = (borrow(path, directory) for path in (f"{ROOT}/benches/slow_proxy.py", pitr))
    drop()
    os.chdir("/")
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_by_signal)
    adopt_orphans()
    try:
        yield directory, proxy, pitr
    except (Failed, KeyboardInterrupt) as why:
        sys.exit(str(why) or "interrupted")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sweep()
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def listens_at(path):
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
