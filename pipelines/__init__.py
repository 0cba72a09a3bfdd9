"""The command line, the four stages and their tracking. Only this package imports both teachers and students.

Each folder imports only the folders above it in this list. runner and deploy do not import each other.

config     config of a run: presets, YAML files, overrides
workdir    work directory: the stages of a config, and the checks that run before any stage
tracking   MLflow: store, one run per stage, curves, data sets, lineage
reporting  intervals, tables, plots
runner     execution of stages: reuse, compute, publish
deploy     export and serving of students, and their benchmark
stages     the four stages and the baseline, one file each
cli        commands
"""
