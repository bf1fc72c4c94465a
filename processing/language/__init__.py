# SPDX-License-Identifier: Apache-2.0
"""How instructions are worded and read, for every world: words, meanings, phrases, nouns."""
