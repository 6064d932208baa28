"""Variables of torchrun, PyTorch's launcher, which ours sets too; the hint for a lost process."""

import os

_RUN, _RESTARTS, _MOST = (
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
)
AGAIN = "the same command continues from the last checkpoint, if one was made"


def is_torchrun() -> bool:
    """Whether torchrun started this process: then it ends all when one fails."""
    return _RUN in os.environ


def is_first_rank() -> bool:
    """Whether this process trains alone or is rank 0, which shows what there is to show."""
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


def is_one_of_several() -> bool:
    """Whether this process trains with others."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def after_a_loss() -> str:
    """Return the hint for a training that lost one of its processes."""
    if not is_torchrun():
        return AGAIN
    done, most = (os.environ.get(name, "") for name in (_RESTARTS, _MOST))
    if done.isdecimal() and most.isdecimal() and int(done) < int(most):
        return (
            f"torchrun now starts all processes again ({int(done) + 1} of {most}), which continue "
            "from the last checkpoint, if one was made"
        )
    return f"{AGAIN}; torchrun --max-restarts 3 ... gives it by itself"
