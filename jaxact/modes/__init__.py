"""What the command does beside training: evaluate, predict, export, ensemble, check, bench."""
