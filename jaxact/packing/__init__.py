"""Media into ArrayRecord shards: reading folders, transcoding, writing. Only scripts use it."""
