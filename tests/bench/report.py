"""Medians, spreads and ratios of a run of peers.py, as Markdown. Pure functions over records; tested by peers_test.py.

A record is one process of one engine: {"shape", "engine", "config", "case", "batch", "context", "round", "others", "peak_rss",
"peak_anonymous", "samples": [{"prefill", "prefill_seconds", "decode"}]}; or with "absent", the reason, instead of samples.
"""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from engines import LLAMA, OPENVINO, PEERS, QSERVE

QUIET = 0.06  # others' share of the processors up to which a measurement counts
INT8_HEAD, INT4_HEAD = "KV4, int8 head", "KV4, int4 head"


@dataclass(frozen=True)
class Metric:
    key: str
    title: str
    value: Callable[[dict, dict], float]  # of a record and one of its samples
    more_is_better: bool = True
    digits: int = 1


PREFILL = Metric("prefill", "prefill, tokens/s", lambda record, sample: sample["prefill"])
DECODE = Metric("decode", "decode, tokens/s", lambda record, sample: sample["decode"])
FIRST = Metric("first", "time to first token, s", lambda record, sample: sample["prefill_seconds"], False, 2)
MEMORY = Metric("memory", "peak resident memory, MiB", lambda record, sample: record["peak_rss"] / 2**20, False, 0)
ANONYMOUS = Metric("anonymous", "of it not mapped from files, MiB", lambda record, sample: record["peak_anonymous"] / 2**20, False, 0)

# What the tables show: a prompt's own speed where it is one, and where eight are computed together.
ROWS: tuple[tuple[Metric, str], ...] = (
    *((PREFILL, case) for case in ("1x128", "8x128", "1x1024", "1x4096")),
    *((DECODE, case) for case in ("1x128", "4x128", "8x128", "16x128", "32x128", "1x1024", "8x1024", "32x1024", "1x4096", "8x4096")),
    *((FIRST, case) for case in ("1x128", "1x1024", "1x4096")),
    *((metric, case) for case in ("1x128", "32x128", "8x1024") for metric in (MEMORY, ANONYMOUS)),
)

# Against the best peer, on llama-3.2-1b and two cores; with AMX and without where they differ.
AIM_SHAPE = "llama-3.2-1b"
AIMS = {("decode", "1x128"): (1.05, 1.05), ("decode", "8x128"): (3.0, 3.0), ("decode", "32x128"): (4.0, 4.0),
        ("decode", "8x1024"): (3.0, 3.0), ("prefill", "1x128"): (4.0, 2.5), ("prefill", "8x128"): (4.0, 2.5),
        ("prefill", "1x1024"): (4.0, 2.5), ("prefill", "1x4096"): (4.0, 2.5)}


@dataclass(frozen=True)
class Figure:
    median: float
    least: float
    most: float
    count: int
    config: str
    quiet: bool

    def text(self, digits: int) -> str:
        spread = f" ({self.least:.{digits}f} to {self.most:.{digits}f})" if self.count > 1 else ""
        return f"{self.median:.{digits}f}{spread}" + ("" if self.quiet else " !")


@dataclass(frozen=True)
class Line:
    """One row of a table. Ratios are above 1 where qserve is better; None where something is absent."""

    metric: Metric
    case: str
    int8: Figure | None
    int4: Figure | None
    peers: dict[str, Figure | None]
    ratio8: float | None
    ratio4: float | None
    aim: float | None

    def best_peer(self) -> Figure | None:
        return best(list(self.peers.values()), self.metric)


def figure(records: Iterable[dict], metric: Metric, config: str) -> Figure | None:
    """Of one configuration and case. Records that others disturbed count only where there is no other."""
    measured = [record for record in records if record.get("samples")]
    calm = [record for record in measured if record["others"] <= QUIET]
    values = [metric.value(record, sample) for record in calm or measured for sample in record["samples"]]
    if not values:
        return None
    return Figure(statistics.median(values), min(values), max(values), len(values), config, bool(calm))


def best(figures: list[Figure | None], metric: Metric) -> Figure | None:
    there = [one for one in figures if one is not None]
    if not there:
        return None
    return (max if metric.more_is_better else min)(there, key=lambda one: one.median)


def of_engine(records: list[dict], engine: str, metric: Metric, config: str | None = None) -> Figure | None:
    """The engine's best configuration; with `config` that one."""
    configs = dict.fromkeys(record["config"] for record in records if record["engine"] == engine)
    figures = [figure([one for one in records if one["engine"] == engine and one["config"] == name], metric, name)
               for name in configs if config is None or name == config]
    return best(figures, metric)


def ratio(ours: Figure | None, theirs: Figure | None, metric: Metric) -> float | None:
    if ours is None or theirs is None:
        return None
    return ours.median / theirs.median if metric.more_is_better else theirs.median / ours.median


def lines(records: list[dict], shape: str, has_amx: bool) -> list[Line]:
    found = []
    for metric, case in ROWS:
        here = [record for record in records if record["shape"] == shape and record["case"] == case]
        int8, int4 = (of_engine(here, QSERVE, metric, config) for config in (INT8_HEAD, INT4_HEAD))
        peers = {engine: of_engine(here, engine, metric) for engine in PEERS}
        if int8 is None and int4 is None and not any(peers.values()):
            continue
        theirs = best(list(peers.values()), metric)
        aim = AIMS.get((metric.key, case)) if shape == AIM_SHAPE else None
        found.append(Line(metric, case, int8, int4, peers, ratio(int8, theirs, metric), ratio(int4, theirs, metric),
                          aim and aim[0 if has_amx else 1]))
    return found


def cell(one: Figure | None, metric: Metric, named: bool = False) -> str:
    if one is None:
        return "absent"
    return one.text(metric.digits) + (f", {one.config}" if named else "")


def verdict(line: Line) -> str:
    if line.ratio4 is None:
        return "-"
    lead = "**lost**" if line.ratio4 < 1 else "won"
    if line.aim is None:
        return lead
    return f"{lead}; aim {line.aim:g}x {'met' if line.ratio4 >= line.aim else 'missed'}"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def table(records: list[dict], shape: str, has_amx: bool) -> str:
    """Markdown. Each peer shows its best configuration of the row; ratios are to the better of them."""
    out = ["| row (batch x context) | qserve, int8 head | qserve, int4 head | llama.cpp | OpenVINO GenAI | int8 head / best peer | "
           "int4 head / best peer | |", "|---|---|---|---|---|---|---|---|"]
    for line in lines(records, shape, has_amx):
        metric = line.metric
        out.append(f"| {metric.title}, {line.case.replace('x', ' x ')} | {cell(line.int8, metric)} | {cell(line.int4, metric)} | "
                   f"{cell(line.peers[LLAMA], metric, True)} | {cell(line.peers[OPENVINO], metric, True)} | {times(line.ratio8)} | "
                   f"{times(line.ratio4)} | {verdict(line)} |")
    return "\n".join(out) + "\n"


def fallen(records: list[dict], shape: str, engine: str, case: str | None, within: float) -> set[str]:
    """Configurations of an engine that were measured and never came within `within` of its best, at prefill or decoding: of the case,
    or of any case where it is None."""
    mine = [one for one in records if (one["shape"], one["engine"]) == (shape, engine)]
    near: set[str] = set()
    for name in {record["case"] for record in mine} if case is None else {case}:
        here = [one for one in mine if one["case"] == name]
        for metric in (PREFILL, DECODE):
            top = of_engine(here, engine, metric)
            for config in {one["config"] for one in here}:
                figure_of_it = of_engine(here, engine, metric, config)
                if top and figure_of_it and figure_of_it.median >= within * top.median:
                    near.add(config)
    return {one["config"] for one in mine} - near
