"""Configs with other values in some fields, and tasks with other functions, for tests."""

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


def with_fields(config, **fields):
    """The same config after `config.a.b = 1` for each a__b=1."""
    for name, value in fields.items():
        *way, field = name.split("__")
        node = config
        for part in way:
            node = getattr(node, part)
        setattr(node, field, value)
    return config
