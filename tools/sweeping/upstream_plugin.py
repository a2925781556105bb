"""A pytest plugin: every model that tests of an mm package build is converted.

The variable ``UPSTREAM_PACKAGE`` says which package; without
``UPSTREAM_CONVERT`` the models stay float.
"""
import functools
import importlib
import os
import warnings

from torch import nn

from gdrq_mm import quantize_

QUANTIZATION = dict(weight=dict(bits=4, group_size=4),
                    activation=dict(bits=4))


def pytest_configure(config) -> None:
    package = os.environ['UPSTREAM_PACKAGE']
    models = importlib.import_module(f'{package}.models')  # the installed one
    if os.environ.get('UPSTREAM_CONVERT'):
        convert_what_is_built(models)


def convert_what_is_built(models) -> None:
    """Let constructors of registered models convert what they built.

    Args:
        models (module): ``models`` of the package, with all its models
            registered.
    """
    registry = importlib.import_module(
        models.__name__.rpartition('.')[0] + '.registry').MODELS
    running: list = []

    def converting(init):

        @functools.wraps(init)
        def __init__(self, *args, **kwargs):
            running.append(self)
            try:
                init(self, *args, **kwargs)
            finally:
                running.pop()
            if not running:  # the whole, not its parts
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore')
                    quantize_(self, QUANTIZATION)

        return __init__

    for cls in set(registry.module_dict.values()):
        if isinstance(cls, type) and issubclass(cls, nn.Module) \
                and '__init__' in vars(cls):
            cls.__init__ = converting(cls.__init__)
