"""Log-probabilities in the API: both forms, streamed and whole; what a single token is called."""

from __future__ import annotations

import math
from collections.abc import Iterator

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from serve_harness import serving
from weft.engine.tokenizer import ByteTokenizer, HubTokenizer
from weft.serve.text import GrowingText
from weft.serve.token_text import TokenTexts

HALF = -math.log(2)


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with (
        serving() as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


# The engine repeats the prompt; its k-th likeliest id is the token's plus k, at 2**-(k + 1).


@pytest.mark.parametrize("stream", [False, True])
def test_completions(client, stream):
    answer = client.completions.create(
        model="embedded", prompt=list(b"ab"), max_tokens=4, logprobs=2, stream=stream
    )
    found = [one.choices[0].logprobs for one in answer] if stream else [answer.choices[0].logprobs]
    assert joined(found, "tokens") == ["a", "b", "a", "b"]
    assert joined(found, "token_logprobs") == [HALF] * 4
    assert joined(found, "text_offset") == [0, 1, 2, 3]
    assert joined(found, "top_logprobs")[:2] == [
        {"a": HALF, "b": 2 * HALF},
        {"b": HALF, "c": 2 * HALF},
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 2])
def test_echo_has_the_prompt_before_its_answer(client, stream, max_tokens):
    options = {"model": "embedded", "prompt": list("aéb".encode()), "echo": True}
    answer = client.completions.create(
        **options, max_tokens=max_tokens, logprobs=1, stream=stream, n=2
    )
    choices = [choice for one in (answer if stream else [answer]) for choice in one.choices]
    for index in (0, 1):
        mine = [choice for choice in choices if choice.index == index]
        text = "".join(choice.text for choice in mine)
        assert text == "aéb" + "a\N{REPLACEMENT CHARACTER}"[:max_tokens]
        found = [choice.logprobs for choice in mine if choice.logprobs]
        names = ["a", "bytes:\\xc3", "bytes:\\xa9", "b", "a", "bytes:\\xc3"]
        assert joined(found, "tokens") == names[: 4 + max_tokens]
        assert joined(found, "token_logprobs") == [None] + [HALF] * (3 + max_tokens)
        assert joined(found, "text_offset") == [0, 1, 1, 2, 3, 4][: 4 + max_tokens]
        assert joined(found, "top_logprobs")[:2] == [None, {names[1]: HALF}]
    plain = client.completions.create(**options, max_tokens=1)
    assert (plain.choices[0].text, plain.choices[0].logprobs) == ("aéba", None)
    if not stream:
        assert answer.usage.completion_tokens == 2 * max_tokens


def test_echo_lists_the_stop_token(client):
    """Evaluation tools leave out the last token, so there must be one after the prompt."""
    answer = client.completions.create(
        model="embedded",
        prompt=list(b"abc"),
        max_tokens=1,
        logprobs=1,
        echo=True,
        extra_body={"stop_token_ids": [97]},
    )
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("abc", "stop")
    assert choice.logprobs.tokens == ["a", "b", "c", "a"]


def test_prompt_logprobs_in_vllms_form(client):
    answer = client.completions.create(
        model="embedded", prompt=list(b"abc"), max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    assert answer.choices[0].text == "a"
    assert answer.choices[0].logprobs is None
    first, second, third = answer.choices[0].model_extra["prompt_logprobs"]
    assert first is None
    assert second == {
        "98": {"logprob": HALF, "rank": 1, "decoded_token": "b"},
        "99": {"logprob": 2 * HALF, "rank": 2, "decoded_token": "c"},
    }
    assert set(third) == {"99", "100"}
    none = client.completions.create(
        model="embedded", prompt=list(b"ab"), max_tokens=1, extra_body={"prompt_logprobs": 0}
    )
    assert none.choices[0].model_extra["prompt_logprobs"][1] == {
        "98": {"logprob": HALF, "rank": None, "decoded_token": "b"}
    }


def test_nothing_to_answer_needs_a_prompt_to_show(client):
    with pytest.raises(openai.BadRequestError, match="max_tokens 0"):
        client.completions.create(model="embedded", prompt="x", max_tokens=0)


def joined(found: list, field: str) -> list:
    return [value for one in found for value in getattr(one, field)]


@pytest.mark.parametrize("stream", [False, True])
def test_chat(client, stream):
    answer = client.chat.completions.create(
        model="embedded",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=3,
        logprobs=True,
        top_logprobs=2,
        n=2,
        stream=stream,
    )
    content: dict[int, list] = {0: [], 1: []}
    for one in answer if stream else [answer]:
        for choice in one.choices:
            if choice.logprobs:
                content[choice.index] += choice.logprobs.content
    for tokens in content.values():
        begin, first, second = tokens
        assert (begin.token, begin.bytes) == ("token_id:256", None)
        assert (first.token, first.bytes, first.logprob) == ("u", [ord("u")], HALF)
        assert [(one.token, one.logprob) for one in first.top_logprobs] == [
            ("u", HALF),
            ("v", 2 * HALF),
        ]
        assert second.token == "s"


def test_a_part_of_a_character_is_named_by_its_bytes(client):
    answer = client.completions.create(
        model="embedded", prompt=list("aé".encode()), max_tokens=3, logprobs=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs.text_offset == [0, 1, 1]
    assert logprobs.top_logprobs == [{name: HALF} for name in logprobs.tokens]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_token_is_not_shown(client, stream):
    answer = client.completions.create(
        model="embedded",
        prompt=list(b"abc"),
        max_tokens=9,
        logprobs=1,
        stream=stream,
        extra_body={"stop_token_ids": [99]},
    )
    choices = [one.choices[0] for one in answer] if stream else answer.choices
    tokens = [token for one in choices if one.logprobs for token in one.logprobs.tokens]
    assert tokens == ["a", "b"]


def test_without_asking_there_are_none(client):
    chat = {"model": "embedded", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert client.chat.completions.create(**chat).choices[0].logprobs is None
    answer = client.chat.completions.create(**chat, logprobs=False, top_logprobs=0)
    assert answer.choices[0].logprobs is None
    text = client.completions.create(model="embedded", prompt="x", max_tokens=2, logprobs=None)
    assert text.choices[0].logprobs is None


@pytest.mark.parametrize("logprobs", [-1, 6, 1.5, "1", True])
def test_wrong_values_in_completions(client, logprobs):
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.completions.create(model="embedded", prompt="x", logprobs=logprobs)


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": 1},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": True, "top_logprobs": -1},
        {"top_logprobs": 2},
        {"logprobs": False, "top_logprobs": 2},
    ],
)
def test_wrong_values_in_chat(client, fields):
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        client.chat.completions.create(model="embedded", messages=messages, **fields)


CORPUS = ["the quick brown fox jumps over the lazy dog", "grüße an die welt", "世界 🙂 déjà vu"] * 9


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> HubTokenizer:
    """Byte-level BPE, as of Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return saved(tokenizer, tmp_path_factory.mktemp("byte-level"))


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory) -> HubTokenizer:
    """BPE of words that begin with a mark, unknown characters as bytes, as of Llama 2."""
    pieces = ["<unk>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*"▁theqdog", "th", "the", "▁the"]
    model = models.BPE(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[("t", "h"), ("th", "e"), ("▁", "the")],
        byte_fallback=True,
        unk_token="<unk>",
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return saved(tokenizer, tmp_path_factory.mktemp("byte-fallback"))


def saved(tokenizer: Tokenizer, folder) -> HubTokenizer:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.save_pretrained(folder)
    return HubTokenizer(folder)


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("the qü世🙂 dog\n"), max_size=12))
@pytest.mark.parametrize("kind", ["bytes", "byte_level", "byte_fallback"])
def test_the_bytes_of_the_tokens_are_those_of_the_text(kind, text, request):
    tokenizer = ByteTokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    ids = tokenizer.encode(text)
    whole = b"".join(TokenTexts(tokenizer=tokenizer)[token].data or b"" for token in ids)
    if kind == "byte_fallback":  # its decoder drops the space in front
        whole = whole.removeprefix(b" ")
    assert whole.decode() == tokenizer.decode(ids)


def test_special_tokens_have_no_bytes(byte_level):
    (end,) = byte_level.eos_token_ids
    shown = TokenTexts(tokenizer=byte_level)[end]
    assert (shown.name, shown.data) == (f"token_id:{end}", None)


def test_offsets_are_where_the_text_of_each_token_begins():
    growing = GrowingText(ByteTokenizer())
    offsets = []
    for token in "a🙂b".encode():
        offsets.append(growing.length)
        growing.add(token)
    assert offsets == [0, 1, 1, 1, 1, 2]
