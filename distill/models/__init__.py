"""Models: on disk, in memory, and their forward pass.

directory       checks of a model's directory before loading: config, names, shapes and values of its tensors
header          the shape and token ids of a dense model or a student, from a config alone
weight_files    the weight files of a model and their tensors: safetensors, or .bin files of torch.save
stored_tensors  the headers of the weight files in a directory
pickled         the headers of .bin files, without executing any code of a pickle
remote_weights  headers and single tensors of weight files on the hub, without a download of the files
remote_zip      the headers of .bin files on the hub
read_tensors    the values of tensors, each directly into its place in memory
verify          the SHA-256 of a weight file and whether its values are finite, remembered for later runs
load            loading by transformers, after these checks
save            saving of T5 models and tokenizers for transformers 4 and 5
build           a dense T5 from a shape
layerwise       a forward pass one block at a time, for models whose weights do not fit in memory
t5_forward      the decoder's hidden states and the head of a T5 or Switch model
t5_operations   the operations of this pass whose gradients are written out
t5_decoder      the decoder one token at a time, with cached keys and values
"""
