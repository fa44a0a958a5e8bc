"""A report in a real browser: it draws every plot, fits its window and asks for nothing.

The page is opened in a frame of the wanted width, because a headless window cannot
be narrower than 500 pixels. A probe in the page reports to the frame's parent.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from weft.closed_form.schedule import closed_form
from weft.report import (
    Chart,
    Prose,
    Report,
    Section,
    Table,
    compared_rows,
    figures,
    render,
    schedule_sections,
)
from weft.report.node import Node
from weft.report.rows import comparison_cells
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Google Chrome on PATH")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=10000"),
)

PROBE = """<script>
const requests = [];
new PerformanceObserver((list) => requests.push(...list.getEntries().map((e) => e.name)))
  .observe({ type: "resource", buffered: true });
addEventListener("securitypolicyviolation", (event) => requests.push(event.blockedURI));
const marks = (chart) => chart.querySelectorAll(".js-plotly-plot .trace").length;
const hidden = {};
setTimeout(() => {
  const chart = document.querySelector(".chart");
  hidden.before = marks(chart);
  chart.querySelector(".legend button")?.click();
  setTimeout(() => { hidden.after = marks(chart); }, 1000);
}, 3000);
setTimeout(() => parent.postMessage(JSON.stringify({
  width: innerWidth,
  page: document.documentElement.scrollWidth,
  body: document.body.scrollWidth,
  plots: document.querySelectorAll(".plot").length,
  drawn: document.querySelectorAll(".js-plotly-plot .main-svg:first-child").length,
  marks: marks(document),
  hidden,
  overflowing: [...document.querySelectorAll("main *, header *")].filter((element) =>
    !element.closest(".scroll, nav, svg") &&
    element.getBoundingClientRect().right > innerWidth + 1).map((element) => element.tagName),
  ink: getComputedStyle(document.body).color,
  plotInk: getComputedStyle(document.querySelector(".xtick text, .x2tick text, .xtitle")).fill,
  requests,
}), "*"), 5000);
</script>"""

FRAME = """<!DOCTYPE html><body style="margin:0"><pre id="probe" style="display:none"></pre>
<script>addEventListener("message", (event) => {{
  document.getElementById("probe").textContent = event.data; }});</script>
<iframe src="{address}" style="border:0;width:{width}px;height:{height}px"></iframe></body>"""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What the probe saw, and what the browser wrote on its console."""

    seen: dict[str, Any]
    console: list[str]


def visit(
    page: str, folder: Path, width: int, scheme: Literal["light", "dark"], height: int = 2400
) -> Visit:
    (folder / "report.html").write_text(page.replace("</body>", PROBE + "</body>"))
    address = (folder / "report.html").as_uri()
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(address=address, width=width, height=height))
    shot = folder / f"report-{width}-{scheme}.png"
    printed = browse(
        frame,
        folder / "profile",
        f"--window-size={max(width, 500)},{height}",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--dump-dom",
        f"--screenshot={shot}",
    )
    found = re.search(r'<pre id="probe"[^>]*>(.*?)</pre>', printed.stdout, re.DOTALL)
    assert found, printed.stderr[-2000:]
    console = [line for line in printed.stderr.splitlines() if ":CONSOLE" in line]
    return Visit(seen=json.loads(html.unescape(found[1])), console=console)


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def every_figure() -> list[Chart]:
    events = [
        figures.TimelineEvent(rank=rank, name="n", kind=kind, start_us=start, end_us=start + 5)
        for rank in range(4)
        for start, kind in enumerate(("compute", "all_reduce", "wait"))
    ]
    latency = [
        figures.LatencyPoint(
            algorithm=name, size_bytes=2**size, min_us=size, median_us=size + 1, max_us=size + 3
        )
        for name in ("ring", "hierarchical direct exchange", "one-shot push")
        for size in range(13, 22)
    ]
    layouts = [
        figures.LayoutPoint(
            name=f"tp{n}", tpot_ms=40 / n, throughput_per_gpu=90 / n, on_front=n < 8
        )
        for n in (1, 2, 4, 8)
    ]
    predictions = [
        figures.Prediction(name="llama-3.1-8b tp2", predicted=5, low=4, high=6, measured=5.5)
    ]
    drawn = {
        "volume by layout": figures.volume_by_layout({"tp2": {"all_reduce": 2e8, "send": 1e6}}),
        "volume by decode length": figures.volume_by_decode_length({"tp2": [(1, 1e6), (9, 2e6)]}),
        "message sizes": figures.message_sizes({"all_reduce": {8192: 8255, 2**20: 65}}),
        "timeline": figures.step_timeline(events),
        "time share": figures.time_share([("prefill", {"compute": 9.0}), ("decode", {"wait": 2})]),
        "waiting": figures.waiting_by_rank({0: {"wait": 5, "transfer": 9}, 1: {"transfer": 8}}),
        "latency": figures.latency_by_size(latency),
        "pareto": figures.pareto_front(layouts),
        "predicted": figures.predicted_and_measured(predictions, x_title="TPOT (ms)"),
    }
    return [Chart(title=name, figure=figure, note="A note.") for name, figure in drawn.items()]


def full_report() -> str:
    layout, workload = Layout.parse("tp2xpp2"), Workload()
    schedule = closed_form(load_spec("llama-3.1-8b"), layout, workload, "vllm-v0")
    rows = Node(compared_rows({"run": schedule, "dry_run": schedule}), "rows")
    long_name = "a-name-without-any-space-" * 8
    return render(
        Report(
            title=f"A report of everything, {long_name}",
            summary="every figure there is",
            sections=[
                Section(title="All figures", blocks=every_figure()),
                Section(title="Compared", blocks=[Table(caption="c", rows=comparison_cells(rows))]),
                Section(title=long_name, blocks=[Prose(text=long_name)]),
                *schedule_sections(schedule),
            ],
        )
    )


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_report_draws_and_fits(
    tmp_path: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    page = full_report()
    visited = visit(page, tmp_path, width, scheme)
    seen = visited.seen
    assert visited.console == []
    assert seen["requests"] == []
    assert seen["width"] == width
    assert max(seen["page"], seen["body"]) <= width
    assert seen["overflowing"] == []
    assert seen["drawn"] == seen["plots"] == len(every_figure()) + 2
    assert seen["marks"] >= seen["plots"]
    assert seen["hidden"] == {"before": 2, "after": 1}, "a click in the legend hides one trace"
    for ink in ("ink", "plotInk"):
        bright = [int(part) > 128 for part in re.findall(r"\d+", seen[ink])[:3]]
        assert bright == [scheme == "dark"] * 3
    assert (tmp_path / f"report-{width}-{scheme}.png").stat().st_size > 20_000


def test_probe_sees_a_page_that_is_too_wide(tmp_path: Path) -> None:
    page = full_report().replace("<main>", '<main><p style="width:900px">wide</p>')
    seen = visit(page, tmp_path, 390, "light").seen
    assert seen["page"] > 390
    assert "P" in seen["overflowing"]


def test_probe_sees_a_request_and_a_script_error(tmp_path: Path) -> None:
    bad = '<main><img src="https://example.invalid/x.png"><script>undefinedName()</script>'
    visited = visit(full_report().replace("<main>", bad), tmp_path, 390, "light")
    assert any("example.invalid" in request for request in visited.seen["requests"])
    assert any("undefinedName" in line for line in visited.console)
