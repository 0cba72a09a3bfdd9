"""A run's config.

run_config  sections, overrides, and errors in one sentence
presets     named configs; the smallest comes first
safe_yaml   YAML from anyone: plain values of bounded size, every key once
"""
