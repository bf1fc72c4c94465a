# SPDX-License-Identifier: Apache-2.0
"""Chat models behind an OpenAI-compatible address or on this machine, and their prompts."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "endpoint": ["EndpointChatModel"],
    },
)
