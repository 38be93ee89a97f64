"""State and step, optimiser groups, schedule, loop, checkpoint, mesh."""
