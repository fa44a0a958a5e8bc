"""Variables of a chat template: what a request sets is what transformers would be given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from serve_harness import Harness, call, serving
from weft.engine.tokenizer import HubTokenizer

WORDS = ["<s>", "</s>", "<unk>", "user", "assistant", "hi", "think", "plain", "effort", "low"]
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
    "{% if reasoning_effort %}effort {{ reasoning_effort }} {% endif %}assistant "
    "{% if enable_thinking is not defined or enable_thinking %}think{% else %}plain{% endif %}"
)
TURNS = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("thinker")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Harness]:
    with serving(tokenizer=HubTokenizer(folder)) as harness:
        yield harness


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"chat_template_kwargs": {}}, {}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"chat_template_kwargs": {"enable_thinking": True, "other": [1, {"a": None}]}}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": None, "chat_template_kwargs": None}, {}),
    ],
)
def test_the_prompt_is_that_of_transformers(server, folder, fields, variables):
    reference = AutoTokenizer.from_pretrained(folder)
    ids = reference.apply_chat_template(
        TURNS, add_generation_prompt=True, return_dict=False, **variables
    )
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="embedded", messages=TURNS, max_tokens=len(ids),
            extra_body={"return_token_ids": True} | fields,
        )  # fmt: skip
    assert answer.choices[0].token_ids == ids
    assert answer.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize(
    "variables",
    [{"tokenize": False}, {"messages": []}, {"conversation": []}, {"chat_template": "x"}, [1], "x"],
)
def test_what_is_no_variable_is_refused(server, variables):
    body = {"model": "embedded", "messages": TURNS, "chat_template_kwargs": variables}
    status, answer = call(server, "POST", "/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["param"] in ("chat_template_kwargs", "messages")
    assert "Traceback" not in answer["error"]["message"]


def test_completions_have_no_template(server):
    body = {"model": "embedded", "prompt": "hi", "chat_template_kwargs": {"enable_thinking": False}}
    status, answer = call(server, "POST", "/v1/completions", body)
    assert status == 400
    assert answer["error"]["param"] == "chat_template_kwargs"
