from pipelines.report import why_undefined


def test_why_there_is_no_fraction():
    assert why_undefined(-0.0123, (-0.02, -0.004), "baseline") == (
        "the teacher is below the baseline by 0.0123 nats per target token "
        "(95 % interval [-0.0200, -0.0040] of its gain)"
    )
    assert why_undefined(0.0123, (-0.004, 0.03), "long baseline") == (
        "the teacher's gain over the long baseline is 0.0123 nats per target token, "
        "and its 95 % interval [-0.0040, 0.0300] reaches 0"
    )
    assert why_undefined(0.01, (0.001, 0.03), "baseline").endswith("is too near to 0")
