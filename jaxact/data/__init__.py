"""What all systems share on the host: decoding, changing and drawing images and clips, and batches.

Nothing here loads JAX. What only one system needs is in its wing, `jaxact/tasks/<system>/`.
"""
