"""The one training loop, for teacher, baseline and student.

loop           steps, checkpoints, restarts
schedule       the learning rate of each step
step           the input of a step: batches by process, its seed; and a window of its metrics
train_modules  a model and its loss as one module: hard labels, or hard and soft labels
matching       states inside the student against the teacher's, layer by layer
divergence     how training goes wrong in its numbers, and how that is noticed
checkpoint     everything that a killed run needs, in safetensors and JSON
sharding       parts of a model in several processes (FSDP2)
machine        the facts of a machine that results depend on
precision      the meaning of "auto" on this machine
"""
