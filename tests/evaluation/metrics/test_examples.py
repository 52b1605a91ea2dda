"""Every metric carries an example, and the example is true."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

from mu.evaluation import metrics

NAMES = [module.name for module in pkgutil.iter_modules(metrics.__path__)]


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_true_and_no_public_function_lacks_one(name: str):
    module = importlib.import_module(f"{metrics.__name__}.{name}")
    assert doctest.testmod(module).failed == 0
    own = {
        n: f
        for n, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and n[0] != "_"
    }
    assert own
    for function, definition in own.items():
        assert ">>>" in (definition.__doc__ or ""), f"{name}.{function} has no example"
