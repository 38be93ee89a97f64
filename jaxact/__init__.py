"""Action recognition, temporal detection and image classification in pure-functional JAX.

Each system has a wing in `tasks`; all else is shared. `main` is the command line.
"""

__version__ = "0.1.0"
