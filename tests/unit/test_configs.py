"""Every key of every family's config.json means what it means to transformers, or is refused.

``WEFT_CONFIG_CASES=100 pytest tests/unit/test_configs.py`` draws 100 random configs a family.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
import torch

from config_cases import (
    BASES,
    LARGE_DEFAULTS,
    assert_same,
    keys_of,
    logits_of,
    other_values,
    prompt_of,
    random_config,
    spec_of,
    transformers_config,
    transformers_model,
)
from weft.vocabulary.families import FAMILIES

SAME_AS_ANOTHER = {
    "gemma3": "its text_config is gemma3_text",
    "kimi_k2": "is deepseek_v3",
    "kimi_k25": "its text_config is kimi_k2",
    "qwen3_5": "its text_config is qwen3_5_text",
    "qwen3_5_moe": "its text_config is qwen3_5_moe_text",
    "llama4": "its text_config is llama4_text",
}
assert set(BASES) | set(SAME_AS_ANOTHER) == set(FAMILIES)

NUM_CASES = int(os.environ.get("WEFT_CONFIG_CASES", "6"))

pytestmark = pytest.mark.parametrize("family", BASES)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny models run faster alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_key_left_out_is_transformers_default(family):
    for key in [None, *keys_of(family)]:
        partial = {name: value for name, value in BASES[family].items() if name != key}
        parsed = transformers_config(family, partial)
        if parsed is None:
            continue
        ours = spec_of(family, partial)
        assert ours == spec_of(family, parsed.to_dict() | {"dtype": None}), f"without {key}"


def test_an_empty_config_is_transformers_default(family):
    parsed = transformers_config(family, {})
    assert spec_of(family, {}) == spec_of(family, parsed.to_dict() | {"dtype": None})


def test_a_key_left_out_runs_as_in_transformers(family, tmp_path):
    for number, key in enumerate(sorted(set(BASES[family]) - LARGE_DEFAULTS)):
        partial = {name: value for name, value in BASES[family].items() if name != key}
        assert_same(family, partial, tmp_path / str(number))


def test_a_value_that_changes_transformers_changes_weft(family, tmp_path):
    base = BASES[family]
    whole = transformers_config(family, base).to_dict()
    model = transformers_model(family, base)
    prompt = prompt_of(base["vocab_size"])
    expected = logits_of(model, prompt)
    for key in keys_of(family):
        for number, value in enumerate(other_values(key, base.get(key, whole.get(key)))):
            changed = base | {key: value}
            other = transformers_model(family, changed)
            spec = spec_of(family, changed)
            logits = None if other is None or spec is None else logits_of(other, prompt)
            if logits is None or spec is None:
                continue
            changes_logits = logits.shape != expected.shape or not torch.equal(expected, logits)
            if changes_logits or spec != spec_of(family, base):
                assert_same(family, changed, tmp_path / f"{key}-{number}")


def test_random_configs(family, tmp_path):
    verdicts: Counter[str] = Counter()
    different = []
    for seed in range(NUM_CASES):
        try:
            verdicts[assert_same(family, random_config(family, seed), tmp_path / str(seed))] += 1
        except AssertionError as difference:
            different.append(str(difference))
        shutil.rmtree(tmp_path / str(seed), ignore_errors=True)
    print("\n", family, dict(sorted(verdicts.items())), "different:", len(different))
    assert not different, "\n".join(different)
    assert verdicts["equal"] >= NUM_CASES // 3
