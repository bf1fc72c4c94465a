# SPDX-License-Identifier: Apache-2.0
"""Adapters as files and repositories: saving, loading, checking that nothing is left out."""
