"""Which behaviour two people share: crops of both and where they stand to each other."""
