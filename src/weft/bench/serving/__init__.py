"""Load generation against any OpenAI-compatible server, and what its answers mean."""
