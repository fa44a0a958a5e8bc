"""What the serving benchmarks share: a server of weft's own, the machine, the result file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from weft import __version__
from weft.bench.serving.prompts import prompt_words
from weft.bench.serving.records import RequestSpec
from weft.fabric.fingerprint import describe, fingerprint

START_S = 180
TESTS = Path(__file__).parents[1] / "tests"
MOCK_SERVER = TESTS / "mock_server.py"


def machine(*packages: str) -> dict[str, Any]:
    """Machine and versions of what was measured."""
    return {
        "machine": describe(fingerprint()),
        "system": platform.platform(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), "weft": __version__}
        | {name: version(name) for name in packages if find_spec(name)},
    }


def write(path: Path | None, document: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def command() -> str:
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


@contextmanager
def weft_server(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``weft serve`` with ``arguments`` on a free port, ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "weft", "serve", *arguments, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    url = next(line for line in process.stderr if line.startswith("http://")).strip()
    threading.Thread(target=_pass_on, args=(process,), daemon=True).start()
    try:
        wait_ready(url, "/ready", process)
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


def _pass_on(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)


def wait_ready(
    url: str, path: str, process: subprocess.Popen[Any], limit_s: float = START_S
) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            with urllib.request.urlopen(url + path, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{url}: not ready within {limit_s} s")
        time.sleep(0.3)


def make_word_model(folder: Path, config: dict[str, Any]) -> str:
    """A config and a tokenizer that knows weft's prompt words, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    spec = RequestSpec(prompt_tokens=4000, output_tokens=1)
    words = sorted(set(prompt_words(spec, 0, 0).split()))
    pieces = ["<s>", "</s>", "<unk>", *words]
    size = config.get("vocab_size", len(pieces))
    pieces += [f"word{number}" for number in range(size - len(pieces))]
    model = models.WordLevel({one: i for i, one in enumerate(pieces)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": config["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    whole = config | {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(whole))
    return str(folder)
