"""Tasks with some of their functions replaced, for tests."""

import dataclasses


def changed(task, **functions):
    """The task with these fields of its records replaced, whichever record has them."""
    parts = {}
    for record in dataclasses.fields(task):
        part = getattr(task, record.name)
        own = {field.name for field in dataclasses.fields(part)} & functions.keys()
        if own:
            parts[record.name] = dataclasses.replace(part, **{k: functions.pop(k) for k in own})
    assert not functions, f"no record of a task has {sorted(functions)}"
    return dataclasses.replace(task, **parts)
