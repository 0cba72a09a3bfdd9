"""Export, serving and benchmark of students.

export            write a student in the format of a runtime, and verify it there
export_source     find the student that a MODEL argument names, and its held-out text
verify            the check of an export: its parity with the student, and for a task the metrics of both
task_record       the part of an export's manifest that only a task has
card              the model card of an export
serve             serve an exported student over HTTP, optionally with its teacher
teacher_runner    a teacher with the interface of exported students
bench_serving     benchmark of every export against plain transformers
bench_candidates  the processes that the benchmark measures
"""
