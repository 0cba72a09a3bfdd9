"""Models: on disk, in memory, and their forward pass.

directory   a model's directory before it is loaded: config, names, shapes and values of its tensors
header      what a config says of the dense model that it is or gives, to compare before anything is built
load        a model that has been checked, loaded by transformers
save        T5s and tokenizers on disk, as readers other than transformers 5 understand them too
build       a dense T5 from a shape
t5_forward  the decoder's hidden states and head of any T5 or Switch model
"""
