"""The stages, one file each, in the order of the paper.

baseline  the dense model that gains are measured against, at two lengths
teacher   stage 1: train or load a Switch teacher
init      stage 2: a dense student from the teacher's non-expert weights
label     between 2 and 3, where asked for: soft labels, made once and stored
distill   stage 3: train the student on hard and soft labels
report    stage 4: the fraction of the teacher's gain that the student keeps
"""
