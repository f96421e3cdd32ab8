"""The plots of docs/PERFORMANCE.md from a run of peers.py: speed over batch, over context, and a step's time against the roofline.

Called by peers.py; pure but for writing the files. A peer's line shows its best configuration at each point, as the tables do.
"""

import json
import pathlib

import report
import svg
from engines import LLAMA, OPENVINO, QSERVE
from report import DECODE, INT4_HEAD, INT8_HEAD, PREFILL, Metric

# Name, role, engine, configuration (None: the best of each point), dashed.
LINES = (("qserve, int4 head", "qserve", QSERVE, INT4_HEAD, False), ("qserve, int8 head", "qserve", QSERVE, INT8_HEAD, True),
         ("llama.cpp", "llama", LLAMA, None, False), ("OpenVINO GenAI", "openvino", OPENVINO, None, False))


def series(records: list[dict], metric: Metric, places: list[tuple[float, str]]) -> list[svg.Series]:
    """A line for each engine over (x, case)."""
    found = []
    for name, role, engine, config, dashed in LINES:
        points = []
        for x, case in places:
            one = report.of_engine([record for record in records if record["case"] == case], engine, metric, config)
            if one:
                points.append(svg.Point(x, one.median, one.least, one.most))
        found.append(svg.Series(name, role, points, dashed))
    return found


def over(records: list[dict], metric: Metric, title: str, batch: int | None = None, context: int | None = None) -> svg.Panel:
    """A panel over batches at one context, or over contexts at one batch."""
    seen = sorted({(record["batch"], record["context"], record["case"]) for record in records})
    places = [(float(one_batch if batch is None else one_context), case) for one_batch, one_context, case in seen
              if batch in (None, one_batch) and context in (None, one_context)]
    return svg.Panel(title, "batch, sequences" if batch is None else "context, tokens", metric.title, series(records, metric, places))


def about_qserve(records: list[dict]) -> dict | None:
    return next((one for one in records if one["engine"] == QSERVE and one["config"] == INT4_HEAD and one.get("step_weight_bytes")), None)


def roofline(records: list[dict], head: dict) -> svg.Panel | None:
    """Milliseconds of a decoding step at context 128, beside what reading weights and KV and multiplying would take at the ceilings
    measured in the same run."""
    about = about_qserve(records)
    if about is None:
        return None
    bandwidth, peak = head["ceilings"]["bandwidth_gbs"] * 1e9, head["ceilings"]["integer_peak_gops"] * 1e9
    reads, multiplies, steps = [], [], []
    for record in sorted((one for one in records if one["context"] == 128 and one["engine"] == QSERVE), key=lambda one: one["batch"]):
        batch = record["batch"]
        if record["config"] != INT4_HEAD or batch in {point.x for point in reads}:
            continue
        positions = batch * (record["context"] + record["output"] / 2)
        read = 1e3 * (about["step_weight_bytes"] + positions * about["kv_bytes_per_token"]) / bandwidth
        multiply = 1e3 * batch * about["token_operations"] / peak
        reads.append(svg.Point(batch, read, read, read))
        multiplies.append(svg.Point(batch, multiply, multiply, multiply))
    for line in series(records, DECODE, [(point.x, f"{point.x:g}x128") for point in reads]):
        points = [svg.Point(p.x, 1e3 * p.x / p.y, 1e3 * p.x / p.most, 1e3 * p.x / p.least) for p in line.points]
        steps.append(svg.Series(line.name, line.role, points, line.dashed))
    roofs = [svg.Series("weights + KV, read", "roof", reads, True, False), svg.Series("integer products", "roof", multiplies, False, False)]
    return svg.Panel("A decoding step against the roofline", "batch, sequences", "milliseconds a step (logarithmic)", steps + roofs, True)


def subtitle(head: dict, shape: str) -> str:
    ceilings = head["ceilings"]
    return (f"{shape}, {head['machine']['cpu']}, {head['threads']} threads, {ceilings['isa']}; {ceilings['bandwidth_gbs']:.1f} GB/s, "
            f"{ceilings['integer_peak_gops']:.0f} GOPS; medians, bars from least to most")


def draw(records: list[dict], head: dict, shape: str) -> dict[str, str]:
    """File names and contents for one shape; a plot without two cases to join is left out."""
    below = subtitle(head, shape)
    charts = {
        "batch": ("Speed over batch, context 128",
                  [over(records, DECODE, "Decoding", context=128), roofline(records, head)]),
        "context": ("Speed over context",
                    [over(records, DECODE, "Decoding, 1 sequence", batch=1), over(records, DECODE, "Decoding, 8 sequences", batch=8)]),
        "prefill": ("Speed over the prompt's length", [over(records, PREFILL, "Prefill, 1 prompt", batch=1)]),
    }
    drawn = {}
    for name, (title, panels) in charts.items():
        shown = [panel for panel in panels if panel is not None and any(len(one.points) > 1 for one in panel.series)]
        if shown:
            drawn[f"{shape}-{name}.svg"] = svg.chart(title, below, shown)
    return drawn


def draw_all(head: dict, records: list[dict], output: pathlib.Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for shape in dict.fromkeys(record["shape"] for record in records):
        for name, content in draw([record for record in records if record["shape"] == shape], head, shape).items():
            (output / name).write_text(content)
            print(json.dumps({"wrote": str(output / name)}))
