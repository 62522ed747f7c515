"""Processes under test: what they cost in CPU time and memory."""

import os
import signal
import subprocess
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    def __init__(self, argv, log, environment=None):
        with open(log, "ab") as out:
            self.child = subprocess.Popen(argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                          env={**os.environ, **(environment or {})}, start_new_session=True)
        self.log = log

    def alive(self):
        return self.child.poll() is None

    def said(self):
        return Path(self.log).read_text(errors="replace")[-800:]

    def cpu(self):
        """Seconds of CPU time so far: (all of it in the scheduler's nanoseconds, and by ticks in user mode, in the kernel)."""
        return cpu(self.child.pid)

    def memory(self):
        """Resident MiB."""
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def end(self):
        for kind in (signal.SIGTERM, signal.SIGKILL):
            if self.alive():
                self.child.send_signal(kind)
                try:
                    self.child.wait(3)
                except subprocess.TimeoutExpired:
                    pass


def cpu(pid):
    total, user, system = 0, 0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
            fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
            user, system = user + int(fields[11]), system + int(fields[12])
        except OSError:
            pass        # it has ended
    return total / 1e9, user / TICKS, system / TICKS


def machine():
    """Seconds that all cores were busy so far, and that others took from this machine."""
    fields = [int(field) / TICKS for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(fields) - fields[3] - fields[4] - fields[7], fields[7]
