"""A work directory: its stages, and the checks that run before any stage. Imports no torch.

stage          a stage: its fingerprint, its directory, its reuse
workspace      a config in a work directory: its data, its stages, and the finished stages
plan           the stages of a config and their dependencies
pretraining    the config that pretrained names: its tokenizer and its stages
preflight      checks of data, memory and launcher before anything is written
loaded_models  checks of the models that a run loads: whether they load, and whether they can be compared
teacher_files  the files of a finished teacher: its own, or those of its checkpoint
hub_names      names on the hub that a run reads, at one commit for all of its processes
disk_budget    disk space that a run needs
inspection     headers of a Switch model: its layout, its parameters, its student
stage_needs    memory and disk that each stage needs with a loaded teacher
resources      CPUs, GPU and memory that a planned stage takes of a machine
commands       commands that messages suggest
"""
