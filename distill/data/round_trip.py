"""Counts of the text that a tokenizer loses: unknown words, and characters that decoding does not restore."""

from collections import Counter

from transformers import PreTrainedTokenizerFast

from distill.data.prepared_data import RoundTrip
from distill.data.tokenizer import unknown_id


class RoundTripCounter:
    """Counts lost text during the tokenisation of a corpus."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer, self._unknown_id = tokenizer, unknown_id(tokenizer)
        self._tokens = self._unknown = self._texts = self._restored = self._characters = 0
        self._lost: Counter[str] = Counter()

    def count(self, ids: list[int]) -> None:
        """Count the unknown words among the tokens of a text."""
        self._tokens += len(ids)
        self._unknown += 0 if self._unknown_id is None else ids.count(self._unknown_id)

    def sample(self, text: str, ids: list[int]) -> None:
        """Compare ``text`` with the text that its tokens are decoded to."""
        decoded = self._tokenizer.backend_tokenizer.decode(ids)
        self._texts += 1
        self._restored += decoded == text
        self._characters += len(text)
        self._lost += Counter(text) - Counter(decoded)  # 0 for characters that occur as often in both

    def result(self) -> RoundTrip:
        """The counts so far, as shares."""
        return RoundTrip(
            unknown_share=self._unknown / max(self._tokens, 1),
            restored_share=self._restored / max(self._texts, 1),
            lost_share=self._lost.total() / max(self._characters, 1),
            most_lost=[character for character, _ in self._lost.most_common(5)],
            sampled=self._texts,
        )
