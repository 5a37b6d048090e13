"""What is public says what it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import extract
import features
import manifests
import train


def public(package: Any) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Yield each public callable of a package with its docstring."""
    for name in package.__all__:
        member = getattr(package, name)
        if inspect.isfunction(member):
            yield name, member, member.__doc__ or ""
        elif inspect.isclass(member) and "__init__" in vars(member):
            yield name, member.__init__, member.__doc__ or ""
        if inspect.isclass(member):
            for own, method in vars(member).items():
                if inspect.isfunction(method) and not own.startswith("_"):
                    yield f"{name}.{own}", method, method.__doc__ or ""


@pytest.mark.parametrize("package", [extract, features, manifests, train], ids=lambda p: p.__name__)
def test_what_takes_more_than_one_argument_explains_them(package: Any) -> None:
    silent = [
        name
        for name, function, text in public(package)
        if len(inspect.signature(function).parameters.keys() - {"self", "cls"}) > 1
        and "Args:" not in text
        and "Attributes:" not in text  # of a data class
        and not name.startswith("MTCNClassifier.")  # scikit-learn's
    ]
    assert silent == []
