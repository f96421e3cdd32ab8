#!/usr/bin/env python3
"""What router, worker and gRPC cost: one batch by `qserve-bench offline`, then the same through a router and one replica.

usage: serving.py PROGRAMS MODEL THREADS STREAMS PROMPT OUTPUT KV_CACHE [WORKER_OPTION]...

Prints one JSON object with the tokens out per second of both, each from the first submission to the last token, prefill included. All
processes run on this machine's cores, the client too. Called by peers.py, under measured.py.
"""

import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

READY_SECONDS = 120


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def offline(programs: pathlib.Path, common: list[str], streams: int, prompt: int, output: int) -> dict:
    done = subprocess.run([str(programs / "qserve-bench"), "offline", *common, "--batch", str(streams), "--prompt-length", str(prompt),
                           "--output-length", str(output), "--repeat", "1", "--json"], capture_output=True, text=True, check=True)
    run = json.loads(done.stdout)["runs"][0]
    seconds = run["prefill_seconds"] + run["decode_seconds"]
    return {"tokens_per_second": streams * output / seconds, "seconds": seconds, **run}


def wait_ready(programs: pathlib.Path, address: str, process: subprocess.Popen) -> None:
    """Until one token comes back through the router."""
    deadline = time.monotonic() + READY_SECONDS
    probe = [str(programs / "qserve-bench"), "serve", "--address", address, "--requests", "1", "--concurrency", "1", "--prompt-length", "8",
             "--output-length", "2"]
    while subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the worker did not become ready")
        time.sleep(0.3)


def served(programs: pathlib.Path, common: list[str], streams: int, prompt: int, output: int) -> dict:
    worker_address, router_address = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with tempfile.TemporaryFile() as log:
        quiet = ["--log-level", "warn", "--metrics-listen", ""]
        worker = subprocess.Popen([str(programs / "qserve-worker"), *common, "--listen", worker_address, "--max-num-seqs", str(streams),
                                   *quiet], stdout=log, stderr=log)
        router = subprocess.Popen([str(programs / "qserve-router"), "--listen", router_address, "--workers", worker_address, *quiet],
                                  stdout=log, stderr=log)
        try:
            wait_ready(programs, router_address, worker)
            done = subprocess.run([str(programs / "qserve-bench"), "serve", "--address", router_address, "--requests", str(streams),
                                   "--concurrency", str(streams), "--prompt-length", str(prompt), "--output-length", str(output), "--json"],
                                  capture_output=True, text=True, check=True)
        finally:
            for process in (router, worker):
                process.terminate()
            for process in (router, worker):
                process.wait(60)
    report = json.loads(done.stdout)
    return {"tokens_per_second": report["output_tokens_per_second"], "seconds": report["duration_seconds"],
            **{key: report[key] for key in ("time_to_first_token_seconds", "time_per_output_token_seconds", "completed", "commit")}}


def main(arguments: list[str]) -> None:
    programs, (streams, prompt, output) = pathlib.Path(arguments[0]), (int(one) for one in arguments[3:6])
    common = ["--model", arguments[1], "--threads", arguments[2], "--kv-cache-memory", arguments[6], *arguments[7:]]
    print(json.dumps({"offline": offline(programs, common, streams, prompt, output),
                      "grpc": served(programs, common, streams, prompt, output), "streams": streams, "prompt": prompt, "output": output}))


if __name__ == "__main__":
    if len(sys.argv) < 8:
        sys.exit(__doc__)
    main(sys.argv[1:])
