"""The linear term of a network: class logits that follow from a clip's averages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.models.streams import Totals, totals_of


class LinearTerm(nn.Module):
    """Class logits of a clip, linear in the means of its streams' values and changes.

    What lasts faintly throughout a clip is in its averages, and few clips are enough to learn it
    from these; a sequence model needs more of them. The sum of both is a wide and deep network
    (Cheng et al., DLRS 2016). This part is fitted by itself, by `train.fitting.linear_fit`; until
    then it is zero.

    What a clip lacks is taken to be as it is on average; a value for each stream says whether the
    clip has it.

    Args:
        sizes: stream name -> values per snippet; their order is kept.
        num_classes: number of classes.

    Attributes:
        mean: (values,), in the order of `train.data.Clips.averages`.
        weight: (num_classes, values).
        bias: (num_classes,).
    """

    mean: Tensor

    def __init__(self, sizes: Mapping[str, int], num_classes: int) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        values = sum(2 * size + 1 for size in sizes.values())
        self.register_buffer("mean", torch.zeros(values))
        # learned, but not by gradients
        self.weight = nn.Parameter(torch.zeros(num_classes, values), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_classes), requires_grad=False)

    def forward(
        self,
        streams: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        totals: Totals | None = None,
    ) -> Tensor:
        """Return logits (batch, num_classes).

        Args:
            streams: name -> (batch, time, D).
            valid: name -> (batch, time), true where the stream has something to say.
            totals: of the whole clips, where the rows are a stretch of them.
        """
        own = totals_of(streams, valid) if totals is None else totals
        sums, counts, present = [], [], []
        for name in self.sizes:
            of = own[name]
            for total, count in ((of.values, of.rows), (of.changes, of.pairs)):
                sums.append(total)
                counts.append(count[:, None].expand_as(total))
            present.append(of.rows > 0)
        count = torch.cat(counts, 1)
        averages = torch.cat(sums, 1) / count.clamp(min=1)
        parts, flags = torch.split(self.mean, [count.shape[1], len(present)])
        known = torch.where(count > 0, averages - parts, 0.0)
        x = torch.cat([known, torch.stack(present, 1).float() - flags], 1)
        return x @ self.weight.T + self.bias
