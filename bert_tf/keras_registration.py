"""Make Keras know this package's classes, so that it can load what was saved with them.

Keras finds a class by the name that it was registered under, "bert_tf>Bert", which happens where
the class is defined. Those modules load Keras, which `import bert_tf` alone must not do: they are
imported as soon as both packages are.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence

_MODULES = (
    "bert_tf.models.bilstm_tagger",
    "bert_tf.models.task_models",
    "bert_tf.training.losses",
    "bert_tf.training.optimizers",
)
_TENSORFLOW_MODULES = ("bert_tf.tokenization.keras_preprocessor",)


def register_with_keras() -> None:
    """Register the package's classes now where Keras is loaded, else when it will be."""
    if "keras" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterKeras())


def _register() -> None:
    on_tensorflow = sys.modules["keras"].config.backend() == "tensorflow"
    for name in _MODULES + _TENSORFLOW_MODULES * on_tensorflow:
        # One that is there already is registered, or is just being imported and will be.
        if name not in sys.modules:
            importlib.import_module(name)


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Find Keras as it would be found without, and register once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find `keras` only; see `importlib.abc.MetaPathFinder`."""
        if fullname != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: types.ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register
        return spec
