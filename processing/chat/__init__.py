# SPDX-License-Identifier: Apache-2.0
"""Chat models behind an OpenAI-compatible address, and the scripted one of the tests."""
