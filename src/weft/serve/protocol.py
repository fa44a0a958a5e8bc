"""The two generation requests of the OpenAI API, as this server understands them.

An unknown field is an error. Fields that OpenAI or vLLM know and this server cannot honour
are accepted with the value that asks for nothing, and named in the error otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from weft.engine.request import MOST_BIAS, MOST_LOGPROBS

MOST_CHOICES = 128
MOST_STOPS = 16
MOST_BIASES = 1024
TokenId = Annotated[int, Field(ge=0, strict=True)]
TokenName = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-MOST_BIAS, le=MOST_BIAS, allow_inf_nan=False)]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text has a lone surrogate, which is no character") from None
    return text


Text = Annotated[str, Field(strict=True), AfterValidator(_encodable)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


def _prompt_kind(prompt: Any) -> str:
    """Which of the four forms is meant, so that an error speaks of that one alone."""
    if not isinstance(prompt, list):
        return "str"
    first = type(prompt[0]) if prompt else int
    return f"list[{first.__name__}]" if first in (str, list) else "list[int]"


_NEUTRAL: dict[str, Any] = {
    "add_generation_prompt": True,
    "bad_words": [],
    "best_of": 1,
    "continue_final_message": False,
    "echo": False,
    "function_call": "none",
    "functions": [],
    "include_stop_str_in_output": False,
    "length_penalty": 1,
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "suffix": "",
    "tool_choice": "none",
    "tools": [],
    "truncate_prompt_tokens": -1,
    "use_beam_search": False,
}
"""Values that ask for nothing; so does null, of any field."""
_OTHERS = frozenset({"audio", "prediction", "prompt_logprobs", "web_search_options"})
_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "priority",
        "prompt_cache_key",
        "reasoning_effort",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)


def refused(name: str, why: str) -> PydanticCustomError:
    """The error of a field that several fields together make wrong."""
    return PydanticCustomError("refused", "{name} {why}", {"name": name, "why": why})


class StreamOptions(BaseModel):
    """What a stream tells beside its text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class GenerationBody(BaseModel):
    """What both requests share."""

    model_config = ConfigDict(extra="forbid")
    neutral: ClassVar[dict[str, Any]] = _NEUTRAL | {"add_special_tokens": False}

    model: Text
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.001, le=1000, allow_inf_nan=False)] | None = (
        None
    )
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenName, Bias], Field(max_length=MOST_BIASES)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: (
        Annotated[
            Annotated[Text, Tag("str")]
            | Annotated[list[Text], Field(max_length=MOST_STOPS), Tag("list[str]")],
            Discriminator(lambda stop: "list[str]" if isinstance(stop, list) else "str"),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = cls.model_fields.keys()
        given = {name: one for name, one in value.items() if one is not None or name in known}
        for name in given.keys() - known & (cls.neutral.keys() | _OTHERS):
            if name not in cls.neutral or not _same(given[name], cls.neutral[name]):
                raise refused(name, "is not supported by this server; leave it out")
        unread = (cls.neutral.keys() | _IGNORED) - known
        return {name: one for name, one in given.items() if name not in unread}

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        if isinstance(value, bool) and "bool" not in str(
            cls.model_fields[info.field_name].annotation
        ):
            raise PydanticCustomError("number", "must not be true or false")
        return value

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "is only allowed when stream is true")
        if any(not stop for stop in self.stops):
            raise refused("stop", "must not be empty")
        return self

    @property
    def stops(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest tokens to name beside each sampled one; None: no log-probabilities."""
        return None

    @property
    def echoes(self) -> bool:
        """Whether the prompt comes before its answer."""
        return False

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Likeliest tokens to name beside each of the prompt; None: no log-probabilities."""
        return None


class CompletionBody(GenerationBody):
    """``POST /v1/completions``."""

    neutral: ClassVar[dict[str, Any]] = _NEUTRAL | {"add_special_tokens": True, "top_logprobs": 0}

    prompt: Annotated[
        Annotated[Text, Tag("str")]
        | Annotated[TokenIds, Tag("list[int]")]
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES), Tag("list[str]")]
        | Annotated[
            list[TokenIds], Field(min_length=1, max_length=MOST_CHOICES), Tag("list[list]")
        ],
        Discriminator(_prompt_kind),
    ]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5, strict=True)] | None = None
    echo: bool | None = False
    prompt_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS, strict=True)] | None = None

    @model_validator(mode="after")
    def _nothing_only_of_a_prompt(self) -> Self:
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise refused("max_tokens", "0 is only allowed with echo or prompt_logprobs")
        return self

    @property
    def prompts(self) -> Sequence[str | TokenIds]:
        """One or several, as a list."""
        prompt: Any = self.prompt
        return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]

    @model_validator(mode="after")
    def _not_too_many_answers(self) -> Self:
        wanted = len(self.prompts) * self.num_choices
        if wanted > MOST_CHOICES:
            raise refused(
                "n",
                f"{self.num_choices} with {len(self.prompts)} prompts is {wanted} answers, "
                f"more than the {MOST_CHOICES} of one request",
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    @property
    def num_prompt_logprobs(self) -> int | None:
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((one for one in wanted if one is not None), default=None)


class TextPart(BaseModel):
    """A piece of a message; only text is understood."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    type: Literal["text"] | None = None
    content: Text | list[TextPart] | None = None
    name: Text | None = None
    refusal: Text | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_what_is_empty(cls, value: Any) -> Any:
        """A client's own message object brings every field, most of them empty."""
        if not isinstance(value, dict):
            return value
        known = cls.model_fields.keys()
        return {key: one for key, one in value.items() if key in known or one not in (None, [])}

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[bool, Field(strict=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS, strict=True)] | None = None
    reasoning_effort: Text | None = None
    chat_template_kwargs: dict[Text, Any] | None = None

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the model's chat template may read beside the messages."""
        effort = {"reasoning_effort": self.reasoning_effort} if self.reasoning_effort else {}
        return effort | (self.chat_template_kwargs or {})

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "is only allowed when logprobs is true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def _same(value: Any, neutral: Any) -> bool:
    if isinstance(neutral, bool) or isinstance(value, bool):
        return value is neutral
    return bool(value == neutral)
