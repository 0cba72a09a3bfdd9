"""``python -m students.runtime DIRECTORY REQUEST REPLY``: run an export in a process of its own, as a server does.

REQUEST is a JSON file with ``inputs``, ``targets`` and ``answers`` (token ids), ``max_tokens`` and ``batch_size``. The
JSON file REPLY is written with ``target_scores``, ``answers``, ``answer_scores``, ``compute_type``, and ``versions`` of
the imported libraries.
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from students.runtime import load_runner

# The libraries that an answer may depend on.
LIBRARIES = ("ctranslate2", "mlflow", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")


def main(directory: str, request_file: str, reply_file: str) -> None:
    """Score the targets and the answers of the request, generate answers, and write the reply."""
    request = json.loads(Path(request_file).read_text())
    runner = load_runner(directory)
    reply: dict[str, Any] = {"target_scores": [], "answers": [], "answer_scores": []}
    reply["compute_type"] = runner.compute_type
    for start in range(0, len(request["inputs"]), request["batch_size"]):
        rows = slice(start, start + request["batch_size"])
        inputs = request["inputs"][rows]
        reply["target_scores"] += runner.score(inputs, request["targets"][rows])
        reply["answers"] += runner.generate(inputs, request["max_tokens"][rows])
        reply["answer_scores"] += runner.score(inputs, request["answers"][rows])
    versions = {name: version(name) for name in LIBRARIES if name in sys.modules}
    reply["versions"] = {"python": platform.python_version(), **versions}
    Path(reply_file).write_text(json.dumps(reply))


if __name__ == "__main__":
    main(*sys.argv[1:])
