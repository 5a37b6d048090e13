"""YAMNet (AudioSet, 521 classes of sound) as a stream: what follows --stream yamnet= is its file.

YAMNet is MobileNet v1 on spectra (Hershey et al., CNN Architectures for Large-Scale Audio
Classification, ICASSP 2017; https://github.com/tensorflow/models/tree/master/research/audioset/yamnet).
The file is a TensorFlow Lite model that takes one log-mel patch, (1, 96, 64) float32.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from extract.backbones.base import WeightsError

SAMPLE_RATE = 16_000
WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms every 10 ms
BANDS, LOW_HZ, HIGH_HZ, OFFSET = 64, 125.0, 7500.0, 0.001
PATCH = 96  # spectra in a patch, 0.96 s
PATCH_HOP = 10  # spectra from one patch to the next, 0.1 s


class YAMNet:
    """The layer before the classes, 1,024 values, of a patch every 0.1 s.

    A row of a snippet is the mean of the patches that are centred in it. Before the first and after
    the last whole patch of a window stands the nearest one. Nothing is padded, but sound that is
    shorter than a patch: zeros follow it, as in YAMNet's own code.

    Args:
        source: ``{"name": path of the file}``; there are no random weights.
        device: the processor is used, whatever it says.
        precision: the file's own (8 bits) is used, whatever it says.

    Raises:
        WeightsError: the file is absent, or is no such network.
    """

    reads: Literal["sound"] = "sound"
    features = 1024
    field = WINDOW
    stride = PATCH_HOP * HOP

    def __init__(self, source: dict[str, Any], device: object, precision: str) -> None:
        path = Path(source["name"])
        if source.get("weights") == "random":
            raise WeightsError("yamnet has no random weights: leave --weights random away")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"yamnet: {path} cannot be read: {error.strerror}") from error
        try:
            # without a delegate, which would hide the layer before the classes
            self._network = Interpreter(
                model_content=content,
                num_threads=1,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
            self._network.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise WeightsError(f"yamnet: {path} is no TensorFlow Lite model: {error}") from error
        (given,) = self._network.get_input_details()
        layers = [
            tensor
            for tensor in self._network.get_tensor_details()
            if tensor["name"].endswith("reduce_mean") and tensor["shape"][-1] == self.features
        ]
        if list(given["shape"]) != [1, PATCH, BANDS] or len(layers) != 1:
            raise WeightsError(
                f"yamnet: {path} takes {list(given['shape'])}; expected YAMNet for patches of "
                f"[1, {PATCH}, {BANDS}] with {self.features} values before its classes"
            )
        self._input, self._layer = given["index"], layers[0]["index"]
        self._scale, self._zero = layers[0]["quantization"]
        self.recipe = {
            "model": "yamnet",
            "features": self.features,
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "layer": "before the classes",
            "patch_hop": self.stride,
            "edges": "nearest patch",
        }

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn (n, samples) into (n, frames, 1024): a frame every `stride` samples."""
        return np.stack([self._frames(window) for window in windows])

    def _frames(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        spectra = log_mel(np.pad(samples, (0, max(0, (PATCH - 1) * HOP + WINDOW - len(samples)))))
        starts = range(0, len(spectra) - PATCH + 1, PATCH_HOP)
        rows = np.stack([self._row(spectra[start : start + PATCH]) for start in starts])
        # frame k is centred on spectrum k * PATCH_HOP, patch p on p * PATCH_HOP + PATCH / 2
        count = (len(samples) - self.field) // self.stride + 1
        nearest = (np.arange(count) - round(PATCH / 2 / PATCH_HOP)).clip(0, len(rows) - 1)
        return np.asarray(rows[nearest])

    def _row(self, patch: NDArray[np.float32]) -> NDArray[np.float32]:
        self._network.set_tensor(self._input, patch[None])
        self._network.invoke()
        values = self._network.get_tensor(self._layer).reshape(-1).astype(np.float32)
        return np.asarray((values - self._zero) * np.float32(self._scale))


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the spectra that YAMNet reads, (frames, 64), one every 10 ms.

    Args:
        samples: (n,), mono at 16 kHz, of at least 400.
    """
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)  # Hann, periodic
    magnitude = np.abs(np.fft.rfft(frames * window, FFT))
    return np.log(magnitude @ _mel_bands() + OFFSET).astype(np.float32)


@cache
def _mel_bands() -> NDArray[np.float64]:
    """Return (257, 64): triangles that are equally wide in mel (HTK's, 1127 ln(1 + f / 700))."""
    mel = 1127 * np.log1p(np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT / 700)
    low, high = 1127 * np.log1p(np.array([LOW_HZ, HIGH_HZ]) / 700)
    edges = np.linspace(low, high, BANDS + 2)
    rising = (mel[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - mel[:, None]) / np.diff(edges)[1:]
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))
