"""The command line, the four stages and their tracking. The only package that sees teachers and students at once.

Each folder imports only those above it, and runner and deploy do not import each other.

config     a run's config: presets, YAML files, overrides
workdir    the stages of a config, and what is known before one is computed
tracking   MLflow: the store, one run per stage, curves, data sets, lineage
reporting  intervals, tables, pictures
runner     stages in their order: reused, computed, published
deploy     export, serve, and the benchmark of both
stages     the four stages and the baseline, one file each
cli        the commands
"""
