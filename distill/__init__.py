"""The method, shared by every stage. Imports nothing of teachers, students or pipelines.

loss             0.75 hard + 0.25 soft labels, and other weights
loss_gradient    the loss of a tile of tokens and its gradient in closed form
span_corruption  T5's objective on token ids, and its length algebra
evaluation       negative log perplexity on held-out examples
generation       answers: greedy decoding and beam search
metrics          metrics of the answers to a task
config           the settings of a run: data, model shape, training, distillation
special_tokens   the ids of pad, eos and the sentinels, and the type that stores ids
model_size       parameters, and floating-point operations of a forward pass
arguments        checks of the arguments of public functions
processor        the name and the instructions of the CPU
processes        the number of processes of a run, and which one is the main process
module_command   the command that runs a module of this project in a new process
errors           errors that the command line reports without a traceback, each with its exit code

data      from a corpus to tokens on disk, examples, and cached soft labels
tasks     pairs of an input text and a target text, in place of span corruption
models    T5 and Switch models: checks before loading, loading, saving, the forward pass
training  the training loop, and the modules that it trains
optim     optimizers
io        atomic writes, checksums, locks, disk space, the Hugging Face hub
"""
