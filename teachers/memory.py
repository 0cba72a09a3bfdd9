"""The memory that a stored teacher needs, and the memory that it may use."""

import torch

from distill.io.memory import memory_limit
from distill.training.precision import Precision
from teachers.config import SwitchConfig
from teachers.load import StoredTeacher
from teachers.needs import BatchShape, Needs, needs_of

_PRECISIONS: dict[torch.dtype | None, Precision | None] = {
    None: None,
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
}


def needs(stored: StoredTeacher, switch: SwitchConfig, compute_dtype: torch.dtype | None, batch: BatchShape) -> Needs:
    """The memory that a teacher needs. Reads only headers.

    Args:
        stored: the result of ``teachers.load.open_teacher``.
        switch: the settings of the Switch layers.
        compute_dtype: as for ``teachers.load.read_teacher``.
        batch: the batches that it runs on.
    """
    tied = stored.config.tie_word_embeddings
    return needs_of(stored.layout, stored.reader.tensors, switch, _PRECISIONS[compute_dtype], batch, tied=tied)


def limit_of(memory: int | None, device: torch.device) -> int:
    """Bytes for the weights and activations of a teacher: ``memory``, but no more than a GPU has free, less a fifth.

    None: what the machine has, less a reserve; see ``distill.io.memory.memory_limit``.
    """
    if device.type != "cuda":
        return memory_limit() if memory is None else memory
    free = torch.cuda.mem_get_info(device)[0] * 4 // 5
    return free if memory is None else min(memory, free)
