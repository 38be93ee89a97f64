"""Recognition of actions in clips: RGB, poses or both (X3D, SlowOnly, C3D, RGBPoseConv3D)."""
