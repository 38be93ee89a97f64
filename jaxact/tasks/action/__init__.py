"""Recognition of actions in clips: RGB, poses or both (X3D, SlowOnly, C3D, RGBPoseConv3D).

Here are its config, its data from annotation file to arrays, its task record and its scores. The
networks are in `models`, the arithmetic under jit in `ops`, and decoding and geometry in `data`.
"""
