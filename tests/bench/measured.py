#!/usr/bin/env python3
"""Runs commands and says what each took: its output, time, peak memory, and how busy others kept the processors meanwhile.

usage: measured.py SECONDS < LIST       prints a JSON object for each

LIST is JSON: [{"command": [WORD...], "expected": SECONDS}...]. The first is run, and those after it for which the time is expected to
suffice; a command is ended when it does not. Each waits a while for idle processors.

"others" is the share of all processors' time that neither was idle nor went to the command: other processes, the host (steal) and
this script. A measurement with more than a few percent of it says little. Anonymous memory is sampled, peak_rss is the kernel's.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

PAUSE = 0.05  # seconds between samples of memory
CALM, CALM_SHARE = 0.5, 0.06  # seconds; share of the processors that others may take


def busy_seconds() -> float:
    """Of all processors since the start of the machine: user, nice, system, irq, softirq, steal."""
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields[:3] + fields[5:]) / os.sysconf("SC_CLK_TCK")


def anonymous_bytes(pid: int) -> int:
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it has just ended
    return 0


def run(limit: float, command: list[str]) -> dict[str, object]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy, start = busy_seconds(), time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        anonymous, timed_out = 0, False
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            anonymous = max(anonymous, anonymous_bytes(child.pid))
            if time.monotonic() - start > limit and not timed_out:
                timed_out = True
                child.kill()
            time.sleep(PAUSE)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds, taken = time.monotonic() - start, usage.ru_utime + usage.ru_stime
        others = max(0.0, busy_seconds() - busy - taken) / (seconds * len(os.sched_getaffinity(0)))
        out.seek(0)
        err.seek(0)
        return {"rc": child.returncode, "timed_out": timed_out, "seconds": round(seconds, 2), "others": round(others, 4),
                "peak_rss": usage.ru_maxrss * 1024, "peak_anonymous": anonymous, "stdout": out.read().decode(errors="replace"),
                "stderr": err.read().decode(errors="replace")[-2000:]}


def wait_for_calm(seconds: float) -> None:
    """Until the processors were idle for a moment, but no longer than that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        busy, start = busy_seconds(), time.monotonic()
        time.sleep(CALM)
        if busy_seconds() - busy < CALM_SHARE * (time.monotonic() - start) * len(os.sched_getaffinity(0)):
            return


def run_all(seconds: float, wanted: list[dict]) -> None:
    end = time.monotonic() + seconds
    for index, one in enumerate(wanted):
        wait_for_calm((end - time.monotonic()) / 3)
        left = end - time.monotonic()
        if index > 0 and one["expected"] > left:
            break
        print(json.dumps(run(left, one["command"])), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run_all(float(sys.argv[1]), json.load(sys.stdin))
