"""Check of a given architecture before what takes long: is it known, does it take the images?"""

from d2nas.config import Config
from d2nas.genotype import read_genotype

from .plan import data_shape


def check_given(config: Config) -> None:
    """Raise ``ConfigError`` for a genotype or a library's network that cannot be trained on the
    configured images; ``ImportError`` where the library is not installed.
    """
    derive = config.derive
    if derive.genotype is not None:
        read_genotype(derive.genotype)
    if derive.model is None:
        return
    from d2nas.nn.library_network import check_takes

    shape = data_shape(config.data)
    size = shape.image_size
    # Of a data set that other code registers the number of classes may not be known yet.
    check_takes(derive.model, (shape.channels or 3, size, size), shape.num_classes or 2)
