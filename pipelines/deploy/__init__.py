"""Students in use.

export          a student in the format of a runtime, verified there
export_source   the student and its data, from any name of a model
card            the model card of an export
serve           an exported student behind HTTP, its teacher beside it
teacher_runner  a teacher behind the interface of exported students
bench_serving   every export against plain transformers
bench_arms      the processes that it measures
"""
