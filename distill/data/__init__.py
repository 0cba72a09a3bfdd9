"""From a corpus to examples.

corpus         documents of a corpus, split by hash, with a digest of their bytes
rows           rows of files, read one by one
hub_rows       rows of a data set in the hub's format
tokenizer      a trained or a loaded tokenizer, checked for what T5 needs
vocabulary     the tokens of a tokenizer and their ids, and whether two tokenizers have the same ones
round_trip     what a tokenizer loses of a text
prepare        a corpus to disk as tokens, read once, with its digests
prepared_data  what is on disk then
held_out       which pieces models are evaluated on, and the document of each
overlap        how much of a held-out text also stands in the training text
examples       fixed-length examples and batches of them
soft_labels    the teacher's distribution in a few token ids per target token
cached_labels  those on disk: made once by the teacher, read by students
"""
