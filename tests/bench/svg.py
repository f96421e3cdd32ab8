"""Line charts as SVG, without any library: panels side by side, each with its axes, lines, spreads and names at the lines' ends.

Colours follow the reader's light or dark scheme. Called by plots.py; tested by peers_test.py.
"""

import math
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

# Light and dark of each role; a series names its role, so a thing keeps its colour in every plot.
COLOURS = {"qserve": ("#2a78d6", "#5598e7"), "llama": ("#d1541f", "#ee7d4d"), "openvino": ("#4a3aa7", "#9f95ee"),
           "roof": ("#6b6a66", "#a3a29b")}
SURFACE, INK, SOFT, GRID = ("#fcfcfb", "#1a1a19"), ("#0b0b0b", "#ffffff"), ("#52514e", "#c3c2b7"), ("#e1e0d9", "#33332f")

HEIGHT, TOP, BOTTOM, LEFT, PLOT, NAMES = 400, 84, 56, 62, 340, 168  # pixels; PLOT: an axis' length, NAMES: room for the series' names
LINE_HEIGHT = 17


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    least: float
    most: float


@dataclass(frozen=True)
class Series:
    name: str
    role: str
    points: list[Point]
    dashed: bool = False
    marks: bool = True


@dataclass(frozen=True)
class Panel:
    title: str
    x_title: str
    y_title: str
    series: list[Series]
    log_y: bool = False
    x_ticks: list[float] = field(default_factory=list)

    def xs(self) -> list[float]:
        return self.x_ticks or sorted({point.x for one in self.series for point in one.points})


def rounded_step(span: float, wanted: int) -> float:
    """1, 2 or 5 times a power of ten, so that about `wanted` steps fill `span`."""
    raw = span / wanted
    power = 10 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def y_scale(panel: Panel) -> tuple[Scale, list[float]]:
    values = [value for one in panel.series for point in one.points for value in (point.least, point.y, point.most)]
    if not panel.log_y:
        step = rounded_step(max(values), 5)
        count = math.ceil(max(values) / step)
        return Scale(0, count * step, False), [step * index for index in range(count + 1)]
    low, high = min(values) * 0.85, max(values) * 1.15
    ticks = [factor * 10**power for power in range(-3, 7) for factor in (1, 2, 5) if low <= factor * 10**power <= high]
    return Scale(low, high, True), ticks


def x_scale(panel: Panel) -> Scale:
    xs = panel.xs()
    return Scale(xs[0], xs[-1] if len(xs) > 1 else xs[0] * 2, True)


def number(value: float) -> str:
    return f"{value:g}"


def apart(wanted: list[float], distance: float, lowest: float) -> list[float]:
    """Positions in the order of `wanted`, as near to it as `distance` between neighbours and the end `lowest` allow."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    before = -math.inf
    for index in order:
        placed[index] = before = max(wanted[index], before + distance)
    after = lowest + distance
    for index in reversed(order):
        placed[index] = after = min(placed[index], after - distance)
    return placed


def style() -> str:
    def rules(which: int) -> str:
        roles = "".join(f".{role}{{stroke:{pair[which]};fill:{pair[which]}}}" for role, pair in COLOURS.items())
        return (f".surface{{fill:{SURFACE[which]}}}.ink{{fill:{INK[which]}}}.soft{{fill:{SOFT[which]}}}"
                f".grid{{stroke:{GRID[which]}}}.ring{{stroke:{SURFACE[which]}}}{roles}")

    return ("<style>text{font:13px system-ui,sans-serif;stroke:none}.title{font-size:16px;font-weight:600}.head{font-weight:600}"
            f".line{{fill:none;stroke-width:2}}.dashed{{stroke-dasharray:6 4}}{rules(0)}"
            f".ink.ink,.soft.soft{{stroke:none}}.mark{{stroke-width:2}}@media(prefers-color-scheme:dark){{{rules(1)}}}"
            ".line.line{fill:none}</style>")


def text(x: float, y: float, words: str, classes: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}" text-anchor="{anchor}">{escape(words)}</text>'


def axes(panel: Panel, left: float) -> list[str]:
    scale, ticks = y_scale(panel)
    bottom, height = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    out = [text(left, TOP - 28, panel.title, "ink head"), text(left, TOP - 11, panel.y_title, "soft"),
           text(left + PLOT / 2, HEIGHT - 14, panel.x_title, "soft", "middle")]
    for tick in ticks:
        y = bottom - height * scale.share(tick)
        out.append(f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{left + PLOT:.1f}" y2="{y:.1f}" class="grid"/>')
        out.append(text(left - 8, y + 4.5, number(tick), "soft", "end"))
    across = x_scale(panel)
    return out + [text(left + PLOT * across.share(x), bottom + 20, number(x), "soft", "middle") for x in panel.xs()]


def drawn_series(panel: Panel, one: Series, left: float) -> list[str]:
    scale, across = y_scale(panel)[0], x_scale(panel)
    bottom, height = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    places = [(left + PLOT * across.share(point.x), bottom - height * scale.share(point.y)) for point in one.points]
    out = []
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" class="line {one.role}{" dashed" if one.dashed else ""}"/>')
    for point, (x, y) in zip(one.points, places):
        high, low = (bottom - height * scale.share(value) for value in (point.most, point.least))
        if low - high > 2:
            out.append(f'<line x1="{x:.1f}" y1="{high:.1f}" x2="{x:.1f}" y2="{low:.1f}" class="{one.role}"/>')
        if one.marks:
            out.append(f'<g class="{one.role}"><circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="ring mark"/></g>')
    return out


def drawn_names(panel: Panel, left: float) -> list[str]:
    scale = y_scale(panel)[0]
    across = x_scale(panel)
    bottom, height = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    named = [one for one in panel.series if one.points]
    ends = [bottom - height * scale.share(one.points[-1].y) for one in named]
    places = apart(ends, LINE_HEIGHT, bottom)
    out = []
    for one, end, y in zip(named, ends, places):
        x = left + PLOT * across.share(one.points[-1].x)
        beside = left + PLOT + 26
        out.append(f'<polyline points="{x + 8:.1f},{end:.1f} {left + PLOT + 12:.1f},{y:.1f} {beside - 4:.1f},{y:.1f}" '
                   f'class="line {one.role}" stroke-opacity="0.6" style="stroke-width:1"/>')
        out.append(text(beside, y + 4.5, one.name, "ink"))
    return out


def chart(title: str, subtitle: str, panels: list[Panel]) -> str:
    """The whole file. A panel without a line is left out; without any, ValueError."""
    shown = [panel for panel in panels if any(len(one.points) > 1 for one in panel.series)]
    if not shown:
        raise ValueError(f"nothing to draw for {title}")
    panel_width = LEFT + PLOT + NAMES
    width = panel_width * len(shown)
    below = subtitle.split("; ") if len(shown) == 1 else [subtitle]
    height = HEIGHT + 24 + LINE_HEIGHT * (len(below) - 1)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           f'role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">', style(),
           f'<rect width="{width}" height="{height}" class="surface"/>', text(16, 26, title, "ink title"),
           *(text(16, HEIGHT + 12 + LINE_HEIGHT * index, line, "soft") for index, line in enumerate(below))]
    for index, panel in enumerate(shown):
        left = panel_width * index + LEFT
        out += axes(panel, left)
        for one in reversed(panel.series):
            out += drawn_series(panel, one, left)
        out += drawn_names(panel, left)
    return "\n".join(out) + "\n</svg>\n"
