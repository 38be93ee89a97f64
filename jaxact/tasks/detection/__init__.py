"""Temporal action detection in untrimmed videos: VideoMAE or features, then ActionFormer."""
