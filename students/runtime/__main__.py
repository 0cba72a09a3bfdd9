"""``python -m students.runtime DIRECTORY REQUEST REPLY``: score and answer in a process of its own, as a server would.

REQUEST is JSON: inputs, targets, answers (ids), max_tokens, batch_size. REPLY becomes JSON: target_scores, answers,
answer_scores, compute_type, and the versions of what was imported to make them.
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from students.runtime import load_runner

# Import name -> distribution, of everything that an answer may depend on.
LIBRARIES = ("ctranslate2", "mlflow", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")


def main(directory: str, request_file: str, reply_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    runner = load_runner(directory)
    reply = {"target_scores": [], "answers": [], "answer_scores": [], "compute_type": runner.compute_type}
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
