"""Long-tailed classification of crop diseases on single pictures, with a staged schedule."""
