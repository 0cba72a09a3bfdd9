"""The config of a run.

run_config      sections and overrides
error_sentence  error messages of one sentence
presets         named configs, the smallest first
safe_yaml       YAML with plain values only and without duplicate keys
"""
