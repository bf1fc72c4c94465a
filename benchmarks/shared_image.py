# SPDX-License-Identifier: Apache-2.0
"""Many instructions on one image: time and memory against stock SAM3, which runs every (image, instruction) pair.

Random weights; stock and SAM3-I share the weight tensors and are timed in turn. With V for the vision encoder, R for
what stock does after it and S(N) for `segment` on N rows of encoded pixels, the pairwise way takes N (V + R) and ours
V + S(N). The pairwise way is extrapolated from one pair; ours is continued beyond no rows that ran.

Run: `python benchmarks/shared_image.py [--size tiny|middle|real] [--design cascade|selective]`; the real size needs
8 GB of memory and five minutes on an idle core.
"""

import argparse

import torch
from kept import Figure, add_options, finish, ratios
from models import SIZES, build_model, image, instructions, stock_twin
from timing import Timing, alternate, clock, peak_mib, ratio, table

KEPT = 10
"""About how many queries of a row exceed the threshold; random weights have no natural one."""


def rows_of(model, count: int, level: int = 0) -> dict[str, torch.Tensor]:
    """Instructions of one level on the first image."""
    levels = torch.full((count,), level)
    return instructions(model, count) | {"instruction_levels": levels, "image_ids": torch.zeros_like(levels)}


def usual_threshold(model, features) -> float:
    outputs = model.segment(0.0, vision_embeds=features, **rows_of(model, 1))
    scores = (outputs.pred_logits[0].sigmoid() * outputs.presence_logits[0].sigmoid()).sort(descending=True).values
    return float(scores[min(KEPT, len(scores) - 1)])


def measure_memory(model, pixels, counts: list[int]) -> None:
    """Peak memory of this process after one instruction and after many; it must run first."""
    before = peak_mib()
    features = model.get_vision_features(pixel_values=pixels)
    threshold = usual_threshold(model, features)
    rows = []
    for count in counts:
        model.segment(threshold, vision_embeds=features, **rows_of(model, count, level=2))
        rows.append([f"N={count}", round(peak_mib()), peak_mib() / (rows[0][1] if rows else peak_mib())])
    table(f"Peak memory ({before:.0f} MiB with the model alone)", ["", "MiB", "/ N=1"], rows)


def measure_after_vision(
    model, stock, features, counts: list[int], rounds: int
) -> tuple[Timing, dict[int, float], dict[str, Figure]]:
    """Print what an instruction costs after vision; stock's time, the seconds of `segment` by rows, and ratios."""
    one, threshold = instructions(model, 1), usual_threshold(model, features)
    timings = alternate(
        {
            "stock": lambda: stock(vision_embeds=features, **one),
            "forward, concept": lambda: model(vision_embeds=features, **one),
            "forward, complex": lambda: model(vision_embeds=features, **one, instruction_levels=torch.tensor([2])),
        },
        rounds,
    )
    base, figures = timings["stock"], ratios(timings, "stock")
    rows = [[name, 1, timing.cpu_s, ratio(timing, base), "all"] for name, timing in timings.items()]
    most, seconds = max(counts), {}
    runs = [("segment, concept", count, 0, threshold) for count in counts]
    runs += [("segment, complex", most, 2, threshold), ("segment, concept", most, 0, 1.0)]
    for name, count, level, score in runs:
        inputs, timing = rows_of(model, count, level), Timing()
        for _ in range(max(1, rounds if count == 1 else rounds // 2)):
            with clock(timing):
                found = model.segment(score, vision_embeds=features, **inputs)
        if score == threshold and level == 0:
            seconds[count] = timing.cpu_s
        figures[f"{name}, {count} rows, above {score:.2g}"] = Figure.of_rounds(
            [seconds_of / count / base.cpu_s for seconds_of in timing.cpu]
        )
        kept = sum(map(len, found.pred_logits)) / count
        rows.append([name, count, timing.cpu_s / count, timing.cpu_s / count / base.cpu_s, f"{kept:.0f}"])
    forward = Timing()
    with clock(forward):
        model(vision_embeds=features, **rows_of(model, min(most, 8)))
    own = forward.cpu_s / min(most, 8)
    rows.append(["forward, concept", min(most, 8), own, own / base.cpu_s, "all"])
    table("After vision, per instruction", ["", "rows", "cpu s", "/ stock", "masks"], rows)
    return base, seconds, figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--design", choices=("cascade", "selective"), default="cascade")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of instructions to run, least first")
    add_options(parser)
    arguments = parser.parse_args()
    real = arguments.size == "real"
    counts = arguments.rows or {"tiny": [1, 16, 64], "middle": [1, 16], "real": [1, 8]}[arguments.size]
    model = build_model(arguments.size, adapter_design=arguments.design)
    pixels = image(model)
    print(f"size {arguments.size}, design {arguments.design}, {torch.get_num_threads()} thread(s)", flush=True)
    with torch.no_grad():
        measure_memory(model, pixels, counts if real else [1, 64])
        stock = stock_twin(model)
        features = model.get_vision_features(pixel_values=pixels)
        base, seconds, figures = measure_after_vision(model, stock, features, counts, arguments.rounds)
        vision = Timing()
        for _ in range(1 if real else arguments.rounds):
            with clock(vision):
                stock.get_vision_features(pixel_values=pixels)
    rows = []
    for count in counts:
        pairwise, own = count * (vision.cpu_s + base.cpu_s), vision.cpu_s + seconds[count]
        rows.append([f"N={count}", pairwise, own, pairwise / own])
    table(
        f"N instructions on one image (V = {vision.cpu_s:.3g} s, R = {base.cpu_s:.3g} s)",
        ["", "pairwise cpu s, N times one", "segment cpu s", "times faster"],
        rows,
    )
    finish("shared_image", arguments.size, figures, arguments)


if __name__ == "__main__":
    main()
