"""The base class of our callbacks for Hugging Face's Trainer, which can be named without transformers."""

from typing import TYPE_CHECKING

from harness.config.errors import UserError

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ImportError:  # without transformers there is no Trainer that would call it
        TrainerCallback = object

__all__ = ["TrainerCallback", "check_installed"]


def check_installed(name: str) -> None:
    """Raises UserError if transformers is not installed. `name`: the callback that needs it."""
    if TrainerCallback is object:
        raise UserError(name, "needs transformers, which is not installed", "pip install 'widebatch[hf]'")
