"""The config of a run.

run_config      sections and their validation
config_values   presets, YAML files, recipes and overrides, before validation
error_sentence  error messages of one sentence
presets         named configs, the smallest first
public_presets  presets of the public checkpoints, with pinned revisions
task_presets    presets of tasks
recipes         recipes of students, which presets and configs merge
safe_yaml       YAML with plain values only and without duplicate keys
"""
