# SPDX-License-Identifier: Apache-2.0
"""Who writes instructions: templates, or a chat model."""
