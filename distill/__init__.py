"""The method, shared by every stage. Imports nothing of teachers, students or pipelines.

loss             0.75 hard + 0.25 soft labels
span_corruption  T5's objective on token ids, and its length algebra
evaluation       negative log perplexity on held-out examples
config           what a run may set: data, model shape, training, distillation
special_tokens   the ids of pad, eos and the sentinels, and how ids are stored
model_size       the operations of a forward pass
arguments        what public functions refuse
processes        how many processes compute together, and which of them is the main one
module_command   how a module of this project is run in a process of its own
errors           errors that the command line answers with their message alone, each kind with its exit code

data      from a corpus to examples on disk, and the soft labels that are stored for them
models    a T5's forward pass, and models before they are loaded, loaded and saved
training  the one training loop, and what it trains
optim     optimizers
io        files that appear whole or not at all, locks, disk space, the Hugging Face hub
"""
