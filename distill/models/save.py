"""Write a T5 and a tokenizer so that readers other than transformers 5 take them for what they are.

transformers 5 has names of its own for some things, which transformers 4, and what is built on it, does not know or
takes for others.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import UserError
from distill.io.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration


def set_tie_word_embeddings(config: "T5Config") -> None:
    """Set ``tie_word_embeddings`` to what it is documented to mean: head and embedding are one, the output is scaled.

    transformers 5 sets it for every T5 that it reads, and has ``scale_decoder_outputs`` beside it, which no other
    reader knows.
    """
    config.tie_word_embeddings = config.scale_decoder_outputs


def save_t5(model: "T5ForConditionalGeneration", directory: Path) -> None:
    """Write config.json, generation_config.json and the weights; ``lm_head.weight`` too where it is not tied."""
    state = model.state_dict()
    if not model.config.scale_decoder_outputs:
        # Without it, transformers 4 draws a head at random; save_pretrained leaves it out if it is the embedding.
        state["lm_head.weight"] = model.lm_head.weight.detach().clone()
    set_tie_word_embeddings(model.config)
    model.save_pretrained(directory, state_dict=state)


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save_pretrained(directory)
    correct_tokenizer_config(directory / "tokenizer_config.json")


def correct_tokenizer_config(path: Path) -> None:
    """Give a ``tokenizer_config.json`` of transformers 5 the names that transformers 4 has too, in place.

    Raises:
        UserError: it is no such file.
    """
    hint = "save the tokenizer again with save_pretrained"
    values = read_json(path, hint)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no keys and values; {hint}")
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):  # transformers 4 has a dictionary of this name
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    # transformers 4 adds token_type_ids for a PreTrainedTokenizerFast, which a T5 does not take.
    values.setdefault("model_input_names", ["input_ids", "attention_mask"])
    write_json(path, values)
