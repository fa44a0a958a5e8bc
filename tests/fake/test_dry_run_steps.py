"""Guessed tokens, prompts on other ranks and shared positions: what they send, by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from weft.cli import main
from weft.closed_form.schedule import closed_form
from weft.errors import LayoutError, WorkloadError
from weft.tracing.dry_run import dry_run
from weft.vocabulary.comparison import compare
from weft.vocabulary.families import BUILTIN_MODELS
from weft.vocabulary.layout import Layout
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.workload import Workload

DEEPSEEK = replace(BUILTIN_MODELS["deepseek-v3"], num_layers=5)
LLAMA = replace(BUILTIN_MODELS["llama-3.1-8b"], num_layers=5)
NEXT = replace(BUILTIN_MODELS["qwen3-next-80b-a3b"], num_layers=4)
LOAD = Workload(prompt_tokens=7, decode_tokens=11, batch=2)


def both(spec, layout, engine="weft", **options):
    """Rows of the closed form, which the dry run has too."""
    formula, dry = (make(spec, layout, LOAD, engine, **options) for make in (closed_form, dry_run))
    assert not [row for row in compare(formula, dry) if row.verdict != "equal"]
    assert formula.totals == dry.totals
    return {(r.phase, r.op, r.group, r.input_shape, r.dtype): r.count for r in formula.collectives}


def test_a_step_of_ngram_drafts_is_as_many_rows_more():
    rows = both(LLAMA, Layout(tp=2), "vllm", speculation=Speculation.parse("ngram:3:1.5"))
    assert rows == {
        ("prefill", "all_reduce", "tp", (14, 4096), "bfloat16"): 11,
        ("prefill", "all_gather", "tp", (2, 64128), "bfloat16"): 1,
        ("decode", "all_reduce", "tp", (8, 4096), "bfloat16"): 4 * 11,  # 10 tokens, 2.5 a step
        ("decode", "all_gather", "tp", (8, 64128), "bfloat16"): 4,
    }


@pytest.mark.parametrize("method", ["mtp", "eagle"])
def test_a_draft_layer_has_its_embedding_its_blocks_and_its_choice(method):
    rows = both(DEEPSEEK, Layout(tp=2), speculation=Speculation.parse(f"{method}:3"))
    steps = 3  # 10 tokens, 4 a step
    assert rows == {
        ("prefill", "all_reduce", "tp", (14, 7168), "bfloat16"): 11 + 3,
        ("prefill", "all_reduce", "tp", (2, 7168), "bfloat16"): 2 * 3,
        ("prefill", "all_gather", "tp", (2, 2), "float32"): 1 + 3,
        ("decode", "all_reduce", "tp", (8, 7168), "bfloat16"): steps * (11 + 3),
        ("decode", "all_reduce", "tp", (2, 7168), "bfloat16"): steps * 2 * 3,
        ("decode", "all_gather", "tp", (8, 2), "float32"): steps,
        ("decode", "all_gather", "tp", (2, 2), "float32"): steps * 3,
    }


def test_pipelines_hear_of_drafts_as_vllm_tells_them():
    guesses = Speculation.parse("mtp:2")
    rows = both(DEEPSEEK, Layout(pp=2), "vllm", speculation=guesses)
    told = {key[3:]: count for key, count in rows.items() if key[:2] == ("decode", "broadcast")}
    assert set(told) == {((2, 3), "int64"), ((2, 2), "int32"), ((2, 2), "int64")}
    rows = both(DEEPSEEK, Layout(pp=2), speculation=replace(guesses, method="ngram"))
    assert {key[3] for key in rows if key[1] == "broadcast"} == {(1,), (3,)}


def test_a_latent_cache_goes_once_to_every_decode_rank():
    rows = both(DEEPSEEK, Layout(tp=4), prefill_layout=Layout(tp=2, pp=2))
    assert rows["decode", "recv", "kv", (7, 512 + 64), "bfloat16"] == 5 * 2
    formula = closed_form(DEEPSEEK, Layout(tp=4), LOAD, prefill_layout=Layout(tp=2, pp=2))
    sent = [row for row in formula.collectives if row.op == "send" and row.group == "kv"]
    assert [(row.stage, row.count) for row in sent] == [(0, 3 * 2 * 2), (1, 2 * 2 * 2)]
    assert formula.to_dict()["prefill_layout"]["pp"] == 2


def test_heads_are_cut_as_the_finer_end_holds_them():
    rows = both(LLAMA, Layout(tp=8), prefill_layout=Layout(tp=2))
    assert rows["prefill", "send", "kv", (2, 7, 1, 128), "bfloat16"] == 4 * 5 * 2
    assert rows["decode", "recv", "kv", (2, 7, 1, 128), "bfloat16"] == 5 * 2
    rows = both(LLAMA, Layout(tp=2), prefill_layout=Layout(tp=8))
    assert rows["prefill", "send", "kv", (2, 7, 1, 128), "bfloat16"] == 5 * 2
    assert rows["decode", "recv", "kv", (2, 7, 1, 128), "bfloat16"] == 4 * 5 * 2


def test_linear_attention_sends_its_state_instead():
    rows = both(NEXT, Layout(tp=2), prefill_layout=Layout(tp=2))
    state = (16, 128, 128)
    assert rows["prefill", "send", "kv", state, "float32"] == 3 * 2
    assert rows["prefill", "send", "kv", (4096, 3), "bfloat16"] == 3 * 2


def test_shared_positions_gather_queries_and_scatter_outputs():
    rows = both(DEEPSEEK, Layout(tp=8, dcp=4), "vllm")
    shared = {key[1:]: count for key, count in rows.items() if key[2] == "dcp"}
    assert shared == {
        ("all_gather", "dcp", (2, 16, 576), "bfloat16"): 5 * 10,
        ("all_gather", "dcp", (2, 64), "float32"): 5 * 10,
        ("reduce_scatter", "dcp", (64, 2, 512), "bfloat16"): 5 * 10,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": NEXT, "speculation": "mtp:1"}, "keeps a state of each sequence"),
        ({"layout": "sp2", "speculation": "mtp:1"}, "no engine has a draft layer beside"),
        ({"layout": "tp2xdcp2", "spec": LLAMA}, "1 of `tp` 2 ranks hold the same heads"),
        ({"layout": "tp3xdcp2"}, "`dcp` 2: must divide `tp` 3"),
        ({"layout": "sp2xdcp2"}, "`dcp` 2: not together with `sp` 2"),
        ({"prefill": "dp2"}, "`dp` 2 of `prefill_layout`"),
        ({"layout": "tp2xdcp2", "prefill": "tp2"}, "`dcp` 2: with prefill on ranks of its own"),
        ({"prefill": "tp3"}, "`tp` 3: does not divide the 128 attention heads"),
        ({"spec": NEXT, "prefill": "tp2"}, "`tp` 2 of `prefill_layout`: .* keeps a state"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    def ask(make):
        prefill, guesses = options.get("prefill"), options.get("speculation")
        return make(
            options.get("spec", DEEPSEEK),
            Layout.parse(options.get("layout", "1")),
            LOAD,
            speculation=None if guesses is None else Speculation.parse(guesses),
            prefill_layout=None if prefill is None else Layout.parse(prefill),
        )

    for make in (closed_form, dry_run):
        with pytest.raises((LayoutError, WorkloadError), match=message):
            ask(make)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ngram", "write method:drafts"),
        ("ngram:-1", "write method:drafts"),
        ("ngram:4:", "write method:drafts"),
        ("mtp:1:nan", "write method:drafts"),
        ("lookahead:4", "lookahead: unknown; choose one of ngram, mtp, eagle"),
        ("ngram:0", "0: must be 1 to 16 drafts a step"),
        ("ngram:17", "17: must be 1 to 16 drafts a step"),
        ("mtp:2:2.5", "2.5: accepted drafts a step must be 0 to 2"),
    ],
)
def test_a_bad_guess_is_one_line(text, message, capsys):
    with pytest.raises(WorkloadError, match=message):
        Speculation.parse(text)
    assert main.run(["predict", "llama-3.1-8b", "--speculate", text]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("command", ["predict", "trace"])
def test_the_commands_take_them(command, capsys):
    arguments = [command, "llama-3.1-8b", "--tp", "4", "--speculate", "ngram:2"]
    arguments += ["--prefill-layout", "tp2xpp2", "--format", "json", "--engine", "vllm"]
    arguments += ["--dry-run"] if command == "trace" else []
    assert main.run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["speculation"] == {"method": "ngram", "num_drafts": 2, "accepted": 2}
    assert {row["group"] for row in document["collectives"]} == {"tp", "pp", "kv"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace", "embedded", "--speculate", "ngram:2"], "ask for --dry-run"),
        (["trace", "embedded", "--prefill-layout", "tp2"], "ask for --dry-run"),
        (["predict", "embedded", "--prefill-layout", "two"], "write it as 1, tp4"),
        (["predict", "embedded", "--prefill-layout", "dp2"], "--dp 2 of --prefill-layout"),
        (
            ["predict", "embedded", "--cache-dtype", "int3", "--accelerator", "h200-sxm"],
            "--cache-dtype int3: choose one of float8_e4m3fn, bfloat16",
        ),
        (
            ["predict", "embedded", "--cache-dtype", "float8_e4m3fn"],
            "name a device (--accelerator)",
        ),
        (["run", "embedded", "--speculate", "mtp:1"], "the engine runs ngram:N"),
        (["run", "embedded", "--speculate", "ngram:2:1"], "the engine runs ngram:N"),
        (
            ["run", "deepseek-v3", "--tp", "2", "--dcp", "2"],
            "--dcp 2: weft's engine keeps whole positions on every rank; vLLM and SGLang run it",
        ),
    ],
)
def test_commands_refuse_in_one_line(arguments, message, capsys):
    assert main.run(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
