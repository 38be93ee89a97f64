"""The recipe of the sixth system, for the command line."""

from jaxact.config import Eval, Optim, Save
from toy.blobs import Config


def get_config(variant: str = "") -> Config:
    """Variants change nothing here."""
    return Config(
        optim=Optim(name="sgd", lr=0.1, weight_decay=1e-3, ema=0.9),
        eval=Eval(every="1 epochs", batch_size=8),
        save=Save(every="1 epochs", log_every=3, tensorboard=False, report=False),
    )
