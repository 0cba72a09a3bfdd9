"""Whole downloads from the hub: space, messages, and connections that break off."""

import hashlib
from pathlib import Path

from tests.hub import Hub, process

# The content of the weight file in digits, or the message to the user.
_FETCH = """
import hashlib, shutil, sys, time
from types import SimpleNamespace as Values
from distill.errors import ExpectedError
from distill.io import hub_files
from distill.models.directory import fetch_weights
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 2**16  # a chunk that is not complete when the connection breaks off is fetched again
time.sleep = lambda _: None  # between attempts of the library
hub_files._LARGE, free, *sources = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
if free >= 0:
    shutil.disk_usage = lambda path: Values(free=free)
for source in sources:
    try:
        directory = fetch_weights(source, f"teacher {source!r}")
        print(*(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.glob("model*safetensors"))))
    except ExpectedError as error:
        print(type(error).__name__, error)
"""
MODEL = "some/switch"
WEIGHTS = {f"model-{number}.safetensors": bytes([number]) * 3_000_000 for number in (1, 2)}


def fetch(hub: Hub, *sources: str, large: int = 10**9, free: int = -1) -> tuple[str, str]:
    """What a process prints and says that fetches the weights."""
    done = process(_FETCH, str(large), str(free), *(sources or [MODEL]), **hub.environment)
    return done.stdout.strip(), done.stderr.strip()


def digests() -> str:
    return " ".join(hashlib.sha256(content).hexdigest() for content in WEIGHTS.values())


def commit(hub: Hub, **more: str) -> str:
    return hub.model(MODEL).commit({"config.json": "{}", "model.safetensors.index.json": "{}", **WEIGHTS, **more})


def test_a_file_that_breaks_off_is_continued_within_the_command(hub):
    commit(hub)
    hub.breaks["model-1.safetensors"] = [1_000_001]
    assert fetch(hub)[0] == digests()
    assert hub.sent["model-2.safetensors"] == 3_000_000
    assert 3_000_000 <= hub.sent["model-1.safetensors"] <= 3_000_000 + 2**16


def test_a_later_command_fetches_only_the_files_that_are_missing(hub):
    commit(hub)
    hub.breaks["model-1.safetensors"] = [1_000_000] + [0] * 6
    assert fetch(hub)[0].startswith(
        f"UserError teacher '{MODEL}' is not a directory, and the hub does not provide it: "
    )
    assert fetch(hub)[0] == digests()
    assert hub.sent["model-2.safetensors"] == 3_000_000


def test_space_is_checked_before_a_download(hub):
    commit(hub)
    printed, _ = fetch(hub, free=5_000_000)
    cache = Path(hub.environment["HF_HOME"]) / "hub"
    assert printed == (
        f"DiskFull the download of teacher '{MODEL}' needs about 6.0 MB in {cache}, which has 5.0 MB left; "
        "free some, or set HF_HOME to a directory of another disk"
    )
    assert not any(hub.sent[name] for name in WEIGHTS)


def test_a_large_download_is_announced_and_the_same_files_of_another_commit_are_not_counted(hub):
    first = commit(hub)
    cache = Path(hub.environment["HF_HOME"]) / "hub"
    assert fetch(hub, large=10**6) == (digests(), f"Downloading 6.0 MB of {MODEL} to {cache}")
    second = commit(hub, **{"README.md": "better"})
    assert first != second
    assert fetch(hub, large=10**6, free=1000) == (digests(), "")
    assert hub.sent["model-1.safetensors"] == 3_000_000
