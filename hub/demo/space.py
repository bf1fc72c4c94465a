# SPDX-License-Identifier: Apache-2.0
"""`sam3i demo --export-space`: the demo as a folder to push to a Hub Space."""

import shutil
import sys
from importlib.metadata import requires, version
from pathlib import Path

from ...processing.atomic import refuse_full, write_whole
from ...processing.pipeline.loading import check_model_name
from ..publish.staging import RepositoryForm, find_form, stage_repository

_PACKAGE = Path(__file__).resolve().parents[2]
_FOLDERS = ("modeling_sam3i", "processing", "trainer", "hub")

_APP = '''# SPDX-License-Identifier: Apache-2.0
"""The demo of SAM3-I."""

from pathlib import Path

from sam3i.hub.demo.model import DemoModel
from sam3i.hub.demo.page import DemoPage

MODEL = {source}

if __name__ == "__main__":
    DemoPage(DemoModel.load(MODEL)).launch()  # Gradio reads the address and the port from the environment
'''

_README = """# SAM3-I: segment what you say

A noun, a description, or a riddle about what it is for: the model {link} follows instructions at three levels.
The folder `sam3i` is the package SAM3-I for Transformers, version {version}. To run the page on your own machine:

```bash
pip install -r requirements.txt gradio=={gradio}
python app.py
```
"""


def export_demo_space(model: str, output_dir: str | Path) -> Path:
    """Write a folder that runs as a Gradio Space, and by `python app.py` anywhere.

    It holds the package itself, so that the Space runs the very code that was tried here. A model that is a folder is
    copied into it; one on the Hub is named in `app.py` and in the Space's metadata.

    Raises:
        FileExistsError: when `output_dir` exists and is not an empty folder.
        FileNotFoundError: when `model` is neither a folder nor a Hub name.
        ValueError: when the folder holds no model that can be put together.
        ImportError: when gradio, whose version the Space needs, is not installed.
    """
    from .layout import gr

    output_dir, local = Path(output_dir), Path(model).is_dir()
    refuse_full(output_dir)
    check_model_name(model)
    source = 'str(Path(__file__).parent / "model")' if local else repr(model)
    app = _APP.format(source=source)
    if not local:
        app = app.replace("from pathlib import Path\n\n", "")
    with write_whole(output_dir) as folder:
        folder.mkdir()
        _copy_package(folder / "sam3i")
        if local:
            _copy_model(Path(model), folder / "model")
        (folder / "app.py").write_text(app, encoding="utf-8")
        (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(model, local, gr.__version__), encoding="utf-8")
    return output_dir


def _copy_model(folder: Path, target: Path) -> None:
    """The whole model, also where the folder holds adapters or what a training left: a Space has nothing else."""
    form = RepositoryForm.FULL if find_form(folder) is RepositoryForm.ADAPTER else find_form(folder)
    stage_repository(folder, form, None, target)
    for link in [path for path in target.iterdir() if path.is_symlink()]:
        source = link.resolve()
        link.unlink()
        shutil.copyfile(source, link)


def _copy_package(target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.tmp")
    target.mkdir()
    for path in sorted(_PACKAGE.glob("*.py")):
        shutil.copy2(path, target)
    for name in _FOLDERS:
        shutil.copytree(_PACKAGE / name, target / name, ignore=ignored)


def _requirements() -> list[str]:
    """What the package itself requires; the Space brings gradio."""
    return sorted(line for line in requires("sam3i") or [] if "extra ==" not in line)


def _card(model: str, local: bool, gradio_version: str) -> str:
    """The front page of the Space with the metadata that the Hub reads."""
    from huggingface_hub import SpaceCardData

    data = SpaceCardData(
        title="SAM3-I",
        sdk="gradio",
        sdk_version=gradio_version,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0",
        models=None if local else [model],
        emoji="✂️",
        colorFrom="indigo",
        colorTo="purple",
        short_description="Segment what you say: a noun, a description, a riddle",
    )
    link = "in the folder `model`" if local else f"[{model}](https://huggingface.co/{model})"
    return f"---\n{data.to_yaml()}\n---\n\n" + _README.format(
        link=link, version=version("sam3i"), gradio=gradio_version
    )
