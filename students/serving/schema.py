"""What a request may hold, and errors in OpenAI's shape."""

import time
import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from students.runtime import Decoding
from students.serving.limits import Limits


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


class CompletionRequest(BaseModel):
    """The body of ``POST /v1/completions``. What OpenAI's API has beyond it is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | list[str] = Field(description="A text, or several; masks are <extra_id_0>, <extra_id_1>, ...")
    model: str | None = Field(None, description="One that /v1/models lists; the student if not given.")
    max_tokens: int | None = Field(None, ge=1, description="Of each answer.")
    min_tokens: int = Field(0, ge=0, description="Of each answer before it may end, as in vLLM's API.")
    temperature: FiniteFloat = Field(0.0, ge=0, le=2, description="0 is greedy, and the default.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="For temperatures above 0: the same answer again.")

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.min_tokens, self.temperature, self.seed)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


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
    if request.seed is not None and request.temperature == 0:
        raise RequestError(
            400, "seed has no effect at temperature 0; set a temperature, or leave seed out", param="seed"
        )
    return request


def completion(model: str, answers: list[tuple[str, int, bool]], prompt_tokens: int) -> dict[str, Any]:
    """OpenAI's response. ``answers``: text, its tokens (</s> included), and whether it ended by itself."""
    completion_tokens = sum(tokens for _, tokens, _ in answers)
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": index, "text": text, "logprobs": None, "finish_reason": "stop" if ended else "length"}
            for index, (text, _, ended) in enumerate(answers)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _refusal(error: ValidationError) -> RequestError:
    """The first thing that is wrong, in one sentence."""
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0])[:60] if first["loc"] else None
    if first["type"] == "json_invalid":
        return RequestError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    if first["type"] == "extra_forbidden":
        known = ", ".join(CompletionRequest.model_fields)
        return RequestError(
            400, f"{name} is not supported; a request may hold {known}", param=name, code="unsupported_parameter"
        )
    if name is None:
        return RequestError(400, 'the body is not a JSON object; give {"prompt": "..."}')
    if first["type"] == "missing":
        return RequestError(400, f"{name} is missing", param=name)
    if name == "prompt":
        return RequestError(400, "prompt is neither a text nor a list of texts", param=name)
    message = first["msg"].removeprefix("Input should be ").removeprefix("a ")
    return RequestError(400, f"{name} should be {message}", param=name)
