"""What a request may hold, and errors in OpenAI's shape."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from students.runtime import Decoding
from students.serving.limits import Limits

MAX_STOPS = 4  # as OpenAI's API has it


class RequestError(Exception):
    """A request that is answered with an error; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        kinds = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


# What OpenAI's API, and servers like it, have beyond this server's own parameters: the values that ask for nothing
# more than it does anyway. Clients send many of them unasked. They are accepted without effect; so is null, anywhere.
NEUTRAL: dict[str, list[Any]] = {
    # How many answers there are, and what comes with them.
    "n": [1],
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
    "logprobs": [False],  # 0 asks for those of the answer's own tokens
    "top_logprobs": [0],
    "include_stop_str_in_output": [False],
    # How their words are chosen.
    "top_p": [1],
    "top_k": [0, -1],
    "min_p": [0],
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "repetition_penalty": [1],
    "length_penalty": [1],
    "logit_bias": [{}],
    "stop_token_ids": [[]],
    "ignore_eos": [False],
    "num_beams": [1],
    "use_beam_search": [False],
    # Tools and forms of an answer.
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    # What becomes of the request.
    "store": [False],
    "service_tier": ["auto", "default"],
}
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # say who asks; any value is accepted
SAMPLING = ("top_p", "top_k", "min_p")  # choose among words: at temperature 0 there is one, whatever their values


class CompletionRequest(BaseModel):
    """The body of ``POST /v1/completions``. Anything else is refused, not ignored, unless it asks for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | list[str] = Field(description="A text, or several; masks are <extra_id_0>, <extra_id_1>, ...")
    model: str | None = Field(None, description="One that /v1/models lists; the student if not given.")
    max_tokens: int | None = Field(None, ge=1, description="Of each answer.")
    min_tokens: int = Field(0, ge=0, description="Of each answer before it may end, as in vLLM's API.")
    temperature: FiniteFloat = Field(0.0, ge=0, le=2, description="0 is greedy, and the default.")
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="Repeats a sample; a greedy answer has no use for it."
    )
    stop: str | list[str] = Field([], description=f"Up to {MAX_STOPS} texts; an answer ends before the first of them.")
    stream: bool = Field(False, description="The answer comes as server-sent events, while it is made.")
    stream_options: dict[str, bool | None] = Field({}, description="include_usage: count the tokens at its end.")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        greedy = _is_one_of(body.get("temperature"), [0])
        return {
            name: value
            for name, value in body.items()
            if not (
                value is None
                or name in LABELS
                or _is_one_of(value, NEUTRAL.get(name, []))
                or (greedy and name in SAMPLING and _is_number(value))
            )
        }

    @property
    def decoding(self) -> Decoding:
        # Without a temperature a seed changes nothing, and with none the request shares its batch with others.
        seed = None if self.seed is None or self.temperature == 0 else self.seed % 2**64
        return Decoding(self.min_tokens, self.temperature, seed)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options.get("include_usage"))


def parse_request(body: bytes, limits: Limits) -> CompletionRequest:
    """The request in ``body``, whose prompts are as many as a request may have and none of them empty.

    Raises:
        RequestError: it is not JSON, or holds something that is not supported, or too much of it.
    """
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    if not 1 <= len(request.prompts) <= limits.max_batch:
        raise RequestError(
            400, f"prompt holds {len(request.prompts)} texts; give 1 to {limits.max_batch}", param="prompt"
        )
    if not all(text.strip() for text in request.prompts):
        raise RequestError(400, "prompt is empty; give a text", param="prompt")
    if request.max_tokens is not None and request.max_tokens > limits.max_output:
        raise RequestError(
            400, f"max_tokens is {request.max_tokens}; at most {limits.max_output} is served", param="max_tokens"
        )
    if len(request.stops) > MAX_STOPS:
        raise RequestError(400, f"stop holds {len(request.stops)} texts; give at most {MAX_STOPS}", param="stop")
    if not all(request.stops):
        raise RequestError(400, "stop holds an empty text; leave it out, or give one to stop at", param="stop")
    if more := [name[:60] for name, value in request.stream_options.items() if value and name != "include_usage"]:
        message = f"stream_options.{more[0]} is true, which is not supported; it may be false or null"
        raise RequestError(400, message, param="stream_options", code="unsupported_parameter")
    return request


def body_schema() -> dict[str, Any]:
    """JSON's schema of a request, with the values that are accepted without effect."""
    schema = CompletionRequest.model_json_schema()
    schema["properties"] |= {name: {"enum": [*accepted, None]} for name, accepted in NEUTRAL.items()}
    schema["properties"] |= dict.fromkeys(LABELS, {})
    return schema


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_one_of(value: Any, accepted: list[Any]) -> bool:
    """1.0 is 1, but true is not."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted)


def _refusal(error: ValidationError) -> RequestError:
    """The first thing that is wrong, in one sentence."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])[:60] if first["loc"] else None
    if first["type"] == "json_invalid":
        return RequestError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return _unsupported_parameter(first["loc"][0], first["input"])
    if name is None:
        return RequestError(400, 'the body is not a JSON object; give {"prompt": "..."}')
    if first["type"] == "missing":
        return RequestError(400, f"{name} is missing", param=name)
    if name in ("prompt", "stop"):
        return RequestError(400, f"{name} is neither a text nor a list of texts", param=name)
    if name == "stream_options":
        return RequestError(400, 'stream_options is not an object such as {"include_usage": true}', param=name)
    message = first["msg"].removeprefix("Input should be ").removeprefix("a ")
    return RequestError(400, f"{name} should be {message}", param=name)


def _unsupported_parameter(name: str, value: Any) -> RequestError:
    if name not in NEUTRAL:
        known = ", ".join(CompletionRequest.model_fields)
        message = f"{name[:60]} is not supported; a request may hold {known}"
    else:
        shown, accepted = json.dumps(value), " or ".join(map(json.dumps, [*NEUTRAL[name], None]))
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        message = f"{name} is {shown}, which is not supported; it may be {accepted}"
        message += ", and any number at temperature 0" if name in SAMPLING else ""
    return RequestError(400, message, param=name[:60], code="unsupported_parameter")
