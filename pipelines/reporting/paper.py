"""Figures of the paper that a report sets beside its own: fractions kept, and the compression of its teachers."""

# Table 6, one teacher of 3.8B parameters; "initialisation alone" ends just below the baseline.
TABLE_6 = {"soft-labels": "3%", "initialised": "20%", "hard-and-soft": "29%", "hard-labels": "<0"}

# Table 7: teachers of 1.1B to 14.7B parameters, by their number of experts.
TABLE_7 = {16: (0.37, 0.82), 32: (0.32, 0.90), 64: (0.30, 0.95), 128: (0.27, 0.97), 256: (0.28, 0.99)}


def kept_in_paper(variant: str | None, experts: int | None) -> str:
    """What the paper keeps with the technique of that name, or with a teacher of as many experts; else a dash.

    A variant named "paper" is what its table 7 is about. Without ``experts``, the mean of its teachers.
    """
    if variant not in (None, "paper"):
        return TABLE_6.get(variant, "–")
    if experts is None:
        return f"{sum(kept for kept, _ in TABLE_7.values()) / len(TABLE_7):.0%}"
    return f"{TABLE_7[experts][0]:.0%}" if experts in TABLE_7 else "–"
