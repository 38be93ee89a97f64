"""Measures that several systems share: metrics, calibration, ensembles, cost, and the report page.

Which of them a system uses stands in its wing; the command's mode is `modes/evaluate.py`.
"""
