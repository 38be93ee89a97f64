"""What the command does besides training, a file for each `--mode`.

Training itself is in `jaxact/train/`, and so is what both need, such as loading a checkpoint.
"""
