"""PyTorch checkpoints to parameters."""
