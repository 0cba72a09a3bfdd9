"""Damage to files, as a disk or an interrupted copy causes it."""

from pathlib import Path


def damage(path: Path, how: str) -> None:
    """Damage a file.

    Args:
        path: of the file.
        how: "bits" changes a bit in its middle, "cut" removes its last byte, "gone" removes the file.
    """
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:-1])
    else:
        assert how == "bits"
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
