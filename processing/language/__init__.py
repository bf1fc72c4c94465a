# SPDX-License-Identifier: Apache-2.0
"""The one language layer: what an instruction denotes, how it is said and read; worlds bring words and facts."""

from ...lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "everyday": ["EVERYDAY", "everyday_lexicon"],
        "lexicon": ["COLOR_REFERENCES", "PLURAL", "SIDES", "SINGULAR", "THINGS", "Lexicon"],
        "meaning": ["TARGET_KINDS", "Filter", "Meaning", "SceneFacts", "Selector", "denote", "target_kind"],
        "nouns": ["NounForms", "plural_of"],
        "phrasing": ["Phrasing", "can_say", "say"],
        "reading": ["Reading", "read_simple"],
    },
)
