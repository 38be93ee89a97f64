"""Host side: annotations to records, decoding, sampling, augmentation, the pipeline."""
