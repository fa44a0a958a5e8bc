"""The JSON bodies and headers of the requests sent to an OpenAI-compatible server."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from weft.bench.serving.http_client import ServerAddress, request_bytes
from weft.bench.serving.prompts import prompt_token_ids, prompt_words
from weft.bench.serving.records import RequestSpec


class Api(StrEnum):
    """Which of the two generation endpoints is called."""

    COMPLETIONS = "completions"
    CHAT = "chat"

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self is Api.CHAT else "/v1/completions"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The server and how it is asked."""

    endpoint: ServerAddress
    model: str
    api: Api = Api.COMPLETIONS
    api_key: str | None = None
    temperature: float | None = None
    """None leaves it to the server, which is 1 by the API's definition."""
    ignore_eos: bool = True
    continuous_usage: bool = True
    """Ask for the running token count with every chunk (vLLM, SGLang and weft know it)."""
    token_ids_below: int | None = None
    """Send prompts as random token ids below this, not as words (completions only)."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def request(self, spec: RequestSpec, index: int) -> bytes:
        """The whole HTTP request."""
        body = json.dumps(self._body(spec, index)).encode()
        return request_bytes(self.endpoint, self.api.path, body, self.headers)

    def models_request(self) -> bytes:
        return request_bytes(self.endpoint, "/v1/models", None, self.headers)

    def profile_request(self, *, start: bool) -> bytes:
        path = "/start_profile" if start else "/stop_profile"
        return request_bytes(self.endpoint, path, b"{}", self.headers)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def _body(self, spec: RequestSpec, index: int) -> dict[str, Any]:
        options = {"include_usage": True}
        if self.continuous_usage:
            options["continuous_usage_stats"] = True
        body: dict[str, Any] = {
            "model": self.model,
            **self._prompt(spec, index),
            "max_tokens": spec.output_tokens,
            "stream": True,
            "stream_options": options,
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.ignore_eos:
            body["ignore_eos"] = True
        return body | self.extra_body

    def _prompt(self, spec: RequestSpec, index: int) -> dict[str, Any]:
        if self.token_ids_below is not None:
            return {"prompt": prompt_token_ids(spec, index, self.seed, self.token_ids_below)}
        words = spec.text or prompt_words(spec, index, self.seed)
        if self.api is Api.CHAT:
            return {"messages": [{"role": "user", "content": words}]}
        return {"prompt": words}
