#!/usr/bin/env python3
"""qserve beside llama.cpp and OpenVINO GenAI on this machine's CPU, in interleaved rounds. peers.sh makes what this needs.

usage: peers.py run [OPTION]... DIRECTORY     measures; what DIRECTORY has already is not measured again
       peers.py table DIRECTORY...            prints the tables of runs
       peers.py plots DIRECTORY OUTPUT        draws the plots as SVG

For each case, every configuration of every engine runs after the others, and then the next round begins. A peer's configurations that
fell behind its best by a fifth in every case so far, and from the second round on by a tenth in the case itself, are left out. A run that others disturbed is repeated, twice at
most. DIRECTORY gets run.json (machine, versions, commands, ceilings) and samples.jsonl (a line for each process).
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass

import ceilings
import engines
import plots
import report
from engines import CASES, CONFIGS, LONG_CASES, QSERVE, QUICK_CASES, Case, Config, Places

HERE = pathlib.Path(__file__).resolve().parent
ATTEMPTS = 3  # of a run that others disturb
SERVED = ("32", "128", "64", "128MiB")  # streams, prompt, output, KV cache: what serving.py gets
GROUP = 8  # commands at most under one call of --prefix


@dataclass(frozen=True)
class Job:
    shape: str
    config: Config
    case: Case
    turn: int


class Run:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.places = Places(options.qserve, options.cache / "llama-build" / "bin", options.cache / "openvino-venv" / "bin" / "python",
                             options.cache / "models", options.threads, options.share_prompts)
        self.records = load(options.directory)
        self.file = (options.directory / "samples.jsonl").open("a")

    def measured(self, commands: list[list[str]], expected: list[float]) -> list[dict]:
        """What measured.py says of the first of them at least."""
        words = [*shlex.split(self.options.prefix), sys.executable, str(HERE / "measured.py"), str(self.options.limit)]
        wanted = [{"command": command, "expected": seconds} for command, seconds in zip(commands, expected)]
        start = time.monotonic()
        done = subprocess.run(words, input=json.dumps(wanted), capture_output=True, text=True, check=False)
        results = engines.json_lines(done.stdout)
        time.sleep(self.options.rest * sum(one["seconds"] for one in results))
        if not results:
            return [{"rc": done.returncode, "others": 0.0, "timed_out": False, "seconds": time.monotonic() - start,
                     "stderr": done.stderr[-2000:], "stdout": ""}]
        return results

    def record(self, job: Job, found: dict) -> dict:
        """What samples.jsonl gets: samples, or why there are none."""
        config, case = job.config, job.case
        record = {"shape": job.shape, "engine": config.engine, "config": config.name, "case": case.name(), "batch": case.batch,
                  "context": case.context, "output": case.output, "round": job.turn, "time": now(),
                  "command": self.anonymous(shlex.join(self.command(job))),
                  **{key: found.get(key) for key in ("others", "seconds", "peak_rss", "peak_anonymous")}}
        if found["timed_out"]:
            return {**record, "absent": f"took more than {self.options.limit} s"}
        if found["rc"] != 0:
            return {**record, "absent": f"ended with {found['rc']}: {self.anonymous(found['stderr'].strip()[-300:])}"}
        try:
            samples = engines.parse(config.engine, found["stdout"], case)
            about = engines.about(config.engine, found["stdout"], engines.shape_of(self.places, job.shape))
            return {**record, **about, "samples": samples}
        except (ValueError, KeyError) as error:
            return {**record, "absent": f"its output was not understood: {error}"}

    def anonymous(self, text: str) -> str:
        """Without this machine's folders: results are published."""
        if self.options.prefix:
            text = text.replace(self.options.prefix, "PREFIX")
        for folder, name in ((HERE, "tests/bench"), (self.options.cache, "CACHE"), (self.options.qserve, "BIN"),
                             (self.options.directory, "RESULTS"), (pathlib.Path.home(), "~")):
            text = text.replace(str(folder), name)
        return text

    def command(self, job: Job) -> list[str]:
        return engines.command(self.places, job.shape, job.config, job.case)

    def expected(self, job: Job) -> float:
        return engines.expected_seconds(job.config.engine, job.case, engines.shape_of(self.places, job.shape))

    def keep(self, record: dict) -> None:
        self.records.append(record)
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        print(f"{record['shape']} {record['case']:8} round {record['round']} {record['engine'] + ' ' + record['config']:38} "
              f"{summary(record)}", flush=True)

    def do(self, jobs: list[Job]) -> None:
        """All of them in their order; those that others disturbed once more after the rest, and at last as they are."""
        waiting = [(job, ATTEMPTS) for job in jobs]
        while waiting := [(job, attempts) for job, attempts in waiting if not self.left_out(job)]:
            group = [job for job, _ in waiting[:GROUP]]
            results = self.measured([self.command(job) for job in group], [self.expected(job) for job in group])
            done, waiting = waiting[:len(results)], waiting[len(results):]
            for index, ((job, attempts), found) in enumerate(zip(done, results)):
                if index > 0 and found["timed_out"]:  # it only began too late
                    waiting.insert(0, (job, attempts))
                    continue
                record = self.record(job, found)
                if attempts > 1 and "samples" in record and record["others"] > report.QUIET:
                    waiting.append((job, attempts - 1))
                else:
                    self.keep(record)

    def has(self, job: Job) -> bool:
        key = (job.shape, job.config.engine, job.config.name, job.case.name(), job.turn)
        return any((one["shape"], one["engine"], one["config"], one["case"], one["round"]) == key for one in self.records)

    def left_out(self, job: Job) -> bool:
        """A peer's configuration that fell behind."""
        where, within = (None, 0.8) if job.turn == 0 else (job.case.name(), 0.9)
        engine = job.config.engine
        return engine in engines.PEERS and job.config.name in report.fallen(self.records, job.shape, engine, where, within)

    def jobs(self, shape: str, turn: int) -> list[Job]:
        """Of one round, engine after engine for each case; every other round in the other order."""
        chosen = [one for one in CONFIGS if one.engine in self.options.engines and one.name not in self.options.without]
        configs = chosen if turn % 2 == 0 else chosen[::-1]
        jobs = [Job(shape, config, case, turn) for case in self.options.cases for config in configs]
        return [job for job in jobs if not self.has(job)]

    def serving(self, shape: str) -> None:
        """serving.jsonl gets a line a round: the same batch offline and through the router."""
        for turn in range(self.options.rounds):
            for config in (one for one in CONFIGS if one.engine == QSERVE):
                command = [sys.executable, str(HERE / "serving.py"), str(self.places.qserve), str(self.places.models / shape / "qserve"),
                           str(self.places.threads), *SERVED, *config.arguments]
                for _ in range(ATTEMPTS):
                    found = self.measured([command], [0])[0]
                    if found["others"] <= report.QUIET:
                        break
                result = json.loads(found["stdout"]) if found["rc"] == 0 else {"absent": found["stderr"].strip()[-300:]}
                record = {"shape": shape, "config": config.name, "round": turn, "others": found["others"], **result}
                with (self.options.directory / "serving.jsonl").open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(f"{shape} through the router: {config.name}: {served_text(record)}", flush=True)

    def all(self) -> None:
        for turn in range(self.options.rounds):
            for shape in self.options.shapes:
                self.do(self.jobs(shape, turn))


def served_text(record: dict) -> str:
    if "absent" in record:
        return f"absent: {record['absent']}"
    offline, grpc = (record[key]["tokens_per_second"] for key in ("offline", "grpc"))
    return (f"{record['streams']} streams, {record['prompt']} in, {record['output']} out: {grpc:.1f} tokens/s of the whole run, offline "
            f"{offline:.1f}: {100 * grpc / offline:.1f} %, others {100 * record['others']:.0f} %")


def summary(record: dict) -> str:
    if "absent" in record:
        return f"absent: {record['absent']}"
    one = record["samples"][-1]
    return (f"prefill {one['prefill']:7.1f}  decode {one['decode']:6.1f} tokens/s  {record['peak_rss'] >> 20} MiB  "
            f"others {100 * record['others']:.0f} %")


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def load(directory: pathlib.Path) -> list[dict]:
    return read_lines(directory / "samples.jsonl")


def read_lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def cpu() -> dict:
    fields: dict[str, str] = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_tile", "amx_int8")
    memory = next(line for line in pathlib.Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {"cpu": fields.get("model name", platform.machine()), "family": fields.get("cpu family"), "model": fields.get("model"),
            "cores": len(os.sched_getaffinity(0)), "memory": memory.split(":")[1].strip(), "isa": [one for one in known if one in flags]}


def versions(cache: pathlib.Path, qserve: pathlib.Path) -> dict:
    path = cache / "versions.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    program = subprocess.run([str(qserve / "qserve-bench"), "--version"], capture_output=True, text=True, check=False)
    return {**found, "qserve": program.stdout.strip()}


def measure_ceilings(run: Run) -> dict:
    commands = [[str(run.places.qserve / "kernels_bench"), "--model", "1b", "--threads", str(run.places.threads), "--m", "1,8,32,512"],
                [str(run.places.qserve / "attention_bench"), "--only", "1b"]]
    kernels, *attention = run.measured(commands, [30, 30])
    return {**ceilings.parse_kernels(kernels["stdout"]), "others": kernels["others"],
            "attention": attention[0]["stdout"].splitlines() if attention else []}


def describe(run: Run) -> None:
    """run.json, once for a directory; ceilings are measured then."""
    path = run.options.directory / "run.json"
    if not path.exists():
        head = {"time": now(), "command": "tests/bench/peers.py " + run.anonymous(shlex.join(sys.argv[1:])), "machine": cpu(),
                "threads": run.options.threads, "versions": versions(run.options.cache, run.options.qserve),
                "ceilings": measure_ceilings(run)}
        path.write_text(json.dumps(head, indent=1) + "\n")


def print_tables(directories: list[pathlib.Path]) -> None:
    for directory in directories:
        head, records = json.loads((directory / "run.json").read_text()), load(directory)
        machine = head["machine"]
        print(f"{machine['cpu']}, {machine['cores']} cores, {head['threads']} threads, ISA {head['ceilings']['isa']}; read bandwidth "
              f"{head['ceilings']['bandwidth_gbs']:.1f} GB/s, integer peak {head['ceilings']['integer_peak_gops']:.0f} GOPS; commits "
              f"{', '.join(dict.fromkeys(one['commit'] for one in records if one.get('commit')))}\n")
        for shape in dict.fromkeys(record["shape"] for record in records):
            print(f"### {shape}\n\n{report.table(records, shape, 'amx_int8' in machine['isa'])}")
        for line in read_lines(directory / "serving.jsonl"):
            print(f"- {line['config']}: {served_text(line)}")
        print(f"\n### Kernels in the same run\n\n{ceilings.table(head['ceilings'])}")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="verb", required=True)
    run = commands.add_parser("run")
    run.add_argument("directory", type=pathlib.Path)
    run.add_argument("--cache", type=pathlib.Path, required=True, help="what peers.sh has made")
    run.add_argument("--qserve", type=pathlib.Path, required=True, help="the folder of qserve's programs")
    run.add_argument("--shapes", type=lambda text: text.split(","), default=["llama-3.2-1b"])
    run.add_argument("--engines", type=lambda text: text.split(","), default=[QSERVE, *engines.PEERS])
    run.add_argument("--cases", type=lambda text: text.split(","), help="BATCHxCONTEXT,...")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    run.add_argument("--limit", type=int, default=600, help="seconds for one process, and for one call of --prefix")
    run.add_argument("--prefix", default="", help="a command that every measurement runs under")
    run.add_argument("--serve", action="store_true", help="afterwards also a batch through the router, beside the same offline")
    run.add_argument("--without", action="append", default=[], help="a configuration's name; may be repeated")
    run.add_argument("--rest", type=float, default=0, help="seconds of rest for each second measured, where others need the machine")
    run.add_argument("--share-prompts", action="store_true", help="see openvino_bench.py --share")
    run.add_argument("--quick", action="store_true", help=f"the cases {', '.join(QUICK_CASES)} only")
    run.add_argument("--all", action="store_true", help="also " + ", ".join(case.name() for case in LONG_CASES))
    commands.add_parser("table").add_argument("directories", type=pathlib.Path, nargs="+")
    plot = commands.add_parser("plots")
    plot.add_argument("directory", type=pathlib.Path)
    plot.add_argument("output", type=pathlib.Path)
    options = parser.parse_args(arguments)
    if options.verb == "run":
        wanted = options.cases or (QUICK_CASES if options.quick else [case.name() for case in CASES + (LONG_CASES * options.all)])
        known = {case.name(): case for case in CASES + LONG_CASES}
        options.cases = [known[name] for name in wanted]
    return options


def main(arguments: list[str]) -> None:
    options = parse_arguments(arguments)
    if options.verb == "table":
        print_tables(options.directories)
    elif options.verb == "plots":
        head = json.loads((options.directory / "run.json").read_text())
        plots.draw_all(head, load(options.directory), options.output)
    else:
        options.directory.mkdir(parents=True, exist_ok=True)
        run = Run(options)
        describe(run)
        run.all()
        if options.serve:
            run.serving(options.shapes[0])
        print_tables([options.directory])


if __name__ == "__main__":
    main(sys.argv[1:])
