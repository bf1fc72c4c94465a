# SPDX-License-Identifier: Apache-2.0
"""Chat models behind an OpenAI-compatible address, and the scripted one of the tests."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "endpoint": ["EndpointChatModel"],
    },
)
