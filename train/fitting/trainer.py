"""Trains models: the epochs, early stopping, and several models of one kind at once."""

from __future__ import annotations

import copy
import ctypes
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from train.augment import augment, mixup
from train.config import Config, TrainError
from train.data import Clips
from train.evaluation.frames import top_pool, weak_loss
from train.losses import Pooling, logsumexp_pool, mtcn_loss, pool
from train.models.network import AVARNet, Reader
from train.models.random_numbers import drawing_from, seeds

MOST_LAYERS = 6  # see 63 snippets to each side; more take longer than they were seen to help
SMALLEST_BATCH, LARGEST_BATCH = 4, 16
STEPS_PER_EPOCH = 15  # at least: small sets are passed several times
FEWEST_BATCHES = 3  # of a set of clips
SNIPPETS_PER_BATCH = 6000  # at most; of long clips, fewer are enough
AT_CHANCE = 0.75  # of the loss of one who knows nothing: models above it are begun again
NEXT_START = 1_000_003  # is added to the seed
WARM_UP = 0.1  # share of all steps in which the learning rate rises
MIN_STEPS = 4  # what the schedule needs for a rise and a fall
GRADIENT_LIMIT = 1.0  # norm
AVERAGED = 4  # of the weights' polynomial-decay averaging (Shamir and Zhang, ICML 2013), eta + 1
FOCUS = 2.0  # gamma of the focal loss, as its authors take it
SAVE_SECONDS = 10.0  # between two checkpoints
STACK_SNIPPETS = 2000  # in one step: so many fill a core without stacks and pay for threads
POOLING: dict[str, Pooling] = {"mean": pool, "logsumexp": logsumexp_pool, "top": top_pool}
DETECTION_LAYERS = 2  # the farther a stage sees, the less a clip's label tells it when


@dataclass(frozen=True)
class Epoch:
    """One row of the per-epoch table."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_recall: float  # mean over classes: no reward for always answering the commonest
    val_error: float = 0.0  # standard error of val_loss over the clips
    start: int = 0  # of which try, where a model was begun again


def kept(history: Sequence[Epoch]) -> Epoch:
    """Return the epoch whose weights a model keeps: that of the best start.

    Of each start it is the last one whose validation loss is within a standard error of the least.
    A handful of clips cannot tell good epochs from each other, and of equals the later one has
    learned longer, at a lower rate. Of several starts it is the one with the least loss.
    """
    starts: dict[int, list[Epoch]] = {}
    for epoch in history:
        starts.setdefault(epoch.start, []).append(epoch)
    chosen = []
    for own in starts.values():
        best = keep = own[0]
        for epoch in own[1:]:
            best = min(best, epoch, key=lambda e: e.val_loss)
            if epoch.val_loss <= best.val_loss + best.val_error:
                keep = epoch
        chosen.append(keep)
    return min(chosen, key=lambda e: e.val_loss)


class Sides(NamedTuple):
    """Which clips train a model, and which pick its best epoch."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]


def layers_to_cover(lengths: NDArray[np.int64]) -> int:
    """Return how many layers reach across nine clips in ten.

    A stage of L layers sees 2^(L+1) - 1 snippets.

    >>> layers_to_cover(np.array([8, 8, 8]))
    3
    """
    long = float(np.percentile(lengths, 90))
    return min(MOST_LAYERS, max(1, math.ceil(math.log2((long + 1) / 2))))


def batch_to_learn(clips: int, length: float) -> int:
    """Return how many clips a step takes, of so many of that median length.

    >>> batch_to_learn(20, 40), batch_to_learn(3000, 40), batch_to_learn(3000, 700)
    (6, 16, 8)
    """
    most = min(LARGEST_BATCH, clips // FEWEST_BATCHES, int(SNIPPETS_PER_BATCH / length))
    return max(SMALLEST_BATCH, most)


def stack_size(clips: Clips, models: Sequence[Sides], config: Config) -> int:
    """Return how many of some models are best trained at once.

    The steps of small models leave a core idle between operations; long clips do not. It depends
    on nothing but data and settings: the same command draws the same numbers on any machine.
    """
    if not _stackable(config):
        return 1
    return int(np.clip(STACK_SNIPPETS // _snippets(clips, models[0].train, config), 1, len(models)))


def _stackable(config: Config) -> bool:
    """Return whether torch can stack such models, and they draw as `random_numbers` has it."""
    return config.model not in ("lstm", "transformer") and config.fusion not in (
        "bottleneck",
        "cross",
    )


def _snippets(clips: Clips, chosen: NDArray[np.int64], config: Config) -> float:
    """Return about how many snippets a step of one model has."""
    length = float(np.median(clips.lengths[chosen]))
    batch = config.batch_size or batch_to_learn(len(chosen), length)
    return min(batch, len(chosen)) * length


@contextmanager
def _threads_for(snippets: float) -> Iterator[None]:
    """Keep PyTorch in this thread to one of its own where so few snippets do not pay for more.

    Threads then mostly wait for each other; where another program keeps a core busy, two took
    thirty times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if snippets < STACK_SNIPPETS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _keep_memory() -> None:
    """Let glibc keep what a step frees for the next one.

    It would return each large array to the kernel, and take it back page by page: a third of the
    time of steps over long clips. All threads share the first arena, as others hold nothing over
    64 MB.
    """
    with suppress(OSError, AttributeError):  # another C library
        c = ctypes.CDLL("libc.so.6")
        for parameter, value in ((-1, 2**30), (-3, 2**30), (-8, 1)):
            c.mallopt(parameter, value)  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX


def fit(
    clips: Clips,
    targets: NDArray[np.int64],
    num_classes: int,
    models: Sequence[Sides],
    seed: int,
    config: Config,
    device: torch.device,
    on_epoch: Callable[[int, Epoch, bool], None] = lambda *_: None,
    checkpoint: Path | None = None,
) -> list[tuple[AVARNet, list[Epoch]]]:
    """Train models side by side; return each as it was in the epoch that is `kept`, with all.

    What is validated and kept is a running average of the weights. Models whose validation loss
    stays near chance are begun again with another seed, see `Config.starts`.

    Args:
        clips: features of all clips.
        targets: (clips,) class of each.
        num_classes: number of classes.
        models: the clips of each model.
        seed: of everything random.
        config: settings, ``layers`` settled.
        device: where to train.
        on_epoch: called after each epoch with the model's number, its figures, and whether they
            are kept so far. Called for the epochs before a checkpoint too.
        checkpoint: a file to save the state in, every ten seconds and at the end, and to go on from
            if it is there. Each further start has one of its own, beside it.

    Raises:
        TrainError: the checkpoint cannot be read, or a loss is not a number.
    """
    _keep_memory()
    found: dict[int, tuple[AVARNet, list[Epoch]]] = {}
    seen: list[list[Epoch]] = [[] for _ in models]
    left = list(range(len(models)))
    for start in range(config.starts):
        file = checkpoint
        if checkpoint is not None and start:
            file = checkpoint.with_name(f"{checkpoint.stem}-start-{start}{checkpoint.suffix}")
        sides = [models[number] for number in left]
        again = seed + start * NEXT_START
        training = _Training(clips, targets, num_classes, sides, again, config, device, start)
        for place, epoch in _epochs(training, file):
            own = seen[left[place]]
            own.append(epoch)
            on_epoch(left[place], epoch, kept(own) is epoch)
        for number, model in zip(left, training.result(), strict=True):
            if kept(seen[number]).start == start:
                found[number] = model, seen[number]
        # a loss that is hardly below that of guessing: this start has not found what there is
        least = AT_CHANCE * math.log(num_classes)
        left = [number for number in left if kept(seen[number]).val_loss > least]
        if not left:
            break
    return [found[number] for number in range(len(models))]


def _epochs(training: _Training, checkpoint: Path | None) -> Iterator[tuple[int, Epoch]]:
    """Train to the end; yield each epoch with the number of its model."""
    if checkpoint is not None and checkpoint.exists():
        training.load(checkpoint)
        for number, history in enumerate(training.histories):
            for epoch in history:
                yield number, epoch
    saved = time.monotonic()
    while not training.finished:
        yield from training.epoch()
        due = training.finished or time.monotonic() - saved > SAVE_SECONDS
        if checkpoint is not None and due:
            training.save(checkpoint)
            saved = time.monotonic()


class _Training:
    """The state of the training of a stack of models, whose tensors have a leading dimension."""

    def __init__(
        self,
        clips: Clips,
        targets: NDArray[np.int64],
        num_classes: int,
        models: Sequence[Sides],
        seed: int,
        config: Config,
        device: torch.device,
        start: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.start = start
        self.rng = np.random.default_rng(seed)
        self.clips, self.targets, self.models = clips, targets, models
        self.config, self.device = config, device
        built = [AVARNet(clips.sizes, num_classes, config).train() for _ in models]
        for model, sides in zip(built, models, strict=True):
            for name in clips.sizes:
                model.streams.standardise(name, clips.moments(name, sides.train))
            model.to(device)
        self.streams = [model.streams for model in built]
        # steps over many snippets are taken in two parts, for two threads: PyTorch's own threads
        # share every single operation, and wait for each other hundreds of times in a step; mixup
        # needs all clips of a step in one place
        self.snippets = len(models) * _snippets(clips, models[0].train, config)
        split = (
            len(models) == 1
            and self.snippets >= STACK_SNIPPETS
            and _stackable(config)
            and not config.mixup
            and device.type == "cpu"
        )
        # `functional_call` is for one thread at a time
        self.readers = [copy.deepcopy(built[0].reader) for _ in range(1 + split)]
        cores = torch.get_num_threads()
        self.threads = None
        if split and cores > 1:
            self.threads = ThreadPoolExecutor(2, "step", torch.set_num_threads, (cores // 2,))
        self.params, _ = stack_module_state([model.reader for model in built])
        self.one_hot = F.one_hot(torch.from_numpy(targets), num_classes).float()
        self.class_weights = torch.ones(len(models), num_classes, device=device)
        if config.class_weights:
            counts = [np.bincount(targets[m.train], minlength=num_classes) for m in models]
            balance = [
                len(m.train) / (num_classes * n) for m, n in zip(models, counts, strict=True)
            ]
            self.class_weights = torch.tensor(np.array(balance, np.float32), device=device)
        fewest = min((m.train for m in models), key=len)
        length = float(np.median(clips.lengths[fewest]))
        self.batch_size = config.batch_size or batch_to_learn(len(fewest), length)
        longest = max(len(m.train) for m in models)
        once = math.ceil(longest / self.batch_size)
        self.passes = math.ceil(STEPS_PER_EPOCH / once)  # over the clips, in an epoch
        steps = max(MIN_STEPS, config.epochs * self.passes * once)
        self.optimiser = torch.optim.AdamW(
            self.params.values(),
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=device.type != "mps",
        )
        rise = max(WARM_UP, 2 / steps)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, config.learning_rate, total_steps=steps, pct_start=rise
        )
        self.average = {name: value.detach().clone() for name, value in self.params.items()}
        self.best = {name: value.clone() for name, value in self.average.items()}
        self.steps = 0
        self.histories: list[list[Epoch]] = [[] for _ in models]
        self.stale = [0] * len(models)
        self._shown = AVARNet(clips.sizes, num_classes, config).to(device)

    @property
    def finished(self) -> bool:
        done = len(max(self.histories, key=len)) >= self.config.epochs
        return done or all(self._stopped(number) for number in range(len(self.models)))

    def _stopped(self, number: int) -> bool:
        return self.stale[number] >= self.config.patience

    def epoch(self) -> Iterator[tuple[int, Epoch]]:
        """Train an epoch; yield number and figures of each model."""
        losses = []
        for _ in range(self.passes):
            sets = [self._drawn(sides.train) for sides in self.models]
            steps = self.clips.shuffled(sets, self.batch_size, self.rng)
            losses += [self.step(indices) for indices in steps]
        mean = torch.stack(losses).mean(0).tolist()
        for number, sides in enumerate(self.models):
            if self._stopped(number):
                continue  # it is trained on with the others, but what comes of that is not kept
            model = self._model(self.average, number)
            pooling = POOLING[self.config.pools_by]
            log_p, _ = score(model, self.clips, sides.val, self.device, pooling)
            real, predicted = self.targets[sides.val], log_p.argmax(1)
            history = self.histories[number]
            losses_of_clips = -log_p[np.arange(len(real)), real]
            epoch = Epoch(
                len(history) + 1,
                mean[number],
                float(losses_of_clips.mean()),
                float((predicted == real).mean()),
                float(np.mean([(predicted[real == k] == k).mean() for k in np.unique(real)])),
                float(losses_of_clips.std() / math.sqrt(len(real))),
                self.start,
            )
            if not math.isfinite(epoch.train_loss + epoch.val_loss):
                raise TrainError(
                    f"the training diverged in epoch {epoch.epoch} (its loss is "
                    f"{epoch.train_loss:g}, that of the validation clips {epoch.val_loss:g}): "
                    f"lower learning_rate, which is {self.config.learning_rate:g}"
                )
            history.append(epoch)
            better = kept(history) is epoch
            self.stale[number] = 0 if better else self.stale[number] + 1
            if better:
                for name, value in self.average.items():
                    self.best[name][number] = value[number]
            yield number, epoch

    def _drawn(self, train: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the clips of one epoch: each once, or every class equally often."""
        if self.config.sampling == "clips":
            return train
        counts = np.bincount(self.targets[train])
        chance = 1 / counts[self.targets[train]]
        return self.rng.choice(train, len(train), p=chance / chance.sum())

    def step(self, indices: NDArray[np.int64]) -> Tensor:
        """Take one step with (models, clips); return the loss of each model."""
        with _threads_for(0 if self.threads else self.snippets):
            return self._step(indices)

    def _step(self, indices: NDArray[np.int64]) -> Tensor:
        parts = self._parts(indices)
        answers = list(self._at_once(self._read, self.readers, parts, seeds(len(parts))))
        # the loss is that of the whole step; only the models work part by part
        longest = max(answer.logits.shape[-1] for answer in answers)
        logits = torch.cat([_long(answer.logits, longest) for answer in answers], 2).detach()
        mask = torch.cat([_long(answer.mask, longest) for answer in answers], 1)
        shares = torch.cat([answer.shares for answer in answers], 1)
        losses: Tensor = _each(self._loss, len(self.models))(
            logits.requires_grad_(), mask, shares, self.class_weights
        )
        (of_logits,) = torch.autograd.grad(losses.sum(), logits)
        of_parts = torch.split(of_logits, [part.shape[1] for part in parts], 2)
        gradients, *others = self._at_once(self._gradients, answers, of_parts)
        for other in others:
            gradients = torch._foreach_add(gradients, other)
        for value, gradient in zip(self.params.values(), gradients, strict=True):
            value.grad = gradient.contiguous()  # the fused optimiser does not look at strides
        self._limit_gradients()
        self.optimiser.step()
        self.schedule.step()
        with torch.no_grad():
            # about the mean of the weights over the last quarter of what was trained so far: on
            # small data single epochs differ more from each other than the settings do
            share = AVERAGED / (self.steps + AVERAGED)
            torch._foreach_lerp_(list(self.average.values()), list(self.params.values()), share)
        self.steps += 1
        return losses.detach()

    def _parts(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the clips of a step in parts that take equally long, of which few are padding."""
        if len(self.readers) == 1 or indices.shape[1] == 1:
            return [indices]
        order = indices[:, np.argsort(self.clips.lengths[indices[0]], kind="stable")]
        lengths = self.clips.lengths[order[0]]
        count = np.arange(1, len(lengths))
        cut = 1 + np.argmin(np.maximum(count * lengths[:-1], count[::-1] * lengths[-1]))
        return [order[:, :cut], order[:, cut:]]

    def _read(self, reader: Reader, indices: NDArray[np.int64], seed: int) -> _Answer:
        """Show (models, clips) to their models."""
        models, config = len(self.models), self.config
        with drawing_from(seed):
            batch = augment(self.clips.batch(indices.flatten()), config)
            shares = self.one_hot[indices.flatten()]
            if config.mixup:
                batch, shares = mixup(batch, shares, config.mixup, models)
            batch = batch.to(self.device).stacked(models)
            shares = shares.to(self.device).view(models, -1, shares.shape[1])
            each = [ready(*batch.of(n)) for n, ready in enumerate(self.streams)]
            x = torch.stack(each) if models > 1 else each[0][None]  # not a copy: it may be large

            def logits(params: dict[str, Tensor], x: Tensor, mask: Tensor) -> Tensor:
                return cast(Tensor, functional_call(reader, params, (x, mask)))

            return _Answer(_each(logits, models)(self.params, x, batch.mask), batch.mask, shares)

    def _gradients(self, answer: _Answer, of_logits: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the weights, given those of a part's logits."""
        of_logits = of_logits[..., : answer.logits.shape[-1]]
        return torch.autograd.grad(answer.logits, tuple(self.params.values()), of_logits)

    def _at_once(self, function: Callable[..., Any], *each: Iterable[Any]) -> Iterator[Any]:
        """Call a function for each part, in threads where there are cores for them."""
        return self.threads.map(function, *each) if self.threads else map(function, *each)

    def _loss(self, logits: Tensor, mask: Tensor, shares: Tensor, class_weights: Tensor) -> Tensor:
        """Return the loss of one model."""
        config = self.config
        loss: Callable[..., Tensor] = weak_loss
        if config.pools_by != "top":
            loss = partial(mtcn_loss, pooling=POOLING[config.pools_by])
        return loss(
            logits,
            mask,
            shares,
            config.smoothing_weight,
            config.smoothing_limit,
            class_weights if config.class_weights else None,
            config.spread,
            FOCUS if config.loss == "focal" else 0.0,
        )

    def _limit_gradients(self) -> None:
        """Scale each model's gradients down to a norm of `GRADIENT_LIMIT`."""
        gradients = [value.grad for value in self.params.values() if value.grad is not None]
        norm = torch.linalg.vector_norm(torch.cat([g.flatten(1) for g in gradients], 1), dim=1)
        scale = (GRADIENT_LIMIT / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))

    def _model(self, values: dict[str, Tensor], number: int) -> AVARNet:
        """Return one model in a network of its own, which the next call uses again."""
        self._shown.streams.load_state_dict(self.streams[number].state_dict())
        own = {name: value[number] for name, value in values.items()}
        self._shown.reader.load_state_dict(own)
        return self._shown

    def result(self) -> list[AVARNet]:
        """Return each model with the weights that are kept."""
        return [copy.deepcopy(self._model(self.best, n)) for n in range(len(self.models))]

    def save(self, file: Path) -> None:
        """Write all that the coming epochs depend on, at once or not at all."""
        state = self.optimiser.state_dict()
        tensors = {
            **{f"params/{name}": value.detach() for name, value in self.params.items()},
            **{f"average/{name}": value for name, value in self.average.items()},
            **{f"best/{name}": value for name, value in self.best.items()},
            **{
                f"optimiser/{number}/{name}": value
                for number, values in state["state"].items()
                for name, value in values.items()
            },
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            tensors["random_mps"] = torch.mps.get_rng_state()
        rest = {
            "groups": state["param_groups"],
            "schedule": self.schedule.state_dict(),
            "rng": self.rng.bit_generator.state,
            "steps": self.steps,
            "stale": self.stale,
            "histories": [[asdict(epoch) for epoch in history] for history in self.histories],
        }
        half = file.with_suffix(".half")
        about = {"state": json.dumps(rest)}
        safetensors.torch.save_file({n: t.contiguous() for n, t in tensors.items()}, half, about)
        half.replace(file)

    def load(self, file: Path) -> None:
        """Go on from what `save` wrote."""
        try:
            with safetensors.safe_open(file, "pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                rest = json.loads(opened.metadata()["state"])
            with torch.no_grad():
                for kind, values in (
                    ("params", self.params), ("average", self.average), ("best", self.best)
                ):  # fmt: skip
                    for name, value in values.items():
                        value.copy_(tensors[f"{kind}/{name}"])
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith("optimiser/"):
                    _, number, name = key.split("/")
                    moments.setdefault(int(number), {})[name] = value
            self.optimiser.load_state_dict({"state": moments, "param_groups": rest["groups"]})
            self.schedule.load_state_dict(rest["schedule"])
            self.rng.bit_generator.state = rest["rng"]
            self.steps, self.stale = rest["steps"], rest["stale"]
            self.histories = [[Epoch(**row) for row in history] for history in rest["histories"]]
            torch.set_rng_state(tensors["random"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["random_cuda"], self.device)
            elif self.device.type == "mps":
                torch.mps.set_rng_state(tensors["random_mps"])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise TrainError(
                f"{file} cannot be gone on from ({error}); delete it to train these models anew"
            ) from error


class _Answer(NamedTuple):
    """What models say of their clips: (models, stages, clips, classes, time), and of what clips."""

    logits: Tensor
    mask: Tensor  # (models, clips, time)
    shares: Tensor  # (models, clips, classes)


def _long(x: Tensor, time: int) -> Tensor:
    """Pad the last dimension."""
    return F.pad(x, (0, time - x.shape[-1]))


def _each(function: Callable[..., Tensor], models: int) -> Callable[..., Tensor]:
    """Make a function of one model one of a stack; a stack of one needs no vmap."""
    if models > 1:
        return vmap(function, randomness="different")

    def of_one(*stacks: Any) -> Tensor:
        return function(*(torch.utils._pytree.tree_map(_only, stack) for stack in stacks))[None]

    return of_one


def _only(stacked: Tensor) -> Tensor:
    return stacked.squeeze(0)


@torch.no_grad()
def score(
    model: AVARNet,
    clips: Clips,
    indices: NDArray[np.int64],
    device: torch.device,
    pooling: Pooling,
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Return the last stage's answers for some clips, in the order of `indices`.

    Returns:
        (clips, classes) log-probabilities of the clips, and for each clip (T, classes)
        probabilities of its snippets.
    """
    model.eval()
    whole = np.zeros((len(indices), model.num_classes), np.float32)
    snippets: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(indices)
    place = {int(index): k for k, index in enumerate(indices)}
    for chosen, batch in clips.batches(indices, LARGEST_BATCH):
        there = batch.to(device)
        with _threads_for(there.mask.numel()):
            logits = model(there.streams, there.valid, there.mask)
        log_p = F.log_softmax(pooling(logits[-1], there.mask), dim=1).cpu().numpy()
        steps = F.softmax(logits[-1], dim=1).transpose(1, 2).cpu().numpy()
        for row, index in enumerate(chosen):
            whole[place[int(index)]] = log_p[row]
            snippets[place[int(index)]] = steps[row, : clips.lengths[index]]
    return whole, snippets
