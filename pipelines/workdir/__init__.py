"""A work directory: its stages, and what is known before one is computed. Needs no torch.

stage          a stage: its fingerprint, its directory, its reuse
plan           the stages of a config, and what each depends on
preflight      faults of a run, found before anything is written
loaded_models  the same of models that it loads: whether they can be, and be compared
hub_names      names on the hub that a run reads, at one commit for all of its processes
disk_budget    how much disk a run needs
commands       commands that messages suggest
"""
