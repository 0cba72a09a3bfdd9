"""The size of the arrays of soft labels."""

import pytest
from numpy.lib.format import open_memmap

from distill.data.label_arrays import labels_bytes, layout_of, open_arrays, path_of


@pytest.mark.parametrize("form,per_id", [("sampled", 0), ("top_k", 2)])
@pytest.mark.parametrize("vocabulary,id_size", [(32_128, 2), (100_000, 4)])
def test_the_size_of_labels_is_that_of_their_arrays(form, per_id, vocabulary, id_size, tmp_path):
    facts = {"examples": 3, "targets": 5, "words": 7, "vocabulary": vocabulary, "form": form}
    for name, (kind, shape) in layout_of(facts).items():
        open_memmap(path_of(tmp_path, name), "w+", kind, shape)
    arrays = open_arrays(tmp_path, facts, "r").values()
    assert labels_bytes(facts) == sum(array.nbytes for array in arrays) == 3 * 5 * (7 * (id_size + per_id) + 2)


def test_the_size_of_labels_that_no_disk_holds_is_exact():
    """A config allows numbers whose product exceeds 64 bits. In 64 bits the size would be negative, and would fit."""
    facts = {"examples": 2**31 - 1, "targets": 2**16, "words": 2**31 - 1, "vocabulary": 512, "form": "sampled"}
    assert labels_bytes(facts) == (2**31 - 1) * 2**16 * ((2**31 - 1) * 2 + 2)
