"""Prepares the streams of a clip for a network: standardised, with what changes and stands out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from train.models.random_numbers import drawable, dropout_mask, normal, uniform


class StreamTotals(NamedTuple):
    """Sums over the snippets of clips, of one stream.

    Attributes:
        values: (batch, D), of the valid rows.
        rows: (batch,), how many these are.
        changes: (batch, D), of how much valid neighbours differ.
        pairs: (batch,), how many of these there are.
    """

    values: Tensor
    rows: Tensor
    changes: Tensor
    pairs: Tensor

    @classmethod
    def of_values(cls, values: Tensor, rows: float) -> StreamTotals:
        """Return those of one clip for a causal network, which reads no totals of changes."""
        return cls(values, torch.tensor([rows]), torch.zeros_like(values), torch.zeros(1))


Totals = Mapping[str, StreamTotals]  # by stream


class Streams(nn.Module):
    """Standardises each stream, adds how it changes and stands out, and says where it is absent.

    What a frozen network says of a scene differs more between two places than between two events
    in one place; how much it changes from one snippet to the next says more of the event. So every
    stream x_t is accompanied by its change abs(x_t - x_(t-1)), as speech recognisers do with their
    delta features, and by x_t less the mean of the clip: of all its valid rows, or, if causal, of
    those that came so far.

    In training the values themselves are often hidden throughout a clip, and the centred ones are
    moved by a random constant: few clips are soon told apart by their scenes, and where one event
    raises a clip's mean, all other rows are lowered by it. What must be learned is what happens.

    A snippet for which a stream has nothing valid is zeros and a last value of one: the weights by
    which the network reads that value are its learned "absent" vector, so a missing sound is not
    silence. In training, whole streams are hidden at random, so that a clip without sound is
    nothing unusual.

    Args:
        sizes: stream name -> values per snippet; their order is kept.
        dropout: of features, in training: how often one is zero throughout a clip.
        stream_dropout: how often a stream of a clip is hidden, in training; never all of them.
        centred: add the values less their clip's mean.
        causal: let no row see the future.
        scene_dropout: how often the values of a clip are hidden, in training.
        offset_noise: deviation of what is added to the centred values of a clip, in training.
        outlier_limit: deviations at which standardised values are cut off; 0 for no limit.

    Attributes:
        out_sizes: values per snippet of each stream when it is prepared: 2 D + 1, or 3 D + 1.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        dropout: float = 0.0,
        stream_dropout: float = 0.0,
        centred: bool = False,
        causal: bool = False,
        scene_dropout: float = 0.0,
        offset_noise: float = 0.0,
        outlier_limit: float = 0.0,
    ) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.parts = ("value", "change", *(("centred",) if centred else ()))
        self.out_sizes = [len(self.parts) * size + 1 for size in sizes.values()]
        self.dropout = drawable(dropout)
        self.stream_dropout = stream_dropout
        self.centred, self.causal = centred, causal
        self.scene_dropout = scene_dropout if centred else 0.0
        self.offset_noise = offset_noise
        self.outlier_limit = outlier_limit
        for name, size in sizes.items():
            for part in self.parts:
                self.register_buffer(f"{name}_{part}_mean", torch.zeros(size))
                self.register_buffer(f"{name}_{part}_scale", torch.ones(size))

    def standardise(self, name: str, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take mean and scale of a stream from the training clips.

        Args:
            name: the stream.
            moments: mean and standard deviation, (D,) each, of its ``value``, its ``change`` and
                its ``centred`` value.
        """
        for part in self.parts:
            if part not in moments:
                continue
            mean, scale = moments[part]
            # a value that hardly ever varies carries noise only: do not blow it up
            floor = 1e-2 * scale.median() + 1e-6
            self.get_buffer(f"{name}_{part}_mean").copy_(mean)
            self.get_buffer(f"{name}_{part}_scale").copy_(scale.clamp(min=floor))

    @torch.no_grad()
    def forward(
        self,
        streams: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        totals: Totals | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Prepare the streams.

        Args:
            streams: name -> (batch, time, D).
            valid: name -> (batch, time), true where the stream has something to say.
            totals: where the rows are a stretch of a clip: those of all its rows; if causal, of
                those before the stretch.
            out: where to write what is returned.

        Returns:
            (batch, time, sum of `out_sizes`), the streams side by side.
        """
        first = next(iter(streams.values()))
        hidden = self._hidden(first)
        shape = (*first.shape[:2], sum(self.out_sizes))
        prepared = first.new_empty(shape, dtype=torch.float32) if out is None else out
        parts = torch.split(prepared, self.out_sizes, dim=2)
        scene = None
        if self.training and self.scene_dropout:
            scene = (uniform(len(first)) >= self.scene_dropout).to(first.device)[:, None, None]
        # every pass over values of this size is felt: they are written where they will be read
        for number, (name, size) in enumerate(self.sizes.items()):
            rows, present = streams[name].float(), valid[name]
            if hidden is not None:
                present = present & ~hidden[:, number, None]
            value, change, *more, absent = torch.split(
                parts[number], [*[size] * len(self.parts), 1], dim=2
            )
            self._scale(name, "value", rows, value)
            value[torch.where(~present)] = 0
            if scene is not None:
                value.mul_(scene)
            self._scale(name, "change", (rows[:, 1:] - rows[:, :-1]).abs_(), change[:, 1:])
            change[:, 1:][torch.where(~(present[:, 1:] & present[:, :-1]))] = 0
            # where there is no neighbour before, the change is what it is on average: zero
            change[:, 0] = 0
            if self.centred:
                centre = self._centre(rows, present, None if totals is None else totals[name])
                self._scale(name, "centred", rows - centre, more[0])
                more[0][torch.where(~present)] = 0
            if self.outlier_limit:
                limit = self.outlier_limit / (1 - self.dropout if self.training else 1)
                parts[number].clamp_(-limit, limit)
            absent.copy_(~present[..., None])
        return prepared

    def _centre(self, rows: Tensor, present: Tensor, totals: StreamTotals | None) -> Tensor:
        """Return the mean of valid rows (batch, time, D): (batch, 1, D), if causal (.., time, D).

        A clip without a valid row has a mean of zero.
        """
        weight = present[..., None].float()
        known = torch.where(present[..., None], rows, 0.0)
        if self.causal:
            total, count = known.cumsum(1), weight.cumsum(1)
        else:
            total, count = known.sum(1, keepdim=True), weight.sum(1, keepdim=True)
        if totals is not None:
            others, number = totals.values[:, None], totals.rows[:, None, None]
            total, count = (total + others, count + number) if self.causal else (others, number)
        return total / count.clamp(min=1)

    def _scale(self, name: str, part: str, rows: Tensor, out: Tensor) -> None:
        """Write (rows - mean) / scale of (batch, time, D), some features dropped in training."""
        scale = self.get_buffer(f"{name}_{part}_scale")
        rate = 1 / scale
        mean = self.get_buffer(f"{name}_{part}_mean")
        if self.training:
            if part == "centred" and self.offset_noise:
                drawn = normal(len(rows), 1, rows.shape[2]).to(rows.device)
                mean = mean + self.offset_noise * scale * drawn
            if self.dropout:
                rate = rate.expand(len(rows), 1, -1)
                rate = rate * dropout_mask(rate, self.dropout) / (1 - self.dropout)
        torch.addcmul(-mean * rate, rows, rate, out=out)

    def _hidden(self, like: Tensor) -> Tensor | None:
        """Return (batch, streams), true where a clip's stream is hidden; None outside training."""
        if not self.training or self.stream_dropout == 0 or len(self.sizes) == 1:
            return None
        draw = uniform(len(like), len(self.sizes)).to(like.device)
        hidden = draw < self.stream_dropout
        # hiding everything would teach nothing: the stream with the largest draw stays
        return hidden & (draw < draw.amax(1, keepdim=True))


def totals_of(
    streams: Mapping[str, Tensor], valid: Mapping[str, Tensor], before: int = 0
) -> Totals:
    """Return what the snippets of each stream add up to.

    Args:
        streams: name -> (batch, time, D).
        valid: name -> (batch, time), true where the stream has something to say.
        before: 1 if the first row is only there for the change from it to the next one.
    """
    totals = {}
    for name, rows in streams.items():
        rows, present = rows.float(), valid[name]
        both = present[:, 1:] & present[:, :-1]
        change = (rows[:, 1:] - rows[:, :-1]).abs()
        own = present[:, before:]
        totals[name] = StreamTotals(
            torch.where(own[..., None], rows[:, before:], 0.0).sum(1),
            own.sum(1).float(),
            torch.where(both[..., None], change, 0.0).sum(1),
            both.sum(1).float(),
        )
    return totals
