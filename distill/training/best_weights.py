"""Early stopping: the qualities on the validation split, and the weights of the best evaluation."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_model
from torch import nn

from distill.errors import UserError
from distill.io.files import check_digests, file_digests, new_directory, read_record, write_record
from distill.training.checkpoint import MAX_CHECKPOINTS, checkpoints
from distill.training.sharding import copy_into

MAX_WEIGHTS = MAX_CHECKPOINTS + 1  # the best up to each checkpoint, and up to the last evaluation


class BestWeights:
    """The evaluations of a run, and on disk the weights of the best one.

    The state at a step depends only on the evaluations up to it. So a run that is resumed, or restarted after
    divergence, ignores later evaluations of the attempt before. The best weights up to each checkpoint are kept too.
    """

    def __init__(self, directory: Path, patience: int):
        """``directory`` is that of the run's checkpoints; ``patience`` the evaluations without a better quality."""
        self._directory, self._record, self._patience = directory, directory / "evaluations.json", patience
        self._hint = f"delete the directory {directory} and run the same command again"
        self.qualities: dict[int, float] = {}  # by step
        if self._record.exists():
            stored = read_record(self._record, self._hint)["qualities"]
            self.qualities = {int(step): quality for step, quality in stored.items()}

    def require_evaluations(self) -> None:
        """Check that there are evaluations, for a run that continues after its first one.

        Raises:
            UserError: their file is missing.
        """
        if not self.qualities:
            raise UserError(f"{self._record} is missing; {self._hint}")

    def best_step(self, step: int) -> int:
        """The step with the best quality up to ``step``; the first of several."""
        return max((one for one in sorted(self.qualities) if one <= step), key=lambda one: self.qualities[one])

    def is_exhausted(self, step: int) -> bool:
        """Whether training stops at ``step``: the last ``patience`` evaluations were not the best."""
        known = [one for one in self.qualities if one <= step]
        return bool(known) and sum(one > self.best_step(step) for one in known) >= self._patience

    def add(self, step: int, quality: float, model: nn.Module, *, write: bool) -> None:
        """Record the quality at ``step``, and keep the weights if it is the best so far.

        Args:
            write: whether this process writes the files.
        """
        self.qualities[step] = quality
        if not write:
            return
        if self.best_step(step) == step:
            shutil.rmtree(self._weights(step), ignore_errors=True)  # of an attempt that diverged
            with new_directory(self._weights(step)) as tmp_dir:
                save_model(model, str(tmp_dir / "model.safetensors"))
                write_record(tmp_dir / "best.json", {"sha256": file_digests(tmp_dir, tmp_dir.iterdir())})
        write_record(self._record, {"qualities": {str(one): value for one, value in self.qualities.items()}})
        resumable = [int(path.name.removeprefix("step-")) for path in checkpoints(self._directory)]
        kept = {self._weights(self.best_step(one)) for one in (step, *resumable) if one >= min(self.qualities)}
        for path in set(stored_weights(self._directory)) - kept:
            shutil.rmtree(path)

    def restore(self, step: int, model: nn.Module) -> None:
        """Load the best weights up to ``step`` into ``model``.

        Raises:
            UserError: the file is damaged.
        """
        weights = self._weights(self.best_step(step))
        check_digests(weights, read_record(weights / "best.json", self._hint)["sha256"], self._hint)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, values in load_file(weights / "model.safetensors").items():
            copy_into(parameters[name], values)

    def _weights(self, step: int) -> Path:
        return weights_directory(self._directory) / f"step-{step:08d}"


def weights_directory(directory: Path) -> Path:
    """The directory of the best weights of a run whose checkpoints are in ``directory``."""
    return directory / "best"


def stored_weights(directory: Path) -> list[Path]:
    """The best weights of this run that are on disk, oldest first."""
    return sorted(weights_directory(directory).glob("step-*"))
