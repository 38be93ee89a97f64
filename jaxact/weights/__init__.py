"""Weights files of other code bases as our parameters: reading, tables of names, reports.

Our own checkpoints are read in `train`.
"""
