"""The page: everything escaped, nothing fetched, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

import weft.report.page as page_module
from weft.errors import EnvironmentUnavailable, UserError
from weft.report import (
    Badge,
    Chart,
    Facts,
    Prose,
    Report,
    Section,
    Table,
    figures,
    render,
    write_report,
)

RESOURCE_ATTRIBUTES = {"src", "href", "srcset", "data", "action", "poster", "background"}
ALLOWED_TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "h1", "h2", "p", "nav"),
    *("a", "main", "section", "footer", "script", "figure", "figcaption", "div", "span", "table"),
    *(
        "noscript",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "dl",
        "dt",
        "dd",
        "details",
        "summary",
        "small",
    ),
}


class Reader(HTMLParser):
    """Collects tags, attributes and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts.append(data)
        elif self._open != "style":
            self.texts.append(data)


@pytest.fixture(scope="module", autouse=True)
def small_plotly() -> Iterator[None]:
    """Stand in for Plotly's five megabytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "get_plotlyjs", lambda: PLOTLY)
        yield


PLOTLY = "/* Plotly's script */"


def report_saying(text: str) -> Report:
    chart = figures.volume_by_layout({text: {text: 3.0, "all_reduce": 2.0}})
    careless = figures.new_figure(x_title="x").add_scatter(name=f"<i>{text}</i>")
    return Report(
        title=text,
        summary=text,
        verdict=Badge(text=text, tone="bad"),
        sections=[
            Section(
                title=text,
                blocks=[
                    Prose(text=text),
                    Facts(items={text: text}),
                    Table(caption=text, rows=[{text: text}], note=text),
                    Table(caption=text, rows=[{text: 1}], folded=True),
                    Chart(title=text, figure=chart, note=text),
                    Chart(title=text, figure=careless),
                ],
            )
        ]
        * 3,
    )


HOSTILE = st.sampled_from(
    [
        "<script>alert(1)</script>",
        "</script><img src=http://evil.example/x.png onerror=alert(1)>",
        '" onmouseover="alert(1)',
        "' style='background:url(http://evil.example)",
        "<!--",
        "]]>",
        "&lt;b&gt;",
        "%{x} ${y} {z}",
        "\x00\ud800",
        "</style></title></textarea>",
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.one_of(st.text(min_size=1, max_size=40), HOSTILE))
def test_any_text_is_shown_as_text(text: str) -> None:
    page = render(report_saying(text))
    page.encode("utf-8")
    reader = Reader(page)
    assert set(reader.tags) <= ALLOWED_TAGS
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert reader.tags.count("script") == 6 + 2, "six figures, Plotly and the page's own script"
    if text.isprintable() and text.strip():
        assert sum(text in shown for shown in reader.texts) >= 3 * 5


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=HOSTILE)
def test_figures_survive_hostile_names(text: str) -> None:
    reader = Reader(render(report_saying(text)))
    figures_read = [json.loads(script) for script in reader.scripts if script.startswith("{")]
    assert len(figures_read) == 6
    for figure in figures_read[::2]:
        names = [trace["name"] for trace in figure["data"]]
        assert not [name for name in names if "<" in name], "Plotly reads tags in labels"


def test_page_fetches_nothing() -> None:
    page = render(report_saying("plain"))
    reader = Reader(page)
    targets = [value for name, value in reader.attributes if name in RESOURCE_ATTRIBUTES]
    assert targets
    assert all(value and re.match(r"#|data:", value) for value in targets)
    assert "@import" not in page
    assert "url(" not in page
    assert "http://" not in page
    assert "https://" not in page
    policies = [value for name, value in reader.attributes if name == "content" and value]
    assert any(value.startswith("default-src 'none'") for value in policies)


def test_plotly_stands_in_a_page_with_charts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PLOTLY not in render(Report(title="small", summary="one line"))
    assert render(report_saying("plain")).count(PLOTLY) == 1
    monkeypatch.setattr(page_module, "get_plotlyjs", get_plotlyjs)
    assert render(report_saying("plain")).count(get_plotlyjs()) == 1


def test_importing_reports_needs_no_torch() -> None:
    check = "import sys, weft.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_report(Report(title="new one", summary="s"), path) == path
    assert "new one" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_write_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    write_report(Report(title="t", summary="s"), tmp_path / "link.html")
    assert (tmp_path / "real.html").is_file()
    assert (tmp_path / "link.html").is_symlink()


@pytest.mark.parametrize("name", ["missing/report.html", ".", "bad\x00name.html", "pipe"])
def test_write_refuses_what_is_no_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError) as error:
        write_report(Report(title="t", summary="s"), tmp_path / name)
    assert "\n" not in str(error.value)


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EnvironmentUnavailable, match="No space left"):
        write_report(Report(title="t", summary="s"), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
