# SPDX-License-Identifier: Apache-2.0
"""The demo in a browser, and its Space."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {"model": ["DemoModel"], "page": ["DemoPage"]})
