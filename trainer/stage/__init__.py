# SPDX-License-Identifier: Apache-2.0
"""One stage as a run of the Trainer of Transformers: what a step computes, what happens around steps."""
