"""The D2NAS search: K sampled sub-networks per step and half, architecture first, then weights.

A step (the paper's section 4, ROME v2's Algorithm 1): K draws on one batch of the architecture
half, gradients of the logits *averaged*; then K other draws on one batch of the weight half,
gradients of the weights *summed*. One sub-network, and of it one branch, is alive at a time.

    search = Search(config, SPACES["S0"], data, seed=0, device=torch.device("cpu"))
    for report in search.run():
        ...
    genotype = derive_genotype(search.logits, search.space)
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import DataConfig, SearchConfig
from .data import ImageData, Normalizer
from .data import steps_per_epoch as count_steps
from .derive import derive_genotype
from .ops import initialize, set_noise_generator
from .randomness import generator
from .sampling import ArchLogits, sample
from .schedules import cosine, temperature
from .spaces import CELL_TYPES, SearchSpace
from .state import Trainee
from .supernet import Supernet
from .training import Batches, Loop, place, require_finite, stem_for

_SUMS = (
    "arch_loss",
    "arch_accuracy",
    "weight_loss",
    "weight_accuracy",
    "clip_rate",
    "branch_loss",
)


class Search(Loop):
    """A search in progress: supernet, architecture logits, both optimizers, and the data.

    Logits and weights are disjoint: Adam moves the former, SGD the latter.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: SearchSpace,
        data: ImageData,
        *,
        seed: int,
        device: torch.device,
        augmentation: DataConfig,
    ) -> None:
        self.config, self.space, self.seed, self.device = config, space, seed, device
        self.batch_size = config.batch_size
        self.weight_batches, self.arch_batches = (
            Batches(
                half.to(device),
                Normalizer(data.mean, data.std),
                augmentation,
                config.batch_size,
                config.cutout,
                seed,
                purpose,
            )
            for half, purpose in ((data.weight_half, "weights"), (data.arch_half, "architecture"))
        )
        length = config.num_cells if config.branch_length == "num_cells" else config.branch_length
        with torch.random.fork_rng(devices=[]):
            self.supernet = Supernet(
                space,
                num_cells=config.num_cells,
                init_channels=config.init_channels,
                num_classes=len(data.class_names),
                in_channels=data.channels,
                stem=stem_for(config.stem, data.image_size),
                branch_length=length,
                recompute=config.recompute,
            )
        initialize(self.supernet, generator(seed, "supernet-weights"))
        place(self.supernet, device)
        self.logits = ArchLogits(space, generator=generator(seed, "architecture-logits"))
        self.weight_optimizer = torch.optim.SGD(
            self.supernet.parameters(),
            lr=config.weight_lr,
            momentum=config.weight_momentum,
            weight_decay=config.weight_decay,
        )
        self.arch_optimizer = torch.optim.Adam(
            self.logits.parameters(),
            lr=config.arch_lr,
            betas=(config.arch_beta1, config.arch_beta2),
            weight_decay=config.arch_weight_decay,
        )
        self.steps_per_epoch = count_steps(len(data.weight_half), config.batch_size)
        self.num_steps = self.steps_per_epoch * config.epochs
        self.metrics = []
        self.network = self.supernet
        self.trainee = Trainee(
            modules={"supernet": self.supernet, "logits": self.logits},
            optimizers={"sgd": self.weight_optimizer, "adam": self.arch_optimizer},
            sums=torch.zeros(len(_SUMS), dtype=torch.float64, device=device),
        )

    def take_step(self, step: int) -> None:
        """Run ``search_step``."""
        search_step(self, step)

    def temperature_at(self, step: int) -> float:
        """Return the Gumbel-softmax temperature of a step."""
        config = self.config
        return temperature(
            step // self.steps_per_epoch,
            config.epochs,
            config.temperature_start,
            config.temperature_end,
        )

    def weight_lr_at(self, step: int) -> float:
        """Return SGD's learning rate of a step: cosine by epoch, as DARTS."""
        progress = (step // self.steps_per_epoch) / self.config.epochs
        return cosine(progress, self.config.weight_lr, self.config.weight_lr_min)

    def describe_epoch(self, step: int, means: list[float]) -> dict[str, Any]:
        """Return losses, accuracies, temperature, entropies and the genotype so far."""
        means_by_name = dict(zip(_SUMS, means, strict=True))
        genotype = derive_genotype(self.logits, self.space)
        entropies = {cell: self.logits.entropy(cell) for cell in CELL_TYPES}
        return {
            **means_by_name,
            "temperature": self.temperature_at(step),
            "weight_lr": self.weight_lr_at(step),
            "op_entropy": {cell: entropies[cell][0] for cell in CELL_TYPES},
            "edge_entropy": {cell: entropies[cell][1] for cell in CELL_TYPES},
            "parameterless_normal": genotype.parameterless_normal,
            "genotype": genotype.to_dict(),
        }


def search_step(search: Search, step: int) -> None:
    """Run one step: the architecture's half (after the warm-up), then the weights' half.

    Raises ``NonFiniteError`` before an update that is not finite.
    """
    if step >= search.config.warmup_epochs * search.steps_per_epoch:
        architecture_step(search, step)
    weight_step(search, step)


def architecture_step(search: Search, step: int) -> None:
    """Update the logits with the mean gradient of K draws on one batch of the architecture half.

    Only the gates' gradients are computed: the weights are not touched (ROME v2, Eq. 11).
    """
    config, parameters = search.config, list(search.logits.parameters())
    images, labels = search.arch_batches.batch(step)
    search.arch_optimizer.zero_grad()
    for index in range(config.draws):
        draws = generator(search.seed, "architecture-draw", step * config.draws + index)
        draw = sample(
            search.logits,
            search.temperature_at(step),
            draws,
            edge_gate_scale=config.edge_gate_scale,
        )
        set_noise_generator(search.supernet, draws)
        for branch in search.supernet.branches(images, draw):
            loss = F.cross_entropy(branch.logits, labels)
            torch.autograd.backward(loss / config.draws, inputs=parameters)
        search.trainee.sums[0] += loss.detach() / config.draws
        search.trainee.sums[1] += _correct(branch.logits, labels) / config.draws
        require_finite(step, [("the validation loss", loss)])
    require_finite(
        step,
        (
            (f"the gradient of {name}", parameter.grad)
            for name, parameter in search.logits.named_parameters()
            if parameter.grad is not None
        ),
    )
    search.arch_optimizer.step()


def weight_step(search: Search, step: int) -> None:
    """Update the weights with the summed gradient of K draws on one batch of the weight half.

    Weights that no draw sampled keep their value and momentum (ROME v2, Eq. 12; ours where the
    paper is silent: no decay either). The clip norm is the whole sum's.
    """
    config = search.config
    images, labels = search.weight_batches.batch(step)
    for group in search.weight_optimizer.param_groups:
        group["lr"] = search.weight_lr_at(step)
    search.weight_optimizer.zero_grad()
    num_branches = len(search.supernet.heads)
    for index in range(config.draws):
        draws = generator(search.seed, "weight-draw", step * config.draws + index)
        with torch.no_grad():
            draw = sample(search.logits, search.temperature_at(step), draws).without_gates()
        set_noise_generator(search.supernet, draws)
        for branch in search.supernet.branches(images, draw):
            loss = F.cross_entropy(branch.logits, labels)
            torch.autograd.backward(loss)
            search.trainee.sums[5] += loss.detach() / (config.draws * num_branches)
        search.trainee.sums[2] += loss.detach() / config.draws
        search.trainee.sums[3] += _correct(branch.logits, labels) / config.draws
        require_finite(step, [("the training loss", loss)])
    norm = torch.nn.utils.clip_grad_norm_(search.supernet.parameters(), config.clip_norm)
    require_finite(step, [("the gradient norm", norm)])
    search.trainee.sums[4] += norm > config.clip_norm
    search.weight_optimizer.step()


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == labels).double().mean()
