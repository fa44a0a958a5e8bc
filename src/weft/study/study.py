"""The main job: measured, dry-run and closed-form schedules side by side, layout by layout."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from weft import __version__
from weft.closed_form.schedule import closed_form
from weft.study.published import ENGINE, PUBLISHED, WORKLOAD, PublishedEntry
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec, runnable_model
from weft.vocabulary.schedule import Collective, Schedule, Statistics
from weft.vocabulary.workload import Workload

SCHEMA: Final = "weft.study/1"


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What to run: a model (dummy weights) under each of ``layouts`` with one workload."""

    model: str
    layouts: tuple[Layout, ...]
    workload: Workload
    engine: str = "weft"
    device: str = "auto"

    def check(self) -> None:
        """Raise UserError before anything is started."""
        spec = runnable_model(self.model).spec
        for layout in self.layouts:
            layout.check_started()
            closed_form(spec, layout, self.workload, self.engine)


def run_study(plan: StudyPlan, on_progress: Callable[[str], object]) -> dict[str, Any]:
    """Run every layout as real processes; returns the ``weft.study/1`` document.

    ``on_progress`` is called with the name of each layout and table when it is done.
    """
    plan.check()
    layouts = []
    for layout in plan.layouts:
        layouts.append(_study_layout(plan, layout))
        on_progress(layout.name)
    published = _published_tables(on_progress)
    verdicts = [row["verdict"] == "equal" for part in layouts + published for row in part["rows"]]
    return {
        "schema": SCHEMA,
        "machine": _machine(),
        "model": plan.model,
        "engine": plan.engine,
        "workload": asdict(plan.workload),
        "layouts": layouts,
        "published": published,
        "checks": {"passed": sum(verdicts), "total": len(verdicts)},
    }


def _study_layout(plan: StudyPlan, layout: Layout) -> dict[str, Any]:
    from weft.report.rows import compared_rows
    from weft.tracing.dry_run import dry_run

    spec = load_spec(plan.model)
    measured = _run_ranks(plan, layout)
    schedules = {
        "run": _schedule_of_run(plan, layout, measured.pop("rows")),
        "dry_run": dry_run(spec, layout, plan.workload, plan.engine),
        "closed_form": closed_form(spec, layout, plan.workload, plan.engine),
    }
    return measured | {
        "schedules": {name: schedule.to_dict() for name, schedule in schedules.items()},
        "rows": compared_rows(schedules),
    }


def _run_ranks(plan: StudyPlan, layout: Layout) -> dict[str, Any]:
    from weft.launch.elastic import Launch, run_ranks

    with tempfile.TemporaryDirectory(prefix="weft-study-") as folder:
        job, output = Path(folder) / "job.json", Path(folder) / "result.json"
        content = {
            "model": plan.model,
            "layout": asdict(layout),
            "workload": asdict(plan.workload),
            "engine": plan.engine,
            "device": plan.device,
            "output": str(output),
        }
        job.write_text(json.dumps(content), encoding="utf-8")
        run_ranks(["-m", "weft.study.worker", str(job)], Launch(ranks_per_node=layout.world_size))
        result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return result


def _schedule_of_run(plan: StudyPlan, layout: Layout, rows: Sequence[dict[str, Any]]) -> Schedule:
    return Schedule(
        source="run",
        engine=plan.engine,
        model=load_spec(plan.model),
        layout=layout,
        workload=plan.workload,
        collectives=tuple(_collective(row) for row in rows),
    )


def _collective(row: dict[str, Any]) -> Collective:
    known = {field.name: row[field.name] for field in fields(Collective)}
    for name in ("input_shape", "output_shape"):
        known[name] = None if known[name] is None else tuple(known[name])
    known["duration_us"] = Statistics(**known["duration_us"])
    return Collective(**known)


def _published_tables(on_progress: Callable[[str], object]) -> list[dict[str, Any]]:
    from weft.tracing.dry_run import dry_run

    tables: dict[tuple[str, str], list[PublishedEntry]] = {}
    for entry in PUBLISHED:
        tables.setdefault((entry.model, entry.layout), []).append(entry)
    documents = []
    for (model, name), entries in tables.items():
        spec, layout = load_spec(model), Layout.parse(name)
        schedules = {
            "dry_run": dry_run(spec, layout, WORKLOAD, ENGINE),
            "closed_form": closed_form(spec, layout, WORKLOAD, ENGINE),
        }
        rows = [_published_row(entry, schedules, layout) for entry in entries]
        documents.append({"model": model, "layout": name, "rows": rows})
        on_progress(f"{model} {name}")
    return documents


def _published_row(
    entry: PublishedEntry, schedules: dict[str, Schedule], layout: Layout
) -> dict[str, Any]:
    counts = {"published": entry.count}
    counts |= {source: entry.count_in(schedule) for source, schedule in schedules.items()}
    group = "pp" if entry.op in ("send", "recv") else "tp"
    return {
        "verdict": "equal" if len(set(counts.values())) == 1 else "different",
        "row": {
            "stage": None,
            "phase": entry.phase,
            "op": entry.op,
            "group": group,
            "group_size": getattr(layout, group),
            "input_shape": None if entry.shape is None else list(entry.shape),
            "dtype": "bfloat16",
            "message_bytes": entry.message_bytes,
        },
        "counts": counts,
    }


def _machine() -> dict[str, Any]:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpus": ", ".join(devices) or "none",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "weft": __version__,
    }
