"""Action recognition, temporal detection and image classification in pure-functional JAX."""

__version__ = "0.1.0"
