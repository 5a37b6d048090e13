"""Audio-visual anomaly recognition: the four parts put together, for the shell and for Python."""

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


def _take_own_parts() -> None:
    """See to it that the parts are avarnet's own, and no files of the user's by the same names.

    `python -m avarnet` puts the current folder first on the path; here it is taken off again.

    Raises:
        ImportError: a file hides a part.
    """
    home = Path(__file__).parents[1]
    started = sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] in ("avarnet", "-mavarnet")
    if started and not sys.flags.safe_path and Path(sys.path[0]).resolve() != home.resolve():
        del sys.path[0]
    for part in ("manifests", "features", "extract", "train"):
        spec = find_spec(part)  # which imports nothing
        if spec is None:
            continue
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or ())))
        if found.resolve() != (home / part / "__init__.py").resolve():
            raise ImportError(
                f"{found} hides avarnet's part '{part}', which has the same name. Rename it, or "
                "keep Python from searching that folder: python -P, PYTHONSAFEPATH=1, or no such "
                "entry in PYTHONPATH",
                name=part,
                path=str(found),
            )


_take_own_parts()

from avarnet import pipelines  # noqa: E402
from avarnet.main import app, main  # noqa: E402

__version__ = version("avarnet")
__all__ = ["__version__", "app", "main", "pipelines"]
