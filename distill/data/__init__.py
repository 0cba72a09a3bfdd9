"""From a corpus to examples.

corpus         documents of a corpus, their split by hash, and the digest of their bytes
rows           rows of files, read one at a time
hub_rows       rows of a data set in the hub's format
tokenizer      a trained or loaded tokenizer, with the checks that T5's objective needs
vocabulary     the tokens of a tokenizer and their ids, and the comparison of two tokenizers
round_trip     the text that a tokenizer loses
prepare        writes a corpus to disk as tokens, with digests
key            the key of prepared data: a hash of everything that it depends on
prepared_data  the prepared corpus on disk
read_prepared  the facts of prepared data, of a corpus or of a task, without torch
held_out       the choice of evaluated examples, and the document of each
overlap        the share of a held-out text that the training text contains
examples       fixed-length examples and batches
soft_labels    the teacher's distribution as a few token ids per target token
make_labels    soft labels that the teacher makes once, in units that processes and machines share
label_arrays   the arrays of soft labels on disk: their types, shapes and sizes, without torch
cached_labels  soft labels on disk, read by students
"""
