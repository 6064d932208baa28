"""Retrainings by the published recipe, small enough for a test."""

import torch
from searches import CPU, config_of, made_images
from torch import nn

from d2nas.genotype import Genotype
from d2nas.parallel import ALONE, Ranks
from d2nas.train.distillation import Teacher
from d2nas.train.retrain import Retraining


def retraining_of(
    *overrides: str, ranks: Ranks = ALONE, teacher: Teacher | None = None
) -> Retraining:
    """Two steps an epoch, first step at the full learning rate."""
    plain = ["retrain.auxiliary=false", "retrain.drop_path=0.0", "retrain.cutout=0"]
    sizes = ["retrain.num_cells=3", "retrain.init_channels=4", "retrain.batch_size=16"]
    config = config_of("d2nas", *plain, *sizes, "retrain.epochs=2", *overrides)
    retraining = Retraining(
        config.retrain,
        Genotype.published("DARTS_V2"),
        made_images(),
        seed=0,
        device=CPU,
        augmentation=config.data,
        teacher=teacher,
        ranks=ranks,
    )
    retraining.network.train()
    return retraining


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])
