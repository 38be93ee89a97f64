"""Pairwise behaviour: what two people do together, from crops of both and their positions.

`task.make` puts the system together; the network is `models/relation.py`.
"""
