"""The text of an answer while its tokens come, up to the first of its stop sequences."""

import re
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from students.runtime import decode, silent_ids

# A byte of the decoder ByteFallback, which makes characters of whole runs of bytes and of nothing less.
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def until_stop(text: str, start: int, stops: Sequence[str], complete: bool) -> tuple[int, bool]:
    """Where the first stop sequence at or after ``start`` begins, and whether it is there.

    Args:
        text: of an answer, so far.
        stops: none of them empty.
        complete: no more text follows. Otherwise the place may be that of a sequence which only more text can decide
            on: everything before it belongs to the answer.

    Returns:
        An index into ``text``, its length if nothing in it can be part of a stop sequence; and whether one was found.
    """
    found = min((at for stop in stops if (at := text.find(stop, start)) >= 0), default=len(text))
    if not complete:
        longest = max(map(len, stops), default=0)
        for at in range(max(start, len(text) - longest + 1), found):
            if any(stop.startswith(text[at:]) for stop in stops):
                return at, False
    return found, found < len(text)


class Answer:
    """One answer. Its text is what ``decode`` makes of its tokens, up to the first of ``stops``.

    Each piece of the text is given away once it is certain, which a half-finished character and the beginning of a
    stop sequence are not. The pieces together are the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        show: Callable[[str, str | None], None] | None = None,
    ):
        """Args:
        max_tokens: that the answer ends with, if not before.
        stops: are looked for after the first ``min_tokens`` tokens.
        show: called with each next piece of the text and, once the answer has ended, with the reason.
        """
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._stops, self._min_tokens = stops, min_tokens
        self._show, self._shown = show, ""
        self._end, self._silent = tokenizer.token_to_id("</s>"), silent_ids(tokenizer)
        self.begin()

    def begin(self) -> None:
        """Its tokens come from the first one on; again, where a batch is computed again."""
        self.text = ""
        self.ids: list[int] = []
        self.finish_reason: str | None = None  # "stop" or "length" once it has ended
        self._decoded, self._certain = "", 0  # the text without regard to stops, and how much of it is the answer's
        self._stream, self._run = DecodeStream(skip_special_tokens=False), []

    def add(self, id_: int) -> bool:
        """Take the next token; whether the answer ends with it.

        Raises:
            RuntimeError: the answer is computed again, and is not what was shown of it before.
        """
        self.ids.append(id_)
        last = id_ == self._end or len(self.ids) == self._max_tokens
        self._decoded = decode(self._tokenizer, self.ids) if last else self._decoded + self._next_piece(id_)
        if len(self.ids) <= self._min_tokens:
            self._certain = len(self._decoded)
        self._certain, stopped = until_stop(self._decoded, self._certain, self._stops, last)
        self.text = self._decoded[: self._certain]
        if stopped or last:
            self.finish_reason = "stop" if stopped or id_ == self._end else "length"
        if self._show is not None:
            self._show_more(self._show)
        return self.finish_reason is not None

    def read(self, ids: list[int]) -> None:
        """Take all tokens at once, of an answer without stop sequences."""
        self.ids = ids[:-1]
        self.add(ids[-1])

    def _next_piece(self, id_: int) -> str:
        if id_ in self._silent:
            return ""
        self._run.append(id_)
        if _BYTE.fullmatch(self._tokenizer.id_to_token(id_) or ""):
            return ""
        run, self._run = self._run, []
        return self._stream.step(self._tokenizer, run) or ""

    def _show_more(self, show: Callable[[str, str | None], None]) -> None:
        if self.text.startswith(self._shown):
            piece, self._shown = self.text[len(self._shown) :], self.text
            if piece or self.finish_reason:
                show(piece, self.finish_reason)
        elif self.finish_reason or not self._shown.startswith(self.text):
            raise RuntimeError("an answer was computed again and is another one")
