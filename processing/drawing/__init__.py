# SPDX-License-Identifier: Apache-2.0
"""The one place that draws: masks over pictures, legends, sheets."""
