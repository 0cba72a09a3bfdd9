"""A server of this project with a stand-in model that repeats its prompt. Run as a script.

While the file ``hold`` exists, the model generates no token. It fails on a prompt with the word "crash", and after five
tokens of a prompt with "break". It answers a prompt with two masks with fillings.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from students.runtime import GREEDY
from students.runtime.batches import Answers
from students.serving.limits import Limits
from students.serving.models import Model
from students.serving.server import serve


def make_tokenizer() -> Tokenizer:
    """A tokenizer with one token per byte and </s> at the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "</s>", "<unk>", *alphabet]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(word, special=True) for word in ("<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


# The answers to prompts with masks.
FILLINGS = ("<extra_id_0> for inviting <extra_id_1> last", "<extra_id_0> for welcoming <extra_id_1> next")


class Echo:
    """A runner that repeats its prompts."""

    format, compute_type = "echo", "none"

    def __init__(self, hold: Path, seconds: float, pace: float, filling: str = FILLINGS[0]):
        self.tokenizer = make_tokenizer()
        self.hold, self.seconds, self.pace = hold, seconds, pace
        self.filling = self.tokenizer.encode(filling).ids

    def generate(self, inputs, max_tokens, decoding=GREEDY, on_token=None):
        time.sleep(self.seconds)
        prompts = [self.tokenizer.decode(ids) for ids in inputs]
        second = self.tokenizer.token_to_id("<extra_id_1>")
        rows = [self.filling if second in ids else ids for ids in inputs]
        answers = Answers(max_tokens, self.tokenizer.token_to_id("</s>"), on_token)
        for step in range(max(max_tokens)):
            time.sleep(self.pace)
            while self.hold.exists():
                time.sleep(0.005)
            if any("crash" in prompt or ("break" in prompt and step == 5) for prompt in prompts):
                raise RuntimeError("the echo crashed")
            answers.add_step([ids[step] if step < len(ids) else 0 for ids in rows])
            if not answers.unfinished.any():
                break
        return answers.rows


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    hold, port = Path(settings.pop("hold")), settings.pop("port", 0)
    seconds, pace = settings.pop("seconds", 0.0), settings.pop("pace", 0.0)  # per batch, and per token
    teacher, host = settings.pop("teacher", False), settings.pop("host", "127.0.0.1")
    others, template = settings.pop("allowed_hosts", []), settings.pop("template", None)
    limits = Limits(**settings)
    served = [Model("echo", lambda: Echo(hold, seconds, pace), limits, template=template)]
    if teacher:
        slow = partial(Echo, hold, 3 * seconds, pace, FILLINGS[1])
        served.append(Model("echo-teacher", slow, limits, "teacher", template=template))
    serve(served, host, port, allowed_hosts=others, say=lambda text: print(text, flush=True))
