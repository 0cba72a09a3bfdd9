"""The training loop of teacher, baseline and student.

loop           steps, checkpoints, restarts after divergence
schedule       the learning rate of each step
step           the batches of each process, the seed of each forward pass, a window of metrics
dropout        the dropout of one training
train_modules  a model and its loss as one module: hard labels, or hard and soft labels
divergence     detection of non-finite values and exploding gradients
checkpoint     the state that a killed run resumes from, in safetensors and JSON
best_weights   early stopping: qualities on the validation split, and the weights of the best evaluation
sharding       a model sharded over several processes (FSDP2)
machine        properties of a machine that results depend on
memory         the memory that a training step needs, from a shape alone
precision      the precision that "auto" selects on this machine
"""
