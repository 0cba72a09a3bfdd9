"""Adafactor and Muon, as torch has them in other forms or not at all."""
