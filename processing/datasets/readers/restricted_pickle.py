# SPDX-License-Identifier: Apache-2.0
"""Pickles of plain data only: containers, strings and numbers; anything that could run code is refused by name."""

import collections
import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from ..faults import DatasetFormatError

# What the containers of the standard library need; __builtin__ is Python 2's name of the module.
ALLOWED = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"persistent id {pid!r}")


def load_plain_pickle(path: str | Path) -> Any:
    """Read a pickle that holds plain data (as `refs(unc).p` and `Ref-ZOM(final).p` do), Python 2 pickles included.

    Byte strings of Python 2 are read as UTF-8, or as latin-1 where they are no UTF-8. Raises DatasetFormatError: the
    pickle names anything but plain containers, or is broken.
    """
    data = Path(path).read_bytes()
    for encoding in ("utf-8", "latin-1"):
        try:
            return _PlainUnpickler(io.BytesIO(data), fix_imports=False, encoding=encoding).load()
        except UnicodeDecodeError:
            continue
        except pickle.UnpicklingError as error:
            raise DatasetFormatError(
                f"{path}: the pickle asks for {error}, which was refused: only dicts, lists, tuples, sets, strings "
                "and numbers are read from pickles, because anything else can run code. "
                "Save it as JSON if you trust it."
            ) from error
        except Exception as error:  # a broken pickle raises nearly anything: EOFError, IndexError, KeyError, ...
            raise DatasetFormatError(f"{path}: no readable pickle ({type(error).__name__}: {error})") from error
    raise DatasetFormatError(f"{path}: its strings are neither UTF-8 nor latin-1")
