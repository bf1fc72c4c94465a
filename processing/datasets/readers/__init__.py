# SPDX-License-Identifier: Apache-2.0
"""One reader per format of instruction data; each returns the rows of the schema."""
