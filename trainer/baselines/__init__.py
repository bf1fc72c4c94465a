# SPDX-License-Identifier: Apache-2.0
"""Systems to evaluate: SAM3-I, stock SAM3, and SAM3 with a chat model as agent."""
