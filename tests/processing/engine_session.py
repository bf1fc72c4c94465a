# SPDX-License-Identifier: Apache-2.0
"""One session of the data engine with chat models, as a process of its own: FOLDER URL SCENES."""

import sys

if __name__ == "__main__":
    sys.argv[0] = "sam3i"  # as the command starts: without waiting for Transformers

from sam3i.processing.data_engine.calls import EndpointSpec
from sam3i.processing.data_engine.engine import DataEngine
from sam3i.processing.data_engine.run import EngineConfig, RunDirectory
from sam3i.processing.data_engine.scene.sources import ShapesSource


def run_session(folder, url, num_scenes, concurrency=4, max_retries=4, **options):
    config = EngineConfig(
        source=f"shapes {num_scenes}",
        writer="writer",
        checker="checker",
        max_retries=max_retries,
        targets_per_image=options.pop("targets_per_image", 6),
        kinds=("1-to-1", "1-to-N", "1-to-all"),
    )
    run = RunDirectory(folder, config)
    # A picture with a request that is given up waits for the next session: on a busy machine a request needs its time.
    limits = {"timeout": options.get("timeout", 120.0), "resend": options.get("resend", False)}
    specs = {role: EndpointSpec(url, role, backoff=0.02, max_backoff=0.1, **limits) for role in ("writer", "checker")}
    engine = DataEngine(
        ShapesSource(num_scenes),
        run,
        **specs,
        concurrency=concurrency,
        budget=options.get("budget"),
    )
    return run, engine, engine.build(progress=False)


if __name__ == "__main__":
    run_session(sys.argv[1], sys.argv[2], int(sys.argv[3]), targets_per_image=3)
