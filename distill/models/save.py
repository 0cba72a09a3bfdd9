"""Save T5 models and tokenizers so that transformers 4 and 5 and other readers load them correctly.

transformers 5 has new names for some config values. transformers 4 and libraries based on it do not know these names,
or give them another meaning.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import UserError
from distill.io.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration


def set_tie_word_embeddings(config: "T5Config") -> None:
    """Set ``tie_word_embeddings`` to its documented meaning: the head is the embedding and the output is scaled.

    transformers 5 sets it to true for every T5 that it reads, and uses the additional key ``scale_decoder_outputs``,
    which no other reader knows.
    """
    config.tie_word_embeddings = config.scale_decoder_outputs


def save_t5(model: "T5ForConditionalGeneration", directory: Path) -> None:
    """Write config.json, generation_config.json and the weights; and ``lm_head.weight`` if the model is untied."""
    state = model.state_dict()
    if not model.config.scale_decoder_outputs:
        # transformers 4 initialises a missing head at random; save_pretrained omits a head that is the embedding.
        state["lm_head.weight"] = model.lm_head.weight.detach().clone()
    set_tie_word_embeddings(model.config)
    model.save_pretrained(directory, state_dict=state)


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save_pretrained(directory)
    correct_tokenizer_config(directory / "tokenizer_config.json")


def correct_tokenizer_config(path: Path) -> None:
    """Rewrite a ``tokenizer_config.json`` of transformers 5 in place, with names that transformers 4 knows.

    Raises:
        UserError: the file cannot be read, or is not a JSON object.
    """
    hint = "save the tokenizer again with save_pretrained"
    values = read_json(path, hint)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; {hint}")
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):  # a dict in transformers 4
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    # transformers 4 adds token_type_ids for a PreTrainedTokenizerFast, which T5 does not accept.
    values.setdefault("model_input_names", ["input_ids", "attention_mask"])
    write_json(path, values)
