# SPDX-License-Identifier: Apache-2.0
"""The small heads with a learning of their own: selector and router."""
