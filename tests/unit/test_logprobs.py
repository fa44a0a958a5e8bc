"""Log-probabilities of sampled tokens: from any split of the logits, and from the engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import make_checkpoint, reference_logits, reference_model
from weft.engine.llm import LLM
from weft.engine.logprobs import LEAST, LogprobReader, book_logprobs
from weft.engine.request import Request, SamplingParams
from weft.engine.scheduler import Chunk
from weft.engine.step import PromptRows
from weft.errors import WorkloadError
from weft.vocabulary.conventions import ENGINES


def chunk(logprobs: int | None) -> Chunk:
    request = Request(
        number=0, prompt=[0], sampling=SamplingParams(logprobs=logprobs), stop_ids=frozenset()
    )
    return Chunk(request=request, start=0, count=1)


def readers(conventions, vocab_size: int, tp: int) -> list[LogprobReader]:
    """One reader a rank; what each offers is kept, and the last one gets all of it."""
    offers: list[torch.Tensor] = []

    def all_gather(tensor, dim, site):
        offers.append(tensor)
        return torch.cat([*offers, *[tensor] * (tp - len(offers))], dim)

    pp = SimpleNamespace(size=1, broadcast=lambda tensor, src, site: tensor)
    made = []
    for rank in range(tp):
        group = SimpleNamespace(rank=rank, size=tp, all_gather=all_gather)
        groups = SimpleNamespace(tp=group, pp=pp, device=torch.device("cpu"))
        made.append(LogprobReader(groups, conventions, vocab_size))
    return made


@settings(deadline=None, max_examples=150)
@given(
    vocab_size=st.integers(1, 70),
    tp=st.sampled_from([1, 2, 4]),
    wanted=st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=5),
    engine=st.sampled_from(sorted(ENGINES)),
    seed=st.integers(0, 1 << 30),
)
def test_any_split_gives_the_softmax_of_the_whole(vocab_size, tp, wanted, engine, seed):
    generator = torch.Generator().manual_seed(seed)
    conventions = ENGINES[engine]
    shard = conventions.logits_shard(vocab_size, tp)
    whole = torch.randn(len(wanted), vocab_size, generator=generator) * 6
    ids = torch.randint(vocab_size, (len(wanted),), generator=generator)
    padded = torch.nn.functional.pad(whole, (0, tp * shard - vocab_size), value=1e9)
    chunks = [chunk(one) for one in wanted]
    found = None
    for rank, reader in enumerate(readers(conventions, vocab_size, tp)):
        part = padded[:, rank * shard : (rank + 1) * shard]
        found = reader.read(part.clone(), ids, chunks, PromptRows())
    rows = [row for row, one in enumerate(wanted) if one is not None]
    assert (found is None) == (not rows)
    book_logprobs(chunks, chunks, PromptRows(), [] if found is None else found.tolist())
    expected = whole.log_softmax(-1)
    for row, (one, count) in enumerate(zip(chunks, wanted, strict=True)):
        if count is None:
            assert one.request.logprobs == []
            continue
        (token,) = one.request.logprobs
        assert token.logprob == pytest.approx(float(expected[row, ids[row]]), abs=1e-4)
        assert len(token.top) == min(count, vocab_size)
        for (given_id, value), best in zip(
            token.top, expected[row].sort(descending=True).values.tolist(), strict=False
        ):
            assert value == pytest.approx(best, abs=1e-4)
            assert value == pytest.approx(float(expected[row, given_id]), abs=1e-4)


def test_what_is_no_number_is_the_least():
    one = chunk(1)
    book_logprobs([one], [one], PromptRows(), [[float("nan"), float("-inf"), 3.0]])
    (token,) = one.request.logprobs
    assert (token.logprob, token.top) == (LEAST, ((3, LEAST),))


def test_of_a_token_that_was_dropped_nothing_is_booked():
    one, other = chunk(0), chunk(0)
    book_logprobs([one, other], [other], PromptRows(), [[-1.0], [-2.0]])
    assert one.request.logprobs == []
    assert [token.logprob for token in other.request.logprobs] == [-2.0]


@pytest.mark.parametrize("count", [-1, 21])
def test_the_limit_is_named(count):
    with pytest.raises(WorkloadError, match="0 to 20"):
        SamplingParams(logprobs=count)
    with pytest.raises(WorkloadError, match="prompt_logprobs"):
        SamplingParams(prompt_logprobs=count)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("logprobs"), "llama")


@pytest.mark.parametrize("overlap", [False, True])
def test_the_engines_are_those_of_transformers(directory, overlap):
    """Greedy and sampled requests, with and without, in one batch that preempts."""
    llm = LLM(str(directory), dtype="float32", cache_tokens=80, overlap=overlap)
    model = reference_model(directory)
    prompts = [[5, 9, 30], [7] * 20, [100, 3, 8, 8], [11, 12]]
    sampling = [
        SamplingParams(max_tokens=20, ignore_eos=True, logprobs=3),
        SamplingParams(max_tokens=20, ignore_eos=True, temperature=0.7, top_k=5, logprobs=0),
        SamplingParams(max_tokens=20, ignore_eos=True),
        SamplingParams(max_tokens=20, ignore_eos=True, temperature=1.3, seed=4, logprobs=20),
    ]
    for prompt, params, done in zip(
        prompts, sampling, llm.generate(prompts, sampling), strict=True
    ):
        if params.logprobs is None:
            assert done.logprobs == ()
            continue
        tokens = [*prompt, *done.token_ids]
        expected = reference_logits(model, tokens).log_softmax(-1)[len(prompt) - 1 : -1]
        assert len(done.logprobs) == len(done.token_ids) == 20
        for row, token, got in zip(expected, done.token_ids, done.logprobs, strict=True):
            assert got.logprob == pytest.approx(float(row[token]), abs=2e-4)
            values, ids = row.topk(params.logprobs)
            assert [value for _, value in got.top] == pytest.approx(values.tolist(), abs=2e-4)
            assert [one for one, _ in got.top] == ids.tolist()


def test_asking_changes_no_token(directory):
    llm = LLM(str(directory), dtype="float32")
    prompts = [[5, 9, 30], [7] * 20]
    without, with_them = (
        llm.generate(prompts, SamplingParams(max_tokens=12, temperature=0.9, seed=3, logprobs=one))
        for one in (None, 5)
    )
    assert [one.token_ids for one in without] == [one.token_ids for one in with_them]


@pytest.mark.parametrize("config", [{}, {"max_batch_tokens": 7}, {"cache_tokens": 96}])
@pytest.mark.parametrize("overlap", [False, True])
def test_those_of_prompts_are_those_of_transformers(directory, overlap, config):
    """In chunks, beside others, and computed again after preemption: each token once."""
    llm = LLM(str(directory), dtype="float32", overlap=overlap, **config)
    model = reference_model(directory)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(199, (n,), generator=generator).tolist() for n in (40, 1, 23, 2, 33)]
    wanted = [3, 2, None, 20, 0]
    sampling = [
        SamplingParams(max_tokens=20, ignore_eos=True, prompt_logprobs=one, logprobs=extra)
        for one, extra in zip(wanted, (None, 4, 1, None, 0), strict=True)
    ]
    for prompt, num_top, done in zip(prompts, wanted, llm.generate(prompts, sampling), strict=True):
        if num_top is None:
            assert done.prompt_logprobs == ()
            continue
        expected = reference_logits(model, prompt).log_softmax(-1)[:-1]
        assert len(done.prompt_logprobs) == len(prompt) - 1
        for row, token, got in zip(expected, prompt[1:], done.prompt_logprobs, strict=True):
            assert got.logprob == pytest.approx(float(row[token]), abs=2e-4)
            assert [one for one, _ in got.top] == row.topk(num_top).indices.tolist()
