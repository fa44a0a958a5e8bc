"""From requests to tokens: cache, batch, sampling, the LLM object."""
