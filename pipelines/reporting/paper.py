"""Figures of the paper that a report compares its own with: fractions kept, and compression."""

# Table 6: a teacher of 3.8B parameters. The student with initialisation alone ends just below the baseline.
TABLE_6 = {"soft-labels": "3%", "initialised": "20%", "hard-and-soft": "29%", "hard-labels": "<0"}

# Table 7: teachers of 1.1B to 14.7B parameters. Number of experts -> (fraction kept, compression).
TABLE_7 = {16: (0.37, 0.82), 32: (0.32, 0.90), 64: (0.30, 0.95), 128: (0.27, 0.97), 256: (0.28, 0.99)}

# Table 8: a student of a teacher of 7.4B parameters that is fine-tuned on SuperGLUE, at a compression of 97 %.
KEPT_IN_TABLE_8 = 0.30


def kept_in_paper(variant: str | None, experts: int | None) -> str:
    """The fraction kept in the paper: for a technique of table 6 or a teacher of table 7; a dash if there is none.

    Args:
        variant: name of a technique of table 6. None and "paper" select table 7.
        experts: number of experts of the teacher in table 7; None: the mean over its teachers.
    """
    if variant not in (None, "paper"):
        return TABLE_6.get(variant, "–")
    if experts is None:
        return f"{sum(kept for kept, _ in TABLE_7.values()) / len(TABLE_7):.0%}"
    return f"{TABLE_7[experts][0]:.0%}" if experts in TABLE_7 else "–"
