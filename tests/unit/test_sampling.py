"""Sampling through ``LLM.generate``: draws follow transformers' processed logits."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.generation import logits_process as reference

from checkpoints import make_checkpoint
from stage_logits import stage_logits
from weft.engine.draw import BLOCK, Draws, best_of_rows, clocks, row_keys
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.engine.sampling_table import SamplingTable
from weft.engine.step import Step
from weft.errors import WorkloadError

NUM_DRAWS = 5000
PROMPT = [7, 11, 7, 30, 11, 7]
WARPERS = {
    "top_k": reference.TopKLogitsWarper,
    "top_p": reference.TopPLogitsWarper,
    "min_p": reference.MinPLogitsWarper,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def llm(checkpoint):
    with LLM(str(checkpoint)) as one:
        yield one


@pytest.fixture(scope="module")
def logits(llm):
    llm.engine.add(10**6, PROMPT, SamplingParams(max_tokens=1))
    found = stage_logits(llm.engine, Step.of(llm.engine.scheduler.schedule()))
    llm.engine.abort(10**6)
    return found[0]


def chi_square(observed, wanted):
    """The probability of counts at least this far from those wanted."""
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor(max(len(wanted) - 1, 1) / 2), statistic / 2))


def processed(logits, options):
    """By transformers' own processors, and the two sums that it does not have."""
    scores, ids = logits[None].double(), torch.tensor([PROMPT])
    for token, value in options.get("logit_bias", ()):
        scores[0, token] += value
    if "repetition_penalty" in options:
        scores = reference.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])(
            ids, scores
        )
    scores = reference.TemperatureLogitsWarper(float(options.get("temperature", 1.0)))(ids, scores)
    for name, warper in WARPERS.items():
        if name in options:
            scores = warper(options[name])(ids, scores)
    return scores[0].softmax(0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.4},
        {"temperature": 1.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.4},
        {"temperature": 0.5, "top_k": 20, "top_p": 0.8, "min_p": 0.1},
        {"repetition_penalty": 5.0, "temperature": 0.3},
        {"logit_bias": ((3, 4.0), (9, -100.0))},
        {"logit_bias": ((3, 4.0),), "repetition_penalty": 2.0, "top_p": 0.7},
    ],
)
def test_draws_follow_the_processed_logits(llm, logits, options):
    """Chi-square over 5,000 requests that differ in their seeds only."""
    sampling = [
        SamplingParams(
            **{"temperature": 1.0, "max_tokens": 1, "ignore_eos": True} | options, seed=s
        )
        for s in range(NUM_DRAWS)
    ]
    drawn = [one.token_ids[0] for one in llm.generate([PROMPT] * NUM_DRAWS, sampling)]
    seen = torch.bincount(torch.tensor(drawn), minlength=len(logits)).double()
    expected = processed(logits, options) * NUM_DRAWS
    assert seen[expected == 0].sum() == 0
    common = expected >= 5
    observed, wanted = seen[common], expected[common]
    if (rest := expected[~common].sum()) > 0:
        observed = torch.cat((observed, seen[~common].sum()[None]))
        wanted = torch.cat((wanted, rest[None]))
    assert chi_square(observed, wanted) > 1e-4


def test_penalties_of_what_was_generated(checkpoint, llm):
    """Greedy, step by step, beside transformers' forward and the formulas."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    options = {
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.7,
        "logit_bias": ((4, 1.0),),
    }
    found = llm.generate([PROMPT], SamplingParams(**options, max_tokens=24, ignore_eos=True))
    tokens = list(PROMPT)
    for token in found[0].token_ids:
        scores = model(torch.tensor([tokens])).logits[:, -1].detach()
        scores[0, 4] += 1.0
        scores = reference.RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([tokens]), scores)
        counts = torch.bincount(
            torch.tensor(tokens[len(PROMPT) :], dtype=torch.long), minlength=scores.shape[1]
        )
        scores = scores[0] - 0.7 * counts - 0.5 * (counts > 0)
        assert scores[token] > scores.max() - 1e-4
        tokens.append(token)


def test_nothing_stops_before_min_tokens(llm):
    free = llm.generate([PROMPT], SamplingParams(max_tokens=9, ignore_eos=True))[0].token_ids
    for min_tokens in (0, 3, 9):
        done = llm.generate(
            [PROMPT],
            SamplingParams(max_tokens=9, min_tokens=min_tokens, stop_token_ids=(free[0],)),
        )[0]
        stop = done.token_ids.index(free[0]) if free[0] in done.token_ids else 9
        assert stop >= min_tokens
        assert min_tokens or done.token_ids == free[:1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-40},
        {"temperature": 1e-44, "top_p": 0.9},
        {"temperature": 1e-38, "top_k": 3, "min_p": 0.1},
        {"temperature": 1e-300},
        {"top_p": 1e-50},
        {"top_p": 5e-324, "top_k": 3},
        {"top_p": 1e-9, "min_p": 1.0},
    ],
)
def test_parameters_that_are_nothing_in_fp32_take_the_likeliest(llm, options):
    greedy = SamplingParams(max_tokens=6, ignore_eos=True)
    drawn = SamplingParams(**{"temperature": 1.0} | options, max_tokens=6, seed=1, ignore_eos=True)
    assert llm.generate([PROMPT], drawn) == llm.generate([PROMPT], greedy)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1e-3}, {"repetition_penalty": 1e3}])
@pytest.mark.parametrize("temperature", [0.0, 1e-5, 1e6])
def test_the_ends_of_the_ranges_give_tokens(llm, options, temperature):
    extreme = SamplingParams(**options, frequency_penalty=2.0, top_p=0.5, temperature=temperature)
    assert len(llm.generate([PROMPT], extreme)[0].token_ids)


def test_a_bias_in_whole_numbers_is_one_in_floats(llm):
    whole, float_ = (
        llm.generate([PROMPT], SamplingParams(max_tokens=6, logit_bias=bias, ignore_eos=True))
        for bias in (((9, 4), (3, -2)), ((9, 4.0), (3, -2.0)))
    )
    assert whole == float_


def test_a_plain_request_does_not_notice_filtered_neighbours(llm):
    plain = SamplingParams(max_tokens=12, temperature=1.0, seed=3, ignore_eos=True)
    alone = llm.generate([PROMPT], plain)[0].token_ids
    others = [
        SamplingParams(max_tokens=12, temperature=0.9, seed=1, top_k=4, ignore_eos=True),
        SamplingParams(max_tokens=12, frequency_penalty=1.0, ignore_eos=True),
        SamplingParams(max_tokens=12, ignore_eos=True),
    ]
    for other in others:
        among = llm.generate([PROMPT, PROMPT], [other, plain])[1].token_ids
        assert among == alone


@pytest.mark.parametrize(
    "options",
    [
        {"min_p": 1.2},
        {"presence_penalty": 3.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"min_tokens": 5, "max_tokens": 4},
        {"logit_bias": ((1.5, 2.0),)},
        {"logit_bias": ((float("inf"), 2.0),)},
        {"logit_bias": ((1, float("-inf")),)},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((1,),)},
        {"logit_bias": {1: 2.0}},
    ],
)
def test_what_cannot_be_meant_is_refused(options):
    with pytest.raises(WorkloadError, match=f"`{next(iter(options))}`"):
        SamplingParams(**options)


def test_a_bias_of_an_unknown_token_is_refused(llm):
    for token in (199, 123456789):
        with pytest.raises(WorkloadError, match=f"`logit_bias` {token}:"):
            llm.generate([PROMPT], SamplingParams(logit_bias=((token, 1.0),)))


def made_up(num_rows, vocab_size, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * spread
    table = SamplingTable(num_rows + 1, vocab_size, torch.device("cpu"))
    table.numbers[:num_rows, 0] = torch.rand(num_rows, generator=generator) * 2 + 0.1
    table.numbers[::7, 0] = 0
    table.integers[:num_rows, 0] = torch.arange(num_rows)
    draws = Draws(
        rows=torch.randperm(num_rows, generator=generator).int(),
        lengths=torch.arange(num_rows).int() + 5,
        table=table,
    )
    return logits, draws


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("vocab_size", [5, 200, 3001, 40000])
def test_the_race_of_a_few_blocks_is_that_of_all(vocab_size, spread):
    logits, draws = made_up(50, vocab_size, spread)
    ids, pairs = best_of_rows(logits, vocab_size, 0, draws)
    rows = draws.rows.long()
    temperature = draws.table.numbers[rows, :1]
    key = row_keys(draws.table.integers[rows, 0], draws.lengths.long())
    times = clocks(key, torch.arange(-(-vocab_size // BLOCK), dtype=torch.int32)[None])
    times = times.flatten(1)[:, :vocab_size]
    scores = torch.where(temperature > 0, logits / temperature - times.log(), logits)
    assert torch.equal(pairs[:, 0], scores.amax(1))
    assert torch.equal(ids, scores.argmax(1))


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_of_the_vocabulary_race_alone(parts):
    logits, draws = made_up(40, 1003, 2.0, seed=parts)
    whole, _ = best_of_rows(logits, 1003, 0, draws)
    share = -(-1003 // parts)
    pairs = torch.stack(
        [
            best_of_rows(part, part.shape[1], first * share, draws)[1]
            for first, part in enumerate(logits.split(share, dim=1))
        ]
    )
    winner = pairs[..., 0].argmax(0, keepdim=True)
    assert torch.equal(pairs[..., 1].gather(0, winner)[0].long(), whole)


@pytest.mark.parametrize("differs", ["seed", "index"])
def test_clocks_are_exponential_and_independent(differs):
    numbers = {"seed": torch.full((400,), 5), "index": torch.full((400,), 7)}
    key = row_keys(**numbers | {differs: torch.arange(400)})
    times = clocks(key, torch.arange(20, dtype=torch.int32)[None]).flatten(1)
    ordered = times.flatten().double().sort().values
    steps = torch.arange(1, len(ordered) + 1) / len(ordered)
    distance = (1 - (-ordered).exp() - steps).abs().max() * len(ordered) ** 0.5
    assert distance < 2.3, "Kolmogorov-Smirnov"
    first = torch.bincount(times.view(400, 20, BLOCK).argmin(2).flatten(), minlength=BLOCK)
    assert chi_square(first, torch.full((BLOCK,), 400 * 20 / BLOCK)) > 1e-4
    centred = torch.corrcoef(times[:, : 3 * BLOCK].T.double())
    off = centred[~torch.eye(len(centred), dtype=torch.bool)].abs()
    assert off.max() < 5.5 / 400**0.5
