# SPDX-License-Identifier: Apache-2.0
"""A small run of the shapes world in which a second model contradicts, so that people have to decide."""

from sam3i.processing.data_engine.engine import DataEngine
from sam3i.processing.data_engine.run import EngineConfig, RunDirectory
from sam3i.processing.data_engine.scene.sources import ShapesSource

HOSTILE = (
    "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script> **bold** [a](javascript:hacked) "
    "${window.hacked=1} {{constructor.constructor('window.hacked=1')()}} \u202eright to left\u202c &amp; &lt;b&gt;"
)


def disputed_run(folder, num_scenes=3, waiting=8, **changes):
    """Template-written pairs, `waiting` of which the checks disagree on; `changes` replace fields of these."""
    run = RunDirectory(folder, EngineConfig(source="shapes", targets_per_image=4))
    DataEngine(ShapesSource(num_scenes), run).build(progress=False)
    records = run.ordered_records()
    pairs = [pair for record in records for target in record["targets"] for pair in target["pairs"]]
    picked = [pair for pair in pairs if pair["outcome"] == "accepted" and pair["level"] == "simple"][:waiting]
    assert len(picked) == waiting
    targets = {id(pair): target for record in records for target in record["targets"] for pair in target["pairs"]}
    for pair in picked:
        evidence = {"found": [], "target": targets[id(pair)]["targets"]}
        reason = "A reader of the picture did not find the target."
        pair["checks"].append({"check": "checker", "verdict": "fail", "reason": reason, "evidence": evidence})
        pair.update(outcome="review", reason="The checks disagree: denotation says pass, checker says fail.")
    if changes:
        for pair in picked:
            pair.update(changes)
            pair["checks"][-1]["reason"] = changes.get("reason", pair["checks"][-1]["reason"])
            pair["checks"][-1]["evidence"]["answer"] = changes.get("text")
    for record in records:
        run.store.add_picture(record, {})
    return run
