"""The ``weft`` command: one file a command, errors turned into one line and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence

import typer
from typer.main import get_command

from weft import __version__
from weft.cli import (
    bench_allreduce,
    bench_decode,
    bench_serve,
    calibrate,
    doctor,
    fabrics,
    import_,
    models,
    plan,
    predict,
    report,
    serve,
    study,
    study_engines,
    trace,
)
from weft.cli import run as run_command
from weft.cli.messages import command_of, in_options
from weft.cli.option_groups import grouped
from weft.cli.output import guarded_stdout
from weft.errors import WeftError
from weft.launch.environment import silence_libraries

app = typer.Typer(
    name="weft",
    help="Run, measure, explain and plan multi-GPU LLM inference by its communication.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"weft {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and leave."
    ),
) -> None:
    pass


app.command("models")(grouped(models.models))
app.command("run")(grouped(run_command.run))
study.app.command("engines")(grouped(study_engines.study_engines))
app.add_typer(study.app, name="study")
app.command("trace")(grouped(trace.trace))
app.add_typer(predict.app, name="predict")
app.add_typer(calibrate.app, name="calibrate")
app.command("plan")(grouped(plan.plan))
app.command("fabrics")(grouped(fabrics.fabrics))
app.command("doctor")(grouped(doctor.doctor))
app.command("import")(grouped(import_.import_))
app.command("report")(grouped(report.report))
app.command("serve")(grouped(serve.serve))
bench = typer.Typer(help="Measure collectives and servers.", no_args_is_help=True)
bench.command("allreduce")(grouped(bench_allreduce.bench_allreduce))
bench.command("decode")(grouped(bench_decode.bench_decode))
bench.command("serve")(grouped(bench_serve.bench_serve))
app.add_typer(bench, name="bench")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code (0, 1, 2 or 3; see weft.errors).

    Once an error is told nothing keeps the process: no thread, child or lost peer is waited for.
    """
    code = run(arguments)
    if code == 0:
        sys.exit()
    sys.stderr.flush()
    os._exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    silence_libraries()
    with guarded_stdout() as stdout:
        code = _run(words)
        try:
            stdout.check()
        except WeftError as error:
            return _fail(str(error), error.exit_code)
    return code


def _run(words: list[str]) -> int:
    try:
        result = app(args=words, standalone_mode=False, prog_name="weft", obj=words)
    except typer.TyperException as error:
        return _usage(error, words)
    except WeftError as error:
        command = command_of(words, get_command(app))
        return _fail(in_options(str(error), command), error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _fail(f"{error.filename}: {error.strerror}", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    return result if isinstance(result, int) else 0


def _usage(error: typer.TyperException, words: Sequence[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 0
    text = error.format_message()
    wrong = re.match(r"Invalid value for '(-[^ ']*)[^:]*: (.*)", text, re.DOTALL)
    if wrong is not None:
        reason = wrong[2].removeprefix("Value error, ")
        text = f"{wrong[1]} {_value_of(wrong[1], words)}: {reason}"
    return _fail(text, 2)


def _value_of(option: str, words: Sequence[str]) -> str:
    """What stands last behind ``option`` on the command line."""
    found = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return repr(found) if found.strip() != found or not found.isprintable() or not found else found


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"weft: error: {line}", file=sys.stderr)
    return code
