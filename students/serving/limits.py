"""How much a request may ask for, and how much the server takes on at once."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Lengths are in tokens, times in seconds."""

    max_batch: int = 32  # prompts in one batch, and in one request
    max_batch_tokens: int = 8192  # of a batch, padded, inputs and outputs together: bounds its memory
    max_queue: int = 256  # prompts that wait; further ones are answered 429
    max_input: int = 512
    max_output: int = 256
    max_body: int = 1 << 20  # bytes
    timeout: float = 60.0  # from the first byte to the answer
    wait: float = 0.005  # how long a batch that is not full waits for company
