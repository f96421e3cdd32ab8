"""What the machine can do at most, and what our kernels reach of it, from the output of kernels_bench and attention_bench.

Called by peers.py, in the same run as the engines. Tested by peers_test.py.
"""

import re

HEADER = re.compile(r"^(?P<device>.*), (?P<isa>\w+): read bandwidth (?P<bandwidth>[\d.]+) GB/s, integer peak (?P<peak>[\d.]+) GOPS")
LINEAR = re.compile(r"^(?P<layer>\S+(?: \S+)?)\s+(?P<n>\d+) x (?P<k>\d+)\s+m (?P<m>\d+)\s+(?P<ms>[\d.]+) ms\s+(?P<gbs>[\d.]+) GB/s\s+"
                    r"[\d.]+ %\s+(?P<gops>[\d.]+) GOPS")


def parse_kernels(output: str) -> dict:
    """{"device", "isa", "bandwidth_gbs", "integer_peak_gops", "linears": [...]}. Raises ValueError without a first line."""
    lines = output.splitlines()
    header = next((match for match in map(HEADER.match, lines) if match), None)
    if header is None:
        raise ValueError("kernels_bench printed no ceilings")
    bandwidth, peak = float(header["bandwidth"]), float(header["peak"])
    linears = []
    for match in filter(None, map(LINEAR.match, lines)):
        gbs, gops = float(match["gbs"]), float(match["gops"])
        linears.append({"layer": match["layer"], "n": int(match["n"]), "k": int(match["k"]), "m": int(match["m"]),
                        "ms": float(match["ms"]), "of_bandwidth": round(gbs / bandwidth, 4) if bandwidth else None,
                        "of_peak": round(gops / peak, 4) if peak else None})
    return {"device": header["device"], "isa": header["isa"], "bandwidth_gbs": bandwidth, "integer_peak_gops": peak,
            "linears": linears}


def table(ceilings: dict) -> str:
    """Markdown: each linear as a fraction of what bounds it, bandwidth for one row and the integer peak for many."""
    batches = sorted({row["m"] for row in ceilings["linears"]})
    layers = list(dict.fromkeys((row["layer"], row["n"], row["k"]) for row in ceilings["linears"]))
    titles = [f"M = {m}, of {'bandwidth' if m == 1 else 'peak'}" for m in batches]
    out = [f"| layer (N x K) | {' | '.join(titles)} |", "|---" * (len(batches) + 1) + "|"]
    for layer, n, k in layers:
        cells = []
        for m in batches:
            row = next((one for one in ceilings["linears"] if (one["layer"], one["n"], one["k"], one["m"]) == (layer, n, k, m)), None)
            share = row and row["of_bandwidth" if m == 1 else "of_peak"]
            cells.append(f"{100 * share:.0f} %" if share else "-")
        out.append(f"| {layer} {n} x {k} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"
