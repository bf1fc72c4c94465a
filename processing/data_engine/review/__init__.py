# SPDX-License-Identifier: Apache-2.0
"""A person's last word: the review page and Label Studio."""
