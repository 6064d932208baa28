"""Images that a network has not learned from: checked before what would be its test is read."""

from typing import TYPE_CHECKING

from d2nas.errors import ConfigError

from .stage import Context

if TYPE_CHECKING:
    from d2nas.data.images import ImageData


def require_unseen(context: Context, data: "ImageData") -> None:
    """Raise ``ConfigError`` where test images may be among those that the network learned from.

    So what a later stage takes for training images are none of the test's, either.
    """
    from d2nas.data.splits import changed_test_settings

    trained = context.inputs["retrain"].manifest
    same = trained.facts["data_digest"] == data.digest
    changed = changed_test_settings(trained.config, context.config.to_dict(), same_images=same)
    if changed:
        raise ConfigError(
            f"the network was trained with other {', '.join(changed)}: it may have learned from "
            "images that would be its test",
            hint="d2nas retrain RUN with the same settings; or d2nas evaluate BUNDLE DIR, for "
            "labelled pictures that it has not seen",
        )
