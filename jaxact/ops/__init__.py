"""Parameter-free maths under jit."""
