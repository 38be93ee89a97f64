"""A sixth system, outside the package: shows that a task needs one file and no registration."""
