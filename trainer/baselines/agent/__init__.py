# SPDX-License-Identifier: Apache-2.0
"""SAM3 with a chat model as agent, the paper's comparison."""
