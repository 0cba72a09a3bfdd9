"""Optimizers: Adafactor and Muon as torch has them in other forms or not at all, and AdamW.

build      the optimizer that a config names
adafactor  Adafactor, for many small tensors
muon       Muon for the matrices inside the blocks
"""
