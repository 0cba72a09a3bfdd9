"""The method, shared by every stage. Imports nothing of teachers, students or pipelines.

config           what a run may set: data, model shape, training, distillation
arguments        what public functions refuse
errors           what the command line answers with its message alone, each kind with its exit code
corpus           documents of a corpus, split by hash, with a digest of their bytes
word_ids         the ids that the objective needs of a tokenizer
tokenizer        a trained or a loaded tokenizer, checked for what T5 needs
vocabulary       the words of a tokenizer and their ids, and whether two tokenizers have the same ones
span_corruption  T5's objective on token ids, and its length algebra
prepare          a corpus to disk as tokens, read once, with its digests
prepared_data    what is there then, and the examples that it gives
held_out         which pieces models are evaluated on, and the document of each
overlap          how much of a held-out text also stands in the training text
precision        what "auto" is on this machine
data             fixed-length examples and batches of them
files            files that appear whole or not at all, and their checksums
disk             space that is asked for before it is used, and named when it has run out
hub              names on the Hugging Face hub, pinned or not, and the commits that they stand for
hub_files        their files, from the local cache where it has them
hub_answers      how long the hub is waited for, and what its answers mean
loading          a model that has been checked, loaded by transformers
model_files      a model directory before it is loaded: config, names, shapes and values of its tensors
model_header     what a config says of the dense model that it is or gives, to compare before anything is built
saving           T5s and tokenizers on disk, as readers other than transformers 5 understand them too
seq2seq          a dense T5 from a shape; the decoder's hidden states and head of any T5 or Switch model
loss             0.75 hard + 0.25 soft labels
soft_labels      the teacher's distribution in a few words per token
cached_labels    those on disk: made once by the teacher, read by students
matching         states inside the student against the teacher's, layer by layer
objectives       a model and its loss as one module: hard labels, or hard and soft labels
training         the one training loop
steps            what a step of it is given: batches by process, its seed; and a window of its metrics
divergence       how training goes wrong in its numbers, and how that is noticed
checkpoint       everything that a killed run needs, in safetensors and JSON
evaluation       negative log perplexity on held-out examples
"""
