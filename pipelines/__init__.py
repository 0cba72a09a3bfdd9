"""The command line, the four stages and their tracking. The only package that sees teachers and students at once.

cli        the commands
config     a run's config: presets, YAML files, overrides, and errors in one sentence
safe_yaml  YAML from anyone: plain values of bounded size, every key once
preflight  what is wrong with a run, said before anything is written
loaded_models  the same of models that it loads: whether they can be, and be compared
hub_names  names on the hub that a run reads, at one commit for all of its processes
space      how much disk a run needs, known before it begins
store_uri  which MLflow store, its paths as URIs, and how to speak of it without its password
commands   commands that messages suggest, quoted for a shell
presets    named configs; the smallest comes first
stage      what a stage is: its fingerprint, its directory, its reuse
run        which stages a config has, in which order they run, what is missing
baseline   the dense model that gains are measured against, at two lengths
teacher    stage 1: train or load a Switch teacher
init       stage 2: a dense student from the teacher's non-expert weights
label      between 2 and 3, where asked for: soft labels, made once and stored
distill    stage 3: train the student on hard and soft labels
report     stage 4: the fraction of the teacher's gain that the student keeps
reporting  what the report says: intervals, tables, pictures
tracking   MLflow: the store, one run per stage, curves, models, data sets
data_source  where a corpus comes from, as MLflow writes it down
feed       delivers curves to MLflow beside the training
lineage    from a model back to its data, read from MLflow
view       the comparison of ratios as a saved view of the MLflow UI
parent     a process of another run ends with it
progress   bars and messages, on stderr
serve      an exported student behind HTTP, its teacher beside it
teacher_runner  a teacher behind the interface of exported students
bench_serving   every export against plain transformers
bench_arms      the processes that it measures
"""
