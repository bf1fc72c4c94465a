# SPDX-License-Identifier: Apache-2.0
"""The demo in a browser, and its Space."""
