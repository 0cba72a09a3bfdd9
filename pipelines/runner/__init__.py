"""Stages in their order.

runner        reuse the finished stages, say which command makes a missing one, compute the rest
stage_run     one stage while it is computed
publish       from a stage's directory to MLflow
side_by_side  chains of stages in processes of their own
parent        a process of another run ends with it
progress      bars, on stderr
"""
