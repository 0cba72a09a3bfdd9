"""The facts of prepared data on disk: of a corpus, or of a task. Does not import torch."""

from pathlib import Path

from distill.data.prepared_data import Part, PreparedData, PreparedText, RoundTrip, damage_hint
from distill.errors import UserError
from distill.io.files import read_record
from distill.special_tokens import SpecialTokens
from distill.tasks.prepared import PreparedPairs


def read_prepared(directory: Path) -> PreparedData:
    """Read the facts of prepared data in ``directory``.

    Raises:
        UserError: data.json is damaged.
    """
    values = read_record(directory / "data.json", damage_hint(directory))
    try:
        parts = {name: Part(**part) for name, part in values.pop("parts").items()}
        special_tokens, round_trip = SpecialTokens(*values.pop("special_tokens")), RoundTrip(**values.pop("round_trip"))
        kind: type[PreparedData] = PreparedPairs if "task" in values else PreparedText
        return kind(
            directory=str(directory), parts=parts, special_tokens=special_tokens, round_trip=round_trip, **values
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{directory / 'data.json'} is not what was written; {damage_hint(directory)}") from error
