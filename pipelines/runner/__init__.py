"""Execution of stages.

runner        reuse finished stages, name the command that computes a missing input, compute the rest
load_beside   imports and the store, loaded while the data is prepared
stage_run     context of one stage while it is computed
stage_data    the examples of a stage: of the corpus, or of the task
lengths       training to several numbers of steps in one run
measure       losses on the evaluated examples, and for a task the answers to their inputs
publish       copy of finished stages from disk to MLflow
side_by_side  independent chains of stages in parallel processes
ray_engine    stages as tasks of a Ray cluster
parent        end of a child process with its parent
progress      progress bars on stderr
"""
