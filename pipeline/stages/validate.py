"""Validate: the gate before deployment. Is it the network of its genotype, does it compute what was
trained, how well and how fast, on the runtime that serves.

The test images are touched here, once, after all training. A model that does not pass raises
``ValidationFailedError`` and leaves no version.
"""

from .stage import Context, Facts, Stage, always, section


def run(context: Context) -> Facts:
    """Write ``report.json``, ``golden.safetensors`` (a few inputs with their logits, the picture
    ``golden.png`` prepared among them) and every timed run in ``latency.json``.

    Raises ``ValidationFailedError`` when the gate says no or the device cannot be had,
    ``DamagedArtifactError`` when the model names other parents than its version does, and
    ``OutOfMemoryError``.
    """
    from ..gate.validation import validate

    return validate(context)


STAGE = Stage(
    name="validate",
    parents=("derive", "retrain", "export"),
    code_schema=10,
    run=run,
    own_config=section("validate"),
    reads_data=always,
)
