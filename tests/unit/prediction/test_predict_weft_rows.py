"""weft's own measured runs: the fit, and the rows that the fit never saw."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from weft.calibration.fitting import (
    FITS,
    FittedSet,
    errors_of,
    fit_runs,
    fitted_runs,
    leave_one_out,
)
from weft.calibration.measured import MeasuredRun, server_runs, weft_runs
from weft.calibration.scoreboard import TPOT, TTFT, score_runs
from weft.prediction.latency import predict_latency
from weft.prediction.machines import machine_named
from weft.prediction.own_tables import weft_tables
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

H200 = machine_named("weft", "h200-sxm")
SPEC = load_spec("llama-3.1-8b")


def rows(role: str) -> list[MeasuredRun]:
    return [run for run in weft_runs() if run.role == role]


def test_few_layouts_are_fitted() -> None:
    assert {(run.model, run.layout.name) for run in rows("fitted")} == {
        ("llama-3.1-8b", "1"),
        ("llama-3.1-8b", "tp2"),
        ("llama-3.1-8b", "pp2"),
        ("qwen3-30b-a3b", "1"),
    }
    assert not any(run.weights for run in rows("fitted"))
    unseen = {(run.model, run.layout.name, run.all_reduce) for run in rows("test")}
    assert ("llama-3.1-70b", "tp4", None) in unseen
    assert ("llama-3.1-8b", "pp4", None) in unseen
    assert ("llama-3.1-70b", "tp2xpp2", None) in unseen
    assert ("llama-3.1-8b", "tp4", "nccl") in unseen


MEASURED = [fit for fit in FITS if fitted_runs(fit)]


@pytest.mark.parametrize("fit", MEASURED, ids=lambda fit: f"{fit.engine}-{fit.rows}")
def test_the_shipped_constants_are_the_fit_to_the_rows(fit: FittedSet) -> None:
    machine = machine_named(fit.engine, "h200-sxm")
    fitted = fit_runs(machine, fit, fitted_runs(fit))
    for prior in fit.priors:
        shipped = getattr(getattr(machine, prior.owner), prior.field)
        assert shipped.origin == "fitted"
        again = getattr(getattr(fitted, prior.owner), prior.field)
        assert again.value == pytest.approx(shipped.value, rel=0.03)


@pytest.mark.parametrize(("quantity", "limit"), [(TPOT, 0.05), (TTFT, 0.12)])
def test_unseen_layouts_and_models_keep_the_limits(quantity: str, limit: float) -> None:
    scores = [item for item in score_runs(rows("test")) if item.quantity == quantity]
    assert len(scores) >= 16
    assert statistics.mean(abs(score.error) for score in scores) <= limit


def test_a_row_that_the_fit_never_saw_is_predicted_as_well() -> None:
    for fit in (fit for fit in MEASURED if fit.rows == "batches"):
        machine = machine_named(fit.engine, "h200-sxm")
        errors = leave_one_out(machine, fit, fitted_runs(fit))
        assert statistics.mean(abs(ttft) for ttft, _ in errors if ttft is not None) <= 0.07
        assert statistics.mean(abs(tpot) for _, tpot in errors if tpot is not None) <= 0.04


def test_closed_loops_of_a_layout_that_was_not_fitted() -> None:
    """TP2 of both engines up to 32 clients; 128 clients come in waves that differ from run to run."""
    for run in server_runs():
        if run.role == "test" and (run.concurrency or 0) <= 32:
            machine = machine_named(run.engine, "h200-sxm")
            _, tpot = errors_of(machine, run)
            assert tpot is not None
            assert abs(tpot) <= 0.08


def test_a_run_with_another_all_reduce_is_predicted_with_it() -> None:
    run = next(run for run in weft_runs() if run.all_reduce == "nccl")
    same = next(one for one in weft_runs() if one.name == run.name.replace(" nccl", ""))
    assert run.ask()[1].value > 1.1 * same.ask()[1].value


def test_weft_uses_its_measured_kernels_where_they_were_measured() -> None:
    load = Workload(prompt_tokens=128, decode_tokens=2, batch=1)
    tp4 = Layout.parse("tp4")
    own = predict_latency(SPEC, tp4, load, H200).decode
    assert {i.algorithm for i in own.collectives if i.op == "all_reduce"} == {"weft_fused"}
    assert weft_tables("a100-slingshot11") == ()
    elsewhere = predict_latency(SPEC, tp4, load, machine_named("weft", "a100-80g")).decode
    assert "weft_fused" not in {item.algorithm for item in elsewhere.collectives}


def test_stages_that_launch_early_share_the_hosts_time() -> None:
    load = Workload(prompt_tokens=128, decode_tokens=2, batch=1)
    pp2 = Layout.parse("pp2")
    launching = replace(H200, profile=replace(H200.profile, prompt_graph=False))
    waiting = replace(launching, profile=replace(launching.profile, early_launch=False))
    early = predict_latency(SPEC, pp2, load, launching).ttft_ms.value
    late = predict_latency(SPEC, pp2, load, waiting).ttft_ms.value
    assert early < 0.85 * late


def test_one_row_is_cheaper_than_two_by_more_than_its_bytes() -> None:
    def tpot_ms(batch: int) -> float:
        load = Workload(prompt_tokens=128, decode_tokens=2, batch=batch)
        return predict_latency(SPEC, Layout(), load, H200).tpot_ms.value

    assert tpot_ms(2) - tpot_ms(1) > 5 * (tpot_ms(3) - tpot_ms(2))
