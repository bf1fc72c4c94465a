# SPDX-License-Identifier: Apache-2.0
"""What is in a picture: instances, facts about them, and where they come from."""
