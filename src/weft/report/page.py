"""A Report as one HTML file that needs nothing else: no network, no second file.

Plotly's script stands in the file once. A content security policy in the page
forbids every request, so a report cannot reach out even by mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Final

from plotly.offline import get_plotlyjs

from weft import __version__
from weft.report.blocks import Block, Chart, Facts, Prose, Report, Section, Table
from weft.report.tables import badge_html, facts_html, table_html
from weft.report.text import escape
from weft.vocabulary.files import write_file

_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)

_NO_SCRIPT: Final = (
    "<noscript><p>The figures need JavaScript; the tables have the numbers.</p></noscript>"
)


def write_report(report: Report, path: Path) -> Path:
    """Write the page to ``path`` whole or not at all, and return the path.

    Raises UserError where the path cannot be written, EnvironmentUnavailable where the disk
    is full.
    """
    return write_file(path, render(report))


def render(report: Report) -> str:
    """The whole document as text."""
    sections = list(report.sections)
    has_charts = any(isinstance(block, Chart) for section in sections for block in section.blocks)
    scripts = f"{_NO_SCRIPT}<script>{get_plotlyjs()}</script>" if has_charts else ""
    badge = f"{badge_html(report.verdict)} " if report.verdict else ""
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    body = "".join(_section_html(index, section) for index, section in enumerate(sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{_asset('page.css')}</style>\n"
        f"</head>\n<body>\n<header><h1>{escape(report.title)}</h1>"
        f'<p class="summary">{badge}{escape(report.summary)}</p>{_contents(sections)}</header>\n'
        f"<main>{body}</main>\n<footer>weft {escape(__version__)} · {written}</footer>\n"
        f"{scripts}\n<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files("weft.report").joinpath("assets", name).read_text(encoding="utf-8")


def _contents(sections: list[Section]) -> str:
    if len(sections) < 3:
        return ""
    links = (
        f'<a href="#section-{index}">{escape(section.title)}</a>'
        for index, section in enumerate(sections)
    )
    return f'<nav aria-label="Sections">{"".join(links)}</nav>'


def _section_html(index: int, section: Section) -> str:
    blocks = "".join(_block_html(block) for block in section.blocks)
    return f'\n<section id="section-{index}"><h2>{escape(section.title)}</h2>{blocks}</section>'


def _block_html(block: Block) -> str:
    match block:
        case Prose():
            return f"<p>{escape(block.text)}</p>"
        case Facts():
            return facts_html(block)
        case Table():
            return table_html(block)
        case Chart():
            return "".join(_chart_html(block))


def _chart_html(chart: Chart) -> Iterator[str]:
    height = int(chart.figure.layout.height or 320)
    data = chart.figure.to_json(engine="json")
    yield f'<figure><p class="caption">{escape(chart.title)}</p>'
    yield '<div class="chart"><div class="plot" role="img" '
    yield f'aria-label="{escape(chart.title)}" style="height:{height}px">'
    yield f'<script type="application/json">{data}</script></div></div>'
    if chart.note:
        yield f'<figcaption class="note">{escape(chart.note)}</figcaption>'
    yield "</figure>"
