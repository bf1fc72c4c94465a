# SPDX-License-Identifier: Apache-2.0
"""Fetch Transformers' own common tests for the installed release, so that they can be run over our classes.

They come with the source distribution only. The copy lies in `.transformers-tests/` and is not part of this
repository; without it the tests that need it are skipped with that reason.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path, PurePosixPath

TARGET = Path(__file__).resolve().parents[1] / ".transformers-tests"

STAND_INS = {  # parts that the source distribution lacks and that these tests do not need
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "../utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *_, **__):\n    return url\n",
}


def fetch(release: str) -> Path:
    """Download the source distribution of `release` and unpack its tests as the package `transformers_tests`."""
    package = TARGET / "transformers_tests"
    stamp = TARGET / "release"
    if stamp.is_file() and stamp.read_text() == release and all((package / name).is_file() for name in STAND_INS):
        return package
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", ":all:", "--dest", folder, f"transformers=={release}"]
        subprocess.run(command, check=True)
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        package.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as content:
            for member in content:
                path = PurePosixPath(member.name)
                if path.parts[1:-1] == ("tests",) and path.suffix == ".py" and (file := content.extractfile(member)):
                    (package / path.name).write_bytes(file.read())
    for name, text in STAND_INS.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    for folder in (package, package / "exporters", package / "generation"):
        (folder / "__init__.py").touch()
    stamp.write_text(release)
    return package


if __name__ == "__main__":
    try:
        fetch(version("transformers"))
    except (subprocess.CalledProcessError, ValueError) as error:
        sys.stderr.write(f"Transformers' own tests could not be fetched and will be skipped: {error}\n")
