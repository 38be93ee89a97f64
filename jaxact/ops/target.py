"""The platform a program is traced for: some operations have one form for CPU, another elsewhere.

Usually that is the platform this process runs on; `export` traces for the others too.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_CHOSEN: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def platform() -> str:
    """cpu | gpu | tpu: what operations choose their form by while they are traced."""
    return _CHOSEN.get() or jax.default_backend()


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Inside, `platform()` is `name`. A function jitted before keeps the form it was traced in."""
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)
