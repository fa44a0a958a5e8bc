"""How many public serving rows have a model, a precision and layouts that weft can describe.

``python benchmarks/public_coverage.py silicon_sample.csv`` (the file that aiconfigurator ships; see
src/weft/calibration/public_rows.py). A row counts where a closed form can be written for the
layout that it states, or for both of prefill and decode that stand apart. What passes between
those two is not part of that.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

from weft.calibration.public_rows import PublicRow, read_rows
from weft.closed_form.schedule import closed_form
from weft.errors import UserError
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload


def layouts(row: PublicRow, fields: dict[str, str]) -> list[Layout]:
    """The one layout of the row, or those of prefill and decode."""
    if row.mode == "agg":
        return [row.layout]
    found = []
    for phase in ("prefill", "decode"):
        names = ("tp", "pp", "attention_dp", "moe_ep")
        tp, pp, dp, ep = (int(float(fields[f"{phase}_{name}_size"] or 1)) for name in names)
        found.append(Layout(tp=tp, pp=pp, dp=dp, ep=ep))
    return found


def verdict(row: PublicRow, fields: dict[str, str]) -> str:
    """``described``, or why not."""
    if row.mode == "agg" and row.odd is not None:
        return row.odd
    load = Workload(prompt_tokens=row.prompt_tokens, decode_tokens=row.decode_tokens)
    try:
        spec = load_spec(row.family)
        spec = spec if row.weights is None else spec.stored_as(row.weights)
        for layout in layouts(row, fields):
            closed_form(spec, layout, load, row.engine)
    except UserError as error:
        return f"{row.family}: {error}"
    return "described"


def main(path: Path) -> None:
    rows = read_rows(path)
    with path.open(encoding="utf-8", newline="") as file:
        fields = list(csv.DictReader(file))
    found = [verdict(*pair) for pair in zip(rows, fields, strict=True)]
    for mode in sorted({row.mode for row in rows}):
        of_mode = [text for row, text in zip(rows, found, strict=True) if row.mode == mode]
        print(f"{mode}: {of_mode.count('described')} of {len(of_mode)}")
    count = found.count("described")
    print(f"all: {count} of {len(found)} ({100 * count / len(found):.1f} %)")
    for reason, number in Counter(found).most_common(12):
        if reason != "described":
            print(f"{number:5} {reason[:140]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
