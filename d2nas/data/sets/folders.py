"""Pictures in a folder per class: anyone's, and ImageNet."""

from . import DataSet, register_data_set

register_data_set(DataSet(name="folder", title="a folder of pictures"))
register_data_set(
    DataSet(
        name="imagenet",
        title="ImageNet",
        num_train=1_281_167,
        num_test=50_000,
        channels=3,
        size=224,
        num_classes=1_000,
        needs_splits=True,
        always_streams=True,
    )
)
