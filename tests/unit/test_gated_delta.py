"""The gated delta rule in chunks is the rule token by token, and a state carries it on."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.models.gated_delta import Tokens, delta_rule


def token_by_token(queries, keys, values, strengths, decays, state):
    """Equation 10 of arXiv:2412.06464 as written."""
    outs = []
    for t in range(values.shape[2]):
        state = state * decays[:, :, t, None, None].exp()
        key = keys[:, :, t, :, None]
        wanted = values[:, :, t, None, :] - (state * key).sum(dim=2, keepdim=True)
        state = state + key * wanted * strengths[:, :, t, None, None]
        outs.append((state * queries[:, :, t, :, None]).sum(dim=2))
    return torch.stack(outs, dim=2), state


@given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 150), st.integers(0, 150), st.integers()
)
def test_chunks_are_the_rule(sequences, heads, first, second, seed):
    torch.manual_seed(seed % 2**32)
    shape = (sequences, heads, first + second)
    queries, keys = (torch.randn(*shape, 6, dtype=torch.float64) for _ in range(2))
    keys = keys / keys.norm(dim=-1, keepdim=True)
    values = torch.randn(*shape, 5, dtype=torch.float64)
    strengths = torch.rand(shape, dtype=torch.float64)
    decays = -3 * torch.rand(shape, dtype=torch.float64)
    state = torch.randn(sequences, heads, 6, 5, dtype=torch.float64)
    every = (queries, keys, values, strengths, decays)
    expected, last = token_by_token(*every, state)
    out, state = delta_rule(Tokens(*(x[:, :, :first] for x in every)), state)
    outs = [out]
    if second:
        out, state = delta_rule(Tokens(*(x[:, :, first:] for x in every)), state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, dim=2), expected)
    torch.testing.assert_close(state, last)
