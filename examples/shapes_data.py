# SPDX-License-Identifier: Apache-2.0
"""Write held-out scenes of the shapes world as pictures and the official SAM3-I JSON, for `sam3i evaluate` and `data`.

python examples/shapes_data.py --output runs/shapes_data --split test --scenes 200
"""

import argparse
from pathlib import Path

from sam3i.processing.shapes import write_official_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/shapes_data"))
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--scenes", type=int, default=200)
    options = parser.parse_args()
    print(write_official_json(options.output, options.split, options.scenes))


if __name__ == "__main__":
    main()
