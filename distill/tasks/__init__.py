"""Tasks: pairs of an input text and a target text.

config    the settings of a task
template  texts from the columns of a row
sources   rows of files, hub data sets and embedded sources
embedded  the embedded sources: docstrings, names of CLDR, messages of Django
pairs     rows as pairs, with the key of their split
prepare   writes a task to disk as tokens, with digests
prepared  the prepared task on disk, and its evaluated examples
examples  batches of examples of similar length, in an order that is a function of the seed
answers   a teacher's answers to inputs, stored as hard labels for students
"""
