"""Maths without parameters under jit: losses, mixing, heatmaps, positions, depthwise convolution.

Functions of their arguments alone; what has parameters is in `models`.
"""
