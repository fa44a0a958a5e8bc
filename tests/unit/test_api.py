"""The library's front: one name for each question, the same answers as the commands."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import weft
from weft import errors
from weft.cli import main
from weft.cli.messages import command_of
from weft.errors import UserError
from weft.vocabulary.comparison import compare
from weft.vocabulary.workload import workload_named


def test_every_public_name_is_there():
    for name in weft.__all__:
        assert getattr(weft, name) is not None
    assert set(weft.__all__) <= set(dir(weft))
    with pytest.raises(AttributeError):
        weft.weave  # type: ignore[attr-defined]  # noqa: B018


def test_what_type_checkers_see_is_what_is_loaded():
    lines = ast.walk(ast.parse(Path(weft.__file__).read_text()))
    seen = {
        alias.asname: node.module
        for node in lines
        if isinstance(node, ast.ImportFrom) and node.module.startswith("weft.")
        for alias in node.names
    }
    assert seen == weft._HOMES


def test_every_error_is_exported():
    tree = {name for name, _ in inspect.getmembers(errors, inspect.isclass)}
    assert tree <= set(weft.__all__)


def test_importing_weft_loads_no_library():
    code = "import sys, weft; weft.LLM; weft.predict; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    for heavy in ("torch", "transformers", "jinja2", "numpy", "typer"):
        assert heavy not in loaded.stdout.split(), heavy


def test_predict_and_trace_give_the_same_schedule():
    layout, workload = weft.Layout(tp=2, pp=2), weft.Workload(decode_tokens=5)
    formula = weft.predict("qwen3-8b", layout, workload, engine="vllm-v0")
    dry = weft.trace("qwen3-8b", layout, workload, engine="vllm-v0", dry_run=True)
    assert all(row.verdict == "equal" for row in compare(formula, dry))


def test_times_and_plans():
    prediction = weft.predict_latency("llama-3.1-8b", tp=2, accelerator="h200-sxm")
    assert prediction.tpot_ms.value > 0
    found = weft.plan("llama-3.1-8b", 4)
    assert found.best.layout.world_size == 4


def test_mistakes_are_user_errors():
    with pytest.raises(UserError, match="`tp` 3"):
        weft.predict("llama-3.1-8b", weft.Layout(tp=3))
    with pytest.raises(UserError, match="tpu"):
        weft.plan("llama-3.1-8b", 4, accelerator="tpu")


def test_a_misspelt_argument_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"^`prefil_layout`: predict .* `prefill_layout`"):
        weft.predict("llama-3.1-8b", prefil_layout=None)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^`acelerator`: plan .* did you mean `accelerator`"):
        weft.plan("llama-3.1-8b", acelerator="h200-sxm")  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^`tpp`: predict_latency .* did you mean `tp`"):
        weft.predict_latency("llama-3.1-8b", tpp=2, accelerator="h200-sxm")  # type: ignore[call-arg]
    with pytest.raises(UserError, match="`tp` 2: `layout` has the degrees"):
        weft.predict("llama-3.1-8b", weft.Layout(), tp=2)


def test_all_reduce_before_the_process_group_is_one_line():
    import torch

    with pytest.raises(UserError, match=r"call torch\.distributed\.init_process_group first"):
        weft.all_reduce(torch.ones(2))


LLAMA = "llama-3.1-8b"
H200 = {"accelerator": "h200-sxm"}
SAME = {
    f"predict {LLAMA} --tp 2": lambda: weft.predict(LLAMA, tp=2),
    f"trace {LLAMA} --tp 2 --dry-run": lambda: weft.trace(LLAMA, tp=2, dry_run=True),
    f"predict {LLAMA} --tp 2 --accelerator h200-sxm": lambda: weft.predict_latency(
        LLAMA, tp=2, **H200
    ),
    f"predict {LLAMA} --accelerator h200-sxm --concurrency 4": lambda: weft.predict_serving(
        LLAMA, concurrency=4, **H200
    ),
    f"plan {LLAMA}": lambda: weft.plan(LLAMA),
}


@pytest.mark.parametrize("command", SAME)
def test_a_result_is_the_json_of_its_command(command, capsys):
    assert main.run([*command.split(), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(SAME[command]().to_dict()))


COMMANDS = {
    "predict": weft.predict,
    "predict latency": weft.predict_latency,
    "predict serving": weft.predict_serving,
    "trace": weft.trace,
    "plan": weft.plan,
    "import": weft.import_traces,
    "study": weft.run_study,
    "run": weft.LLM.__init__,
    "bench decode": weft.DecodeBench.run,
}
OPTION = {"num_gpus": "gpus", "timeout_s": "timeout", "speculation": "speculate"}
NOT_ASKED = {"self", "progress", "workload", "layout", "groups", "layouts", "accelerator"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_function_has_the_defaults_of_its_command(name):
    words = name.removesuffix(" latency").removesuffix(" serving").split()
    options = {one.name: one for one in command_of(words, get_command(main.app)).params}
    missing = {None: None, (): None}
    parameters = inspect.signature(COMMANDS[name]).parameters.values()
    asked = [one for one in parameters if one.kind is not one.VAR_KEYWORD]
    for one in (one for one in asked if one.name not in NOT_ASKED):
        option = options[OPTION.get(one.name, one.name)]
        if one.default is one.empty:
            assert option.required or name == "run", one.name
        else:
            default = missing.get(one.default, one.default)
            assert str(option.default) == str(default), one.name


def test_workloads_and_layouts_have_the_defaults_of_their_commands():
    for name, function in COMMANDS.items():
        words = name.removesuffix(" latency").removesuffix(" serving").split()
        options = {one.name: one for one in command_of(words, get_command(main.app)).params}
        parameters = inspect.signature(function).parameters
        if "workload" in parameters and "workload" in options:
            named = workload_named(options["workload"].default)
            assert parameters["workload"].default == named, name
        if "layouts" in parameters:
            assert options["layouts"].default == ",".join(parameters["layouts"].default)
