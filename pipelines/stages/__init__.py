"""The stages, one file each, in the order of the paper.

baseline       train the dense model that gains are measured against, at two lengths
long_baseline  train this model further, with the settings of the student on hard labels
teacher        stage 1: train or load a Switch teacher
init           stage 2: initialise a dense student from the teacher's non-expert weights
answer         optional, between stages 2 and 3: the teacher's answers, as hard labels of students
label          optional, between stages 2 and 3: compute the teacher's soft labels once and store them
distill        stage 3: train the student on hard and soft labels
report         stage 4: report the fraction of each teacher's gain that its student keeps
"""
