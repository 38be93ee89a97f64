"""The systems, a folder (wing) each: `action`, `detection`, `relation`, `crop`.

A wing holds all that only its system uses: what can be set, its data, what runs under jit, its
scores. It imports shared rooms and never another wing.
"""
