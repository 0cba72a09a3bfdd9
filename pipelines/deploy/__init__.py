"""Export, serving and benchmark of students.

export            write a student in the format of a runtime, and verify it there
export_source     find the student that a MODEL argument names, and its held-out text
card              the model card of an export
serve             serve an exported student over HTTP, optionally with its teacher
teacher_runner    a teacher with the interface of exported students
bench_serving     benchmark of every export against plain transformers
bench_candidates  the processes that the benchmark measures
"""
