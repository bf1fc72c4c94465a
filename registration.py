# SPDX-License-Identifier: Apache-2.0
"""Teach Transformers and PEFT about SAM3-I, without importing either before the user does.

Importing Transformers' auto classes takes seconds, so `import sam3i` must not do it. Each entry of `_REGISTRATIONS`
names a module and what to register once that module is there: at once if it is already imported, right after its
import otherwise. Registering twice changes nothing.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import sys

_TABLES = {
    "transformers.models.auto.configuration_auto": "CONFIG_MAPPING",
    "transformers.models.auto.modeling_auto": "MODEL_MAPPING",
    "transformers.models.auto.processing_auto": "PROCESSOR_MAPPING",
}
_MODEL_TYPE = "sam3i"
_REGISTERED_CLASSES = {
    "modeling_sam3i.configuration_sam3i": "Sam3IConfig",
    "modeling_sam3i.modeling_sam3i": "Sam3IForInstructionSegmentation",
    "processing.processing_sam3i": "Sam3IProcessor",
}


def _being_imported() -> bool:
    """Whether one of our classes is on its way: it cannot be registered yet, and will be at the next look."""
    modules = {sys.modules.get(f"{__package__}.{name}"): found for name, found in _REGISTERED_CLASSES.items()}
    return any(module is not None and not hasattr(module, found) for module, found in modules.items())


class _RegisterOnUse(dict):
    """What was added to a table of the auto classes; the first look for something of ours registers all of it.

    The import of the table is too early: it happens in the middle of importing the models that ours extend.
    """

    resolving = False

    def _resolve(self) -> None:
        if not _RegisterOnUse.resolving and not _being_imported():
            _RegisterOnUse.resolving = True  # registering looks at these tables, too
            try:
                register_auto_classes()
            finally:
                _RegisterOnUse.resolving = False

    def _resolve_key(self, key: object) -> None:
        """`key` is a model type or a class of configurations."""
        if getattr(key, "model_type", key) == _MODEL_TYPE and not super().__contains__(key):
            self._resolve()

    def __contains__(self, key: object) -> bool:
        self._resolve_key(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self._resolve_key(key)
        return super().__getitem__(key)

    def values(self):
        self._resolve()  # processors are looked for by the name of their class
        return super().values()


def _prepare_table(module: str) -> None:
    table = getattr(sys.modules[module], _TABLES[module])
    if not isinstance(table._extra_content, _RegisterOnUse):
        table._extra_content = _RegisterOnUse(table._extra_content)


def register_auto_classes() -> None:
    """`AutoConfig`, `AutoModel` and `AutoProcessor` find SAM3-I by the model type "sam3i"."""
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from .modeling_sam3i.configuration_sam3i import Sam3IConfig

    AutoConfig.register(Sam3IConfig.model_type, Sam3IConfig, exist_ok=True)
    from .modeling_sam3i.modeling_sam3i import Sam3IForInstructionSegmentation
    from .processing.processing_sam3i import Sam3IProcessor

    AutoModel.register(Sam3IConfig, Sam3IForInstructionSegmentation, exist_ok=True)
    AutoProcessor.register(Sam3IConfig, Sam3IProcessor, exist_ok=True)


def _register_pipeline() -> None:
    from .processing.pipeline_registration import register_pipeline

    register_pipeline()


def _register_peft_method() -> None:
    # The module registers itself at its end. It is not asked to: its own import of PEFT may be what brought us here.
    importlib.import_module(".modeling_sam3i.tuner_sam3i", __package__)


def _provide_card_writer() -> None:
    """Models write their cards when they are pushed, without knowing who does it for them."""
    from .modeling_sam3i.pretrained_sam3i import Sam3IPreTrainedModel

    def write(folder, **known):
        from .hub.model_card import write_model_card

        return write_model_card(folder, **known)

    Sam3IPreTrainedModel.card_writer = staticmethod(write)


_REGISTRATIONS = {
    **{module: functools.partial(_prepare_table, module) for module in _TABLES},
    "transformers.pipelines": _register_pipeline,
    "peft": _register_peft_method,
    f"{__package__}.modeling_sam3i.pretrained_sam3i": _provide_card_writer,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Runs the registration of a module right after that module has been imported."""

    searching = False

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _REGISTRATIONS or self.searching:
            return None
        self.searching = True  # the other finders are asked, this one is not
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module):
            execute(module)
            _REGISTRATIONS[fullname]()

        spec.loader.exec_module = execute_and_register
        return spec


def register() -> None:
    """Register now what is imported, and the rest when it is."""
    for name, registration in _REGISTRATIONS.items():
        if name in sys.modules:
            registration()
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


__all__ = ["register", "register_auto_classes"]
