"""What each system trains on, how it is scored: one file a task."""
