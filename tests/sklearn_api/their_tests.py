"""scikit-learn's own test modules, as its wheel ships them, with ours in the place of its estimators."""

import importlib.util

import pytest


def load(name, **replacements):
    """A fresh copy of a test module of scikit-learn, so that replacing a name in it changes no other."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"this scikit-learn ships no {name}", allow_module_level=True)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(replacements)
    return module


def collected(module, skipped, slow=()):
    """Its tests by name, those in `skipped` skipped because of what they use in the place of the estimator."""
    found = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    for name, test in found.items():
        test.pytestmark = [_listed(mark) for mark in getattr(test, "pytestmark", [])]
        if name in skipped:
            pytest.mark.skip(reason=f"uses {skipped[name]}")(test)
        if name in slow:
            pytest.mark.slow(test)
    return found


def _listed(mark):
    """A parametrisation with its values in a list, which pytest asks for."""
    if mark.name != "parametrize":
        return mark
    return pytest.mark.parametrize(mark.args[0], list(mark.args[1]), **mark.kwargs).mark
