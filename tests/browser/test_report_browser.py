"""Every kind of report in a real browser: it fits its window at any width and asks for nothing.

One page holds the reports in frames of all widths and looks into them: a report itself may not
run scripts, and a headless window cannot be narrower than 500 pixels.
"""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest

from report_documents import DOCUMENTS, bench, study
from weft.cli import main
from weft.report import document, render, report_of

TRACES = Path(__file__).parents[1] / "data" / "traces"
WIDTHS = (360, 800, 1280, 2560)
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Google Chrome on PATH")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=20000"),
    "--allow-file-access-from-files",
)

FRAMES = """<!DOCTYPE html><body style="margin:0"><pre id="probe"></pre><script>
const seen = [];
function look(name, width, frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  for (const one of page.querySelectorAll("details")) one.open = true;
  const shown = (one) => one.getBoundingClientRect().width > 0;
  const name_of = (one) => one.tagName + "." + one.className + ": " + one.textContent.slice(0, 60);
  const ticks = [...page.querySelectorAll(".axis")].flatMap((axis) => {
    const spans = [...axis.querySelectorAll("span")].filter(shown);
    return spans.slice(1).filter((span, index) =>
      span.getBoundingClientRect().left < spans[index].getBoundingClientRect().right);
  });
  seen.push({
    name, width,
    page: Math.max(page.documentElement.scrollWidth, page.body.scrollWidth),
    overflowing: [...page.querySelectorAll("main *, header *")].filter((one) =>
      !one.closest("svg, thead") && one.getBoundingClientRect().right > width + 1).map(name_of),
    scrolling: [...page.querySelectorAll(".scroll")].filter((one) =>
      one.scrollWidth > one.clientWidth + 1).map((one) => one.ariaLabel),
    ticks: ticks.map(name_of),
    empty: [...page.querySelectorAll(".plot svg")].filter((one) =>
      !one.getBoundingClientRect().height).length,
    plots: page.querySelectorAll(".chart").length,
    first: page.querySelector("section").id,
    warned: page.querySelector(".warning, .summary").getBoundingClientRect().top < 400,
    ink: view.getComputedStyle(page.body).color,
    fetched: view.performance.getEntriesByType("resource").length,
  });
}
async function all() {
  for (const [name, width] of PLACES) {
    const frame = document.createElement("iframe");
    frame.style = `border:0;width:${width}px;height:900px`;
    frame.src = name + ".html";
    await new Promise((done) => { frame.onload = done; document.body.append(frame); });
    look(name, width, frame);
    frame.remove();
  }
  document.getElementById("probe").textContent = JSON.stringify(seen);
}
all();
</script></body>"""


def visit(
    pages: dict[str, str], folder: Path, scheme: Literal["light", "dark"], widths: tuple[int, ...]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What the probe saw of every page at every width, and what the browser wrote on its console."""
    assert BROWSER is not None
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page)
    places = json.dumps([(name, width) for name in pages for width in widths])
    (folder / "frames.html").write_text(FRAMES.replace("PLACES", places))
    options = (
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--dump-dom",
    )
    address = (folder / "frames.html").as_uri()
    printed = subprocess.run(
        [BROWSER, *FLAGS, *options, address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="probe"[^>]*>(.+?)</pre>', printed.stdout, re.DOTALL)
    assert found, printed.stderr[-2000:]
    console = [line for line in printed.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


COMMANDS = {
    "predict": ("predict", "llama-3.1-70b", "--tp", "4", "--pp", "2"),
    "latency": ("predict", "llama-3.1-8b", "--tp", "4", "--accelerator", "h200-sxm"),
    "plan-real": ("plan", "llama-3.1-70b", "--gpus", "8"),
    "trace": ("trace", "llama-2-7b", "--dry-run", "--tp", "2", "--sp", "2"),
    "imported": ("import", *sorted(map(str, TRACES.glob("vllm_cpu_tp2pp2_rank*")))),
    "replicas": (
        "import",
        *sorted(map(str, (TRACES / "replicas").glob("graphs_rank*"))),
        *("--model", str(TRACES / "replicas" / "model")),
    ),
}


@functools.cache
def pages() -> dict[str, str]:
    """Reports of what commands print, and of results that would take them long."""
    found = {name: make() for name, make in DOCUMENTS.items()}
    found["import"]["conformance"]["conforms"] = False
    found |= {"engines": study(), "serve": bench()}
    return {name: render(report_of([document(value, name)])) for name, value in found.items()}


def test_every_report_fits_every_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = dict(pages())
    for name, command in COMMANDS.items():
        assert main.run([*command, "--format", "json"]) == 0
        value = json.loads(capsys.readouterr().out)
        every[name] = render(report_of([document(value, name)]))
    assert max(len(page.encode()) for page in every.values()) < 1_500_000
    seen, console = visit(every, tmp_path, "light", WIDTHS)
    assert console == []
    assert len(seen) == len(every) * len(WIDTHS)
    for one in seen:
        place = f"{one['name']} at {one['width']}"
        assert one["page"] <= one["width"], place
        assert one["overflowing"] == one["ticks"] == one["scrolling"] == [], place
        assert one["first"] == "answer", place
        assert one["warned"], place
        assert one["plots"], place
        assert one["empty"] == one["fetched"] == 0, place


def test_a_dark_window_gets_a_dark_page(tmp_path: Path) -> None:
    (dark,), console = visit({"plan": pages()["plan"]}, tmp_path, "dark", (360,))
    assert console == []
    assert min(map(int, re.findall(r"\d+", dark["ink"])[:3])) > 128


def test_the_probe_sees_what_is_wrong(tmp_path: Path) -> None:
    """A paragraph that is too wide, a script, and a request."""
    bad = (
        '<p style="width:900px">wide</p><script>1</script><img src="https://example.invalid/x.png">'
    )
    page = pages()["plan"].replace("<main>", f"<main><section>{bad}</section>")
    (seen,), console = visit({"bad": page}, tmp_path, "light", (360,))
    assert seen["page"] > 360
    assert seen["overflowing"]
    assert seen["first"] == ""
    assert sum("Content Security Policy" in line for line in console) >= 2
