"""A run as one file for programs that know nothing of it: ONNX, or an exported torch program."""

from __future__ import annotations

import json
import warnings
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manifests import reason
from train.config import TrainError
from train.losses import POOLING, SNIPPETS_PER_TOP, average
from train.run import Run
from train.run_files import check_file

EXAMPLE_SNIPPETS = 24  # of the clip that is traced; any number goes in later
SHORTEST = 3  # snippets; torch cannot export a length that may be 1
TOLERANCE = 1e-4  # between the exported probabilities and those of torch


class Exported(nn.Module):
    """All models of a run as one, for one clip.

    Args:
        run: the run; the probabilities of its models are averaged, as `Predictor` does.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.names = list(run.sizes)
        self.models = nn.ModuleList(run.all_models())
        self.pooling = {**POOLING, "top": top_pool_of_one}[run.config.pooling]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Score one clip.

        Args:
            inputs: each stream's rows (1, time, D), then each stream's validity (1, time).

        Returns:
            Probabilities of the clip (1, classes) and of its snippets (1, time, classes).
        """
        count = len(self.names)
        streams = dict(zip(self.names, inputs[:count], strict=True))
        valid = dict(zip(self.names, inputs[count:], strict=True))
        mask = torch.ones_like(inputs[count])
        clips, snippets = [], []
        for model in self.models:
            logits = model(streams, valid, mask)[-1]
            clips.append(self.pooling(logits, mask).softmax(1))
            snippets.append(logits.softmax(1).transpose(1, 2))
        return torch.stack(clips).mean(0), torch.stack(snippets).mean(0)


def top_pool_of_one(logits: Tensor, mask: Tensor) -> Tensor:
    """Return what `top_pool` does of one clip without padding; ONNX has no stable sort.

    Args:
        logits: (1, 2, time).
        mask: not needed.
    """
    rank = (logits[:, 1] - logits[:, 0]).argsort(dim=1, descending=True).argsort(dim=1)
    return average(logits, rank < logits.shape[2] // SNIPPETS_PER_TOP + 1)


def export_run(run: Run, file: str | Path) -> float:
    """Write a run as one file whose inputs may have any number of snippets from 3 on.

    The inputs are named after the streams (``video``: 1 x time x D, float32; ``video_valid``:
    1 x time, bool), the outputs are ``clip`` (1 x classes) and ``snippets`` (1 x time x classes),
    probabilities. The file also tells classes, snippet length and the fingerprint of the features.

    Args:
        run: the run.
        file: ``.onnx`` for ONNX, ``.pt2`` for a program of `torch.export`.

    Returns:
        The largest difference to torch's own results, for clips of several lengths.

    Raises:
        TrainError: another ending, a package is missing, the models cannot be exported, or what was
            exported computes something else. What was in the file is then as it was.
    """
    file = Path(file)
    writers = {".onnx": _to_onnx, ".pt2": _to_program}
    if file.suffix not in writers:
        raise TrainError(f"{file}: the ending says what to write, .onnx or .pt2")
    check_file(file)
    if not file.parent.is_dir():
        raise TrainError(f"{file}: there is no folder {file.parent}; make it, or give another")
    about = {
        "classes": json.dumps(run.classes),
        "snippet_seconds": repr(run.recipe.snippet_seconds),
        "fingerprint": run.recipe.fingerprint,
    }
    model = Exported(run).eval()
    try:
        with TemporaryDirectory(prefix=".export-", dir=file.parent) as folder:
            new = Path(folder) / file.name
            worst = _difference(run, model, writers[file.suffix](model, run, new, about))
            if not worst < TOLERANCE:
                raise TrainError(f"{file}: what was exported differs from torch by {worst:.2g}")
            new.replace(file)
    except ImportError as error:
        raise TrainError(f"{error}; pip install onnx onnxruntime onnxscript") from error
    except TrainError:
        raise
    except OSError as error:
        raise TrainError(
            f"{file}: cannot be written ({reason(error)}); make room, or give another file"
        ) from error
    except Exception as error:  # whatever the exporters raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        other = ".pt2" if file.suffix == ".onnx" else ".onnx"
        raise TrainError(
            f"{file}: not written, the exporter ended in an error ({first}); is the disk full? If "
            f"not, try {other}"
        ) from error
    return worst


def _difference(run: Run, model: Exported, compute: Any) -> float:
    """Return the largest difference between what was exported and torch's own results."""
    worst = 0.0
    for length in (SHORTEST, EXAMPLE_SNIPPETS, 3 * EXAMPLE_SNIPPETS + 1):
        inputs = _example(run, length)
        with torch.no_grad():
            ours = model(*inputs)
        for one, other in zip(ours, compute(inputs), strict=True):
            worst = max(worst, float(np.abs(one.numpy() - other).max()))
    return worst


def _example(run: Run, length: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(length)
    rows = [torch.randn(1, length, size, generator=generator) for size in run.sizes.values()]
    valid = [torch.rand(1, length, generator=generator) < 0.8 for _ in run.sizes]
    return (*rows, *valid)


def _shapes(run: Run) -> tuple[dict[int, Any], ...]:
    time = torch.export.Dim("time", min=SHORTEST)
    return tuple({1: time} for _ in range(2 * len(run.sizes)))


def _program(model: Exported, run: Run) -> torch.export.ExportedProgram:
    example = _example(run, EXAMPLE_SNIPPETS)
    return torch.export.export(model, example, dynamic_shapes=(_shapes(run),), strict=False)


def _to_program(model: Exported, run: Run, file: Path, about: dict[str, str]) -> Any:
    content = BytesIO()  # where a file cannot be written, torch ends the process
    torch.export.save(_program(model, run), content, extra_files=about)
    file.write_bytes(content.getbuffer())
    loaded = torch.export.load(file).module()
    return lambda inputs: [output.detach().numpy() for output in loaded(*inputs)]


def _to_onnx(model: Exported, run: Run, file: Path, about: dict[str, str]) -> Any:
    import onnx
    import onnxruntime

    names = [*run.sizes, *(f"{name}_valid" for name in run.sizes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all inputs share one length is meant so
        torch.onnx.export(
            model,
            _example(run, EXAMPLE_SNIPPETS),
            str(file),
            input_names=names,
            output_names=["clip", "snippets"],
            dynamic_shapes=(_shapes(run),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    whole = onnx.load(file)
    onnx.helper.set_model_props(whole, about)
    onnx.save(whole, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(
        None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    )
