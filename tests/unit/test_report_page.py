"""The page: everything escaped, nothing fetched, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.errors import EnvironmentUnavailable, UserError
from weft.report import (
    Answer,
    Badge,
    Chart,
    Facts,
    Folded,
    Headline,
    Prose,
    Report,
    Section,
    Table,
    figures,
    render,
    write_report,
)
from weft.report.drawing import Point

RESOURCE_ATTRIBUTES = {"src", "href", "srcset", "data", "action", "poster", "background"}
ALLOWED_TAGS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "h1", "h2", "p", "nav"),
    *("a", "main", "section", "footer", "figure", "figcaption", "div", "span", "table", "thead"),
    *("tbody", "tr", "th", "td", "dl", "dt", "dd", "details", "summary", "small", "ul", "li"),
    *("i", "b", "em", "svg", "g", "rect", "path"),
}


class Reader(HTMLParser):
    """Collects tags, attributes and the text outside styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
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
        if self._open != "style":
            self.texts.append(data)


def report_saying(text: str) -> Report:
    point = Point(1.0, 2.0, text, 0.5, 3.0, text)
    drawn = [
        figures.volume_by_layout({text: {text: 3.0, "all_reduce": 2.0}}),
        figures.latency_by_size({text: [point], "other": [point, Point(9.0, 2.0, low=1, high=3)]}),
        figures.predicted_and_measured([(text, point, 2.0)], x_title=text),
    ]
    blocks = [
        Prose(text=text),
        Facts(items={text: text}),
        Table(caption=text, rows=[{text: text}], note=text),
        Table(caption=text, rows=[{text: 1}], folded=True),
        Folded(title=text, blocks=[Chart(title=text, figure=one, note=text) for one in drawn]),
    ]
    answer = Answer(
        summary=text,
        verdict=Badge(text=text, tone="bad"),
        headlines=[Headline(label=text, value=text, note=text)],
        warnings=[text],
    )
    return Report(title=text, answer=answer, sections=[Section(title=text, blocks=blocks)] * 3)


SMALL = Report(title="new one", answer=Answer(summary="one line"))

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
    styles = [value for name, value in reader.attributes if name == "style"]
    assert not [value for value in styles if not re.fullmatch(r"[-\w:;.%# ]+", value or "")]
    if text.isprintable() and text.strip():
        assert sum(text in shown for shown in reader.texts) >= 3 * 10


def test_the_answer_is_the_first_section() -> None:
    page = render(report_saying("plain"))
    assert re.search(r"<section\s[^>]*>", page)[0].startswith('<section id="answer"')  # type: ignore[index]
    assert page.index('role="alert"') < page.index('class="summary"') < page.index('headlines">')


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


def test_a_page_has_no_script() -> None:
    assert "script" not in Reader(render(report_saying("plain"))).tags
    assert "script-src" not in render(SMALL), "nothing but default-src 'none' speaks of scripts"


def test_importing_reports_needs_no_torch() -> None:
    check = "import sys, weft.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_report(SMALL, path) == path
    assert "new one" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_write_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    write_report(SMALL, tmp_path / "link.html")
    assert (tmp_path / "real.html").is_file()
    assert (tmp_path / "link.html").is_symlink()


@pytest.mark.parametrize("name", ["missing/report.html", ".", "bad\x00name.html", "pipe"])
def test_write_refuses_what_is_no_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError) as error:
        write_report(SMALL, tmp_path / name)
    assert "\n" not in str(error.value)


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(EnvironmentUnavailable, match="No space left"):
        write_report(SMALL, path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
