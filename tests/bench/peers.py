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

import ceilings
import engines
import plots
import report
from engines import CASES, CONFIGS, LONG_CASES, QSERVE, QUICK_CASES, Case, Config, Places

HERE = pathlib.Path(__file__).resolve().parent
ATTEMPTS = 3  # of a run that others disturb


class Run:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.places = Places(options.qserve, options.cache / "llama-build" / "bin", options.cache / "openvino-venv" / "bin" / "python",
                             options.cache / "models", options.threads, options.share_prompts)
        self.records = load(options.directory)
        self.file = (options.directory / "samples.jsonl").open("a")

    def measured(self, command: list[str]) -> dict:
        words = [*shlex.split(self.options.prefix), sys.executable, str(HERE / "measured.py"), str(self.options.limit), *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return {"rc": done.returncode, "others": 0.0, "timed_out": False, "stderr": done.stderr[-2000:], "stdout": ""}
        return json.loads(done.stdout)

    def record(self, shape: str, config: Config, case: Case, turn: int) -> dict:
        """What samples.jsonl gets: samples, or why there are none."""
        command = engines.command(self.places, shape, config, case)
        found = self.measured(command)
        record = {"shape": shape, "engine": config.engine, "config": config.name, "case": case.name(), "batch": case.batch,
                  "context": case.context, "output": case.output, "round": turn, "time": now(), "command": shlex.join(command),
                  **{key: found.get(key) for key in ("others", "seconds", "peak_rss", "peak_anonymous")}}
        if found["timed_out"]:
            return {**record, "absent": f"took more than {self.options.limit} s"}
        if found["rc"] != 0:
            return {**record, "absent": f"ended with {found['rc']}: {found['stderr'].strip()[-300:]}"}
        try:
            samples = engines.parse(config.engine, found["stdout"], case)
            return {**record, **engines.about(config.engine, found["stdout"], engines.shape_of(self.places, shape)), "samples": samples}
        except (ValueError, KeyError) as error:
            return {**record, "absent": f"its output was not understood: {error}"}

    def one(self, shape: str, config: Config, case: Case, turn: int) -> None:
        for _ in range(ATTEMPTS):
            record = self.record(shape, config, case, turn)
            time.sleep(self.options.rest * (record["seconds"] or 0))
            calm = record.get("absent") or record["others"] <= report.QUIET
            if calm:
                break
        self.records.append(record)
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        print(f"{shape} {case.name():8} round {turn} {config.label():38} {summary(record)}", flush=True)

    def has(self, shape: str, config: Config, case: Case, turn: int) -> bool:
        key = (shape, config.engine, config.name, case.name(), turn)
        return any((one["shape"], one["engine"], one["config"], one["case"], one["round"]) == key for one in self.records)

    def configs(self, shape: str, case: Case, turn: int) -> list[Config]:
        chosen = [one for one in CONFIGS if one.engine in self.options.engines and one.name not in self.options.without]
        for engine in engines.PEERS:
            where, within = (None, 0.8) if turn == 0 else (case.name(), 0.9)
            fallen = report.fallen(self.records, shape, engine, where, within)
            chosen = [one for one in chosen if one.engine != engine or one.name not in fallen]
        return chosen if turn % 2 == 0 else chosen[::-1]

    def all(self) -> None:
        for turn in range(self.options.rounds):
            for shape in self.options.shapes:
                for case in self.options.cases:
                    for config in self.configs(shape, case, turn):
                        if not self.has(shape, config, case, turn):
                            self.one(shape, config, case, turn)


def summary(record: dict) -> str:
    if "absent" in record:
        return f"absent: {record['absent']}"
    one = record["samples"][-1]
    return (f"prefill {one['prefill']:7.1f}  decode {one['decode']:6.1f} tokens/s  {record['peak_rss'] >> 20} MiB  "
            f"others {100 * record['others']:.0f} %")


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def load(directory: pathlib.Path) -> list[dict]:
    path = directory / "samples.jsonl"
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
    found = run.measured([str(run.places.qserve / "kernels_bench"), "--model", "1b", "--threads", str(run.places.threads), "--m",
                          "1,8,32,512"])
    kernels = {**ceilings.parse_kernels(found["stdout"]), "others": found["others"]}
    attention = run.measured([str(run.places.qserve / "attention_bench"), "--only", "1b"])
    return {**kernels, "attention": attention["stdout"].splitlines()}


def describe(run: Run) -> None:
    """run.json, once for a directory; ceilings are measured then."""
    path = run.options.directory / "run.json"
    if not path.exists():
        head = {"time": now(), "command": "tests/bench/peers.sh " + shlex.join(sys.argv[1:]), "machine": cpu(),
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
        print(f"### Kernels in the same run\n\n{ceilings.table(head['ceilings'])}")


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
    run.add_argument("--limit", type=int, default=600, help="seconds for one process")
    run.add_argument("--prefix", default="", help="a command that every measurement runs under")
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
        print_tables([options.directory])


if __name__ == "__main__":
    main(sys.argv[1:])
