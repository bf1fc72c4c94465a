# SPDX-License-Identifier: Apache-2.0
"""Write held-out scenes of a world as pictures and the official SAM3-I JSON, for `sam3i evaluate` and `data`.

python examples/shapes_data.py --output runs/shapes_data --split test --scenes 200
"""

import argparse
from pathlib import Path

from shapes_common import WORLDS

from sam3i.processing.shapes import write_official_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/shapes_data"))
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--world", choices=WORLDS, default="shapes", help="what scenes show: shapes, or named things")
    options = parser.parse_args()
    print(
        write_official_json(options.output, options.split, options.scenes, world_type=WORLDS[options.world].world_type)
    )


if __name__ == "__main__":
    main()
