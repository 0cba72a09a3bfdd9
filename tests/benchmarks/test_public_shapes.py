"""The files of the public shapes, against what is known of the checkpoints."""

import pytest

from benchmarks.public_shapes import CHECKPOINTS, expert_bytes, main, write_holes
from pipelines.cli.inspection import model_facts

# Bytes of the files on the hub.
SIZES = {"switch-base-8": 1.24e9, "switch-base-16": 4.29e9, "switch-base-32": 7.91e9, "switch-large-128": 52.7e9}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_on_the_hub_and_the_holes_take_no_space(tmp_path, name):
    directory = tmp_path / name
    write_holes(directory, CHECKPOINTS[name])
    facts = model_facts(str(directory))
    assert facts["bytes"] == pytest.approx(SIZES[name], rel=2e-3)
    assert sum(path.stat().st_blocks * 512 for path in directory.iterdir()) < 2e7
    assert facts["layout"]["encoder"]["sparse"][:2] == [1, 3] and not facts["differences"]
    assert expert_bytes(facts) == pytest.approx(facts["bytes"] - facts["init"]["reads"], rel=1e-3)
    if name.startswith("switch-base"):
        assert facts["student"]["parameters"] == 222_903_552  # T5-Base


@pytest.mark.slow
def test_the_largest_are_those_of_the_paper(capsys):
    main()
    printed = capsys.readouterr()
    rows = {line.split(" | ")[0]: line for line in printed.out.splitlines()[:11]}
    assert " 394.5B | " in rows["| `switch-xxl-128`"] and " 1,571.3B | 3.14 TB | " in rows["| `switch-c-2048`"]
    assert "its config.json has num_decoder_layers 12, but its tensors have 15" in printed.err
