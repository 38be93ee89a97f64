"""The trainer: from a config to a trained state on disk. It knows a system only by its `Task`."""
