"""Whether a network runs because its cost is counted, and not to be used."""

from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_counting() -> bool:
    """Whether PyTorch counts operations at the moment."""
    return _get_current_dispatch_mode() is not None
