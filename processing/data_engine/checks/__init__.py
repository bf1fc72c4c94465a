# SPDX-License-Identifier: Apache-2.0
"""Who accepts instructions: rules, a chat model, and the decision from both."""
