"""Long-tailed classification of crop diseases on single pictures, with a staged schedule.

Here are the fields of a run, annotations, class tables, augmentation, losses by stage, and scores.
The network is `models.classifier`; the losses themselves are in `ops.longtail`.
"""
