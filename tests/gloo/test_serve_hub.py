"""``weft serve owner/model`` the first time: from an empty cache, through the hub's protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from checkpoints import make_checkpoint
from fake_hub import serving_hub
from serve_process import Server

WORDS = [
    "<s>",
    "</s>",
    "<unk>",
    "user",
    "assistant",
    "system",
    "hi",
    "there",
    "be",
    "kind",
    "[",
    "]",
]
TEMPLATE = (
    "{% for message in messages %}[ {{ message.role }} ] {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}[ assistant ] {% endif %}"
)
TURNS = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi there"}]


def make_model(folder: Path, template: str | None) -> Path:
    """A small model with a word-level tokenizer; ``template``: the file that holds one."""
    make_checkpoint(folder, "llama")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(folder)
    if template == "tokenizer_config.json":
        path = folder / template
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    elif template is not None:
        (folder / template).parent.mkdir(exist_ok=True)
        (folder / template).write_text(TEMPLATE)
    return folder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return tmp_path


@pytest.mark.parametrize("template", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_first_start_has_tokenizer_and_template(empty_cache, monkeypatch, template):
    folder = make_model(empty_cache / "model", template)
    with serving_hub("owner/model", folder) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        server = Server("owner/model", "--drain", "1")
        try:
            body = {"model": "tiny", "max_tokens": 3, "temperature": 0}
            status, chat = server.get("/v1/chat/completions", body | {"messages": TURNS})
            assert status == 200, chat
            _, text = server.get("/v1/completions", body | {"prompt": "hi there kind"})
        finally:
            assert server.end() == 0, server.lines
    assert {"model.safetensors", "tokenizer.json"} <= set(hub.files_sent)
    assert len(hub.files_sent) == len(set(hub.files_sent))
    reference = AutoTokenizer.from_pretrained(str(folder))
    if template == "tokenizer_config.json":
        assert reference.chat_template == TEMPLATE
    ids = reference.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=False)
    assert chat["usage"]["prompt_tokens"] == len(ids)
    assert text["usage"]["prompt_tokens"] == 3


def test_a_model_without_a_template_cannot_chat(empty_cache, monkeypatch):
    folder = make_model(empty_cache / "model", None)
    with serving_hub("owner/model", folder) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        server = Server("owner/model", "--drain", "1")
        try:
            status, answer = server.get(
                "/v1/chat/completions", {"model": "tiny", "messages": TURNS}
            )
        finally:
            server.end()
    assert status == 400
    assert answer["error"]["code"] == "no_chat_template"
