"""A server of this project whose model repeats its prompt: everything but the model is real. Run as a script.

While the file HOLD exists, the model does not answer; a prompt with the word "crash" makes it fail, and one with two
masks is filled.
"""

import json
import sys
import time
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from students.runtime import GREEDY
from students.serving.app import Model
from students.serving.limits import Limits
from students.serving.server import serve


def make_tokenizer() -> Tokenizer:
    """One token per byte, </s> at the end."""
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


# What is answered where masks are to be filled.
FILLINGS = ("<extra_id_0> for inviting <extra_id_1> last", "<extra_id_0> for welcoming <extra_id_1> next")


class Echo:
    format, compute_type = "echo", "none"

    def __init__(self, hold: Path, seconds: float, filling: str = FILLINGS[0]):
        self.tokenizer = make_tokenizer()
        self.hold, self.seconds = hold, seconds
        self.filling = self.tokenizer.encode(filling).ids

    def generate(self, inputs, max_tokens, how=GREEDY):
        time.sleep(self.seconds)
        while self.hold.exists():
            time.sleep(0.005)
        if any("crash" in self.tokenizer.decode(ids) for ids in inputs):
            raise RuntimeError("the echo crashed")
        second = self.tokenizer.token_to_id("<extra_id_1>")
        answers = [self.filling if second in ids else ids for ids in inputs]
        return [ids[:limit] for ids, limit in zip(answers, max_tokens, strict=True)]


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    hold, seconds, port = Path(settings.pop("hold")), settings.pop("seconds", 0.0), settings.pop("port", 0)
    teacher, host = settings.pop("teacher", False), settings.pop("host", "127.0.0.1")
    others = settings.pop("allowed_hosts", [])
    limits = Limits(**settings)
    served = [Model("echo", lambda: Echo(hold, seconds), limits)]
    if teacher:
        served.append(Model("echo-teacher", lambda: Echo(hold, 3 * seconds, FILLINGS[1]), limits, "teacher"))
    serve(served, host, port, allowed_hosts=others, say=lambda text: print(text, flush=True))
