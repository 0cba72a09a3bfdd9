"""The parameters of a completion request, and errors in OpenAI's format."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from students.runtime import Decoding
from students.serving.limits import Limits

MAX_STOPS = 4  # as in OpenAI's API


class RequestError(Exception):
    """An error that a request is answered with.

    Args:
        status: the HTTP status.
        message: one sentence for the user of the API.
        param: the name of the wrong parameter.
        code: OpenAI's or this server's code of the error.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The body of the response, in OpenAI's format."""
        kinds = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response beyond those of its body."""
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


# Parameters of OpenAI's API and similar servers that this server does not support, with the values that have no effect.
# Clients send many of them by default. These values are accepted and ignored, and so is null for any parameter.
NEUTRAL: dict[str, list[Any]] = {
    # The number of answers, and additions to them.
    "n": [1],
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
    "logprobs": [False],  # 0 is not neutral: it requests those of the answer's tokens
    "top_logprobs": [0],
    "include_stop_str_in_output": [False],
    # Decoding.
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
    # Tools and formats of an answer.
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "parallel_tool_calls": [True, False],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    # Handling of the request.
    "store": [False],
    "service_tier": ["auto", "default"],
}
CLIENT_FIELDS = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # any value is accepted and ignored
SAMPLING = ("top_p", "top_k", "min_p")  # any number is accepted at temperature 0, where they have no effect


class CompletionRequest(BaseModel):
    """The body of ``POST /v1/completions``. Other parameters are refused, except for values without effect."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | list[str] | None = Field(
        None, description="A text or a list of texts. Masks are <extra_id_0>, <extra_id_1>, ..."
    )
    inputs: dict[str, Any] | None = Field(
        None, description="In place of prompt: a text or number for each column of the template of the student's task."
    )
    model: str | None = Field(None, description="A model of /v1/models; the student by default.")
    max_tokens: int | None = Field(None, ge=1, description="The largest number of tokens of each answer.")
    min_tokens: int = Field(0, ge=0, description="The smallest number of tokens of each answer, as in vLLM's API.")
    temperature: FiniteFloat = Field(0.0, ge=0, le=2, description="0 is greedy decoding.")
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="Makes samples repeatable; greedy decoding ignores it."
    )
    stop: str | list[str] = Field(
        [], description=f"Up to {MAX_STOPS} stop sequences. An answer ends before the first one that it reaches."
    )
    stream: bool = Field(False, description="Send the answer as server-sent events while it is generated.")
    stream_options: dict[str, bool | None] = Field(
        {}, description="include_usage: send the token counts at the end of the stream."
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_values_without_effect(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        greedy = _is_one_of(body.get("temperature"), [0])
        kept = {
            name: value
            for name, value in body.items()
            if not (
                value is None
                or name in CLIENT_FIELDS
                or _is_one_of(value, NEUTRAL.get(name, []))
                or (greedy and name in SAMPLING and _is_number(value))
            )
        }
        if "prompt" not in kept and "inputs" not in kept:
            raise ValueError("prompt is missing")
        if "prompt" in kept and "inputs" in kept:
            raise ValueError("prompt and inputs exclude each other; give one of them")
        return kept

    @property
    def decoding(self) -> Decoding:
        """How the tokens of the answers are chosen."""
        # Greedy decoding ignores the seed, and a request without a seed can share a batch with others.
        seed = None if self.seed is None or self.temperature == 0 else self.seed % 2**64
        return Decoding(self.min_tokens, self.temperature, seed)

    @property
    def prompts(self) -> list[str]:
        """The prompts, also if ``prompt`` is a single text. Empty if the request has ``inputs``."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt or []

    @property
    def stops(self) -> list[str]:
        """The stop sequences, also if ``stop`` is a single text."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options.get("include_usage"))


def parse_request(body: bytes, limits: Limits) -> CompletionRequest:
    """Parse and validate the body of a request.

    Raises:
        RequestError: the body is not JSON, has a wrong or unsupported parameter, or exceeds a limit.
    """
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _validation_error(error) from None
    if request.inputs is None and not 1 <= len(request.prompts) <= limits.max_batch:
        raise RequestError(
            400, f"prompt has {len(request.prompts)} texts; give 1 to {limits.max_batch}", param="prompt"
        )
    if not all(text.strip() for text in request.prompts):
        raise RequestError(400, "prompt is empty; give a text", param="prompt")
    if request.max_tokens is not None and request.max_tokens > limits.max_output:
        raise RequestError(
            400, f"max_tokens is {request.max_tokens}; the limit is {limits.max_output}", param="max_tokens"
        )
    if len(request.stops) > MAX_STOPS:
        raise RequestError(400, f"stop has {len(request.stops)} texts; give at most {MAX_STOPS}", param="stop")
    if not all(request.stops):
        raise RequestError(400, "stop has an empty text; remove it", param="stop")
    if more := [name[:60] for name, value in request.stream_options.items() if value and name != "include_usage"]:
        message = f"stream_options.{more[0]} is true, which is not supported; it may be false or null"
        raise RequestError(400, message, param="stream_options", code="unsupported_parameter")
    return request


def body_schema() -> dict[str, Any]:
    """The JSON schema of a request, including the values that are accepted without effect."""
    schema = CompletionRequest.model_json_schema()
    schema["properties"] |= {name: {"enum": [*accepted, None]} for name, accepted in NEUTRAL.items()}
    schema["properties"] |= dict.fromkeys(CLIENT_FIELDS, {})
    return schema


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_one_of(value: Any, accepted: list[Any]) -> bool:
    """Whether ``value`` is in ``accepted``, where 1.0 equals 1 but True does not."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted)


def _validation_error(error: ValidationError) -> RequestError:
    """The first error of a validation, in one sentence."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])[:60] if first["loc"] else None
    if first["type"] == "json_invalid":
        return RequestError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return _unsupported_parameter(str(first["loc"][0]), first["input"])
    if name is None and first["type"] == "value_error":  # neither prompt nor inputs, or both
        return RequestError(400, str(first["ctx"]["error"]), param="prompt")
    if name is None:
        return RequestError(400, 'the body is not a JSON object; give {"prompt": "..."}')
    if name in ("prompt", "stop"):
        return RequestError(400, f"{name} must be a text or a list of texts", param=name)
    if name == "inputs":
        return RequestError(400, 'inputs must be an object such as {"source": "a text"}', param=name)
    if name == "stream_options":
        return RequestError(400, 'stream_options must be an object such as {"include_usage": true}', param=name)
    message = first["msg"].removeprefix("Input should be ").removeprefix("a ")
    return RequestError(400, f"{name} should be {message}", param=name)


def _unsupported_parameter(name: str, value: Any) -> RequestError:
    if name not in NEUTRAL:
        known = ", ".join(CompletionRequest.model_fields)
        message = f"{name[:60]} is not supported; the parameters of a request are {known}"
    else:
        shown, accepted = json.dumps(value), " or ".join(map(json.dumps, [*NEUTRAL[name], None]))
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        message = f"{name} is {shown}, which is not supported; it may be {accepted}"
        message += ", and any number at temperature 0" if name in SAMPLING else ""
    return RequestError(400, message, param=name[:60], code="unsupported_parameter")
