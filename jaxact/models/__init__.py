"""Networks as flax modules, how their variables start, and the records of their shapes (`specs`).

No losses (`ops`) and no names of foreign checkpoints (`weights`).
"""
