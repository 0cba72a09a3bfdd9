"""Optimizers: AdamW from torch, and faster implementations of torch's Adafactor and Muon.

build      the optimizer of a config
adafactor  Adafactor, for many small tensors
muon       Muon for the matrices inside the blocks, Adafactor for all other parameters
"""
