"""A sequence model and a fusion that come with a package of their own: see docs/own-models.md."""

from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class GRU(nn.Module):
    receptive_field = None  # snippets to each side that decide on a prediction; None: any may

    def __init__(self, in_features, num_classes, channels, causal, dropout):
        super().__init__()
        self.read = nn.GRU(in_features, channels, batch_first=True, bidirectional=not causal)
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(channels if causal else 2 * channels, num_classes)

    def forward(self, x, mask):  # (batch, in_features, time), (batch, time) true inside the clip
        rows, lengths = x.transpose(1, 2), mask.sum(1).cpu()
        packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
        rows, _ = pad_packed_sequence(self.read(packed)[0], True, total_length=x.shape[2])
        return self.leave(self.dropout(rows)).transpose(1, 2)[None]  # (1, batch, classes, time)


class Sum(nn.Module):
    receptive_field = 0  # each snippet is fused by itself

    def __init__(self, sizes, channels, dropout, causal):
        super().__init__()
        self.sizes, self.out_features = list(sizes), channels
        self.enter = nn.ModuleList(nn.Linear(size, channels) for size in sizes)

    def forward(self, x, mask):  # (batch, time, sum of sizes): the streams side by side
        parts = x.split(self.sizes, dim=2)
        return sum(layer(part) for layer, part in zip(self.enter, parts, strict=True))
