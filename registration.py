# SPDX-License-Identifier: Apache-2.0
"""Teach Transformers and PEFT about SAM3-I, without importing either before the user does.

Importing Transformers' auto classes takes seconds, so `import sam3i` must not do it. Each entry of `_REGISTRATIONS`
names a module and what to register once that module is there: at once if it is already imported, right after its
import otherwise. Registering twice changes nothing.
"""

import importlib
import importlib.abc
import importlib.util
import sys


class _RegisterOnUse(dict):
    """The auto classes' table of added configurations; the first look at "sam3i" registers everything."""

    resolving = False

    def _resolve(self, key: object) -> None:
        if key == "sam3i" and not self.resolving and not super().__contains__(key):
            self.resolving = True  # registering looks at this table, too
            try:
                register_auto_classes()
            finally:
                self.resolving = False

    def __contains__(self, key: object) -> bool:
        self._resolve(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self._resolve(key)
        return super().__getitem__(key)


def _prepare_auto_config() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if not isinstance(CONFIG_MAPPING._extra_content, _RegisterOnUse):
        CONFIG_MAPPING._extra_content = _RegisterOnUse(CONFIG_MAPPING._extra_content)


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


_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": _prepare_auto_config,
    "transformers.models.auto.processing_auto": register_auto_classes,
    "transformers.pipelines": _register_pipeline,
    "peft": _register_peft_method,
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
