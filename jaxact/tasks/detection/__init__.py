"""Temporal action detection in untrimmed videos: VideoMAE or features, then ActionFormer.

From annotations and windows to mean average precision. The networks are in `models`, their losses
and the maths of segments in `ops`, the readers of videos in `data`.
"""
