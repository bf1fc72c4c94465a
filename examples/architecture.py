# SPDX-License-Identifier: Apache-2.0
"""Draw the architecture as an SVG, with the parameter counts of the real-size model.

Run: `python examples/architecture.py [--output examples/assets/architecture.svg]`. The model is built without memory
for its weights, so this takes seconds. The picture changes only when the model does.
"""

import argparse
from collections import Counter
from html import escape
from pathlib import Path

import torch
from transformers.initialization import no_init_weights

from sam3i import Sam3IConfig, Sam3IForInstructionSegmentation

DEFAULT_OUTPUT = Path(__file__).parent / "assets" / "architecture.svg"
WIDTH, HEIGHT = 1200, 690
ROUTER = "text_encoder.sam3i_adapter."
STYLE = """
.page { fill: #ffffff; stroke: #d5dbe3 } .t { fill: #1d2733 } .f { fill: #64748b }
.frozen { fill: #eef2f6; stroke: #b6c2cf } .card { fill: #f8fafc; stroke: #dbe2ea } .ice { stroke: #7f93a8 }
.wire { stroke: #64748b; fill: none; stroke-width: 1.6 } .tip { fill: #64748b } .part { stroke: #b6c2cf }
@media (prefers-color-scheme: dark) {
.page { fill: #151a21; stroke: #343d49 } .t { fill: #e6ebf1 } .f { fill: #93a1b2 }
.frozen { fill: #232b35; stroke: #46525f } .card { fill: #1b222b; stroke: #333d49 } .ice { stroke: #93a7bc }
.wire { stroke: #93a1b2 } .tip { fill: #93a1b2 } .part { stroke: #46525f } }
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
.concept { fill: #607d9b } .simple { fill: #2e9660 } .complex { fill: #8a5cce } .adapter { fill: #d97706 }
.on { fill: #ffffff }
"""


def count_parameters(design: str) -> tuple[Counter, Counter, Sam3IConfig]:
    """Frozen parameters and those of the adapters, by sub-model; the router is counted by itself."""
    config = Sam3IConfig(adapter_design=design)
    with no_init_weights(), torch.device("meta"):
        model = Sam3IForInstructionSegmentation(config)
    frozen, adapters = Counter(), Counter()
    for name, parameter in model.named_parameters():
        part = "router" if name.startswith(ROUTER) else name.split(".")[0]
        (adapters if ".sam3i_adapter." in name else frozen)[part] += parameter.numel()
    return frozen, adapters, config


def size(number: int) -> str:
    """A count as people write it: 454 M, 9.5 M, 92 k."""
    if number >= 100e6:
        return f"{number / 1e6:.0f} M"
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


class Drawing:
    """Shapes of an SVG, in order."""

    def __init__(self):
        self.shapes = []

    def text(self, x: float, y: float, words: str, style: str = "t", height: int = 14, **options: str) -> None:
        extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in options.items())
        self.shapes.append(f'<text class="{style}" x="{x}" y="{y}" font-size="{height}"{extra}>{escape(words)}</text>')

    def middle(self, x: float, y: float, words: str, style: str = "t", height: int = 14, **options: str) -> None:
        self.text(x, y, words, style, height, text_anchor="middle", **options)

    def box(self, x: float, y: float, width: float, height: float, style: str, radius: float = 9) -> None:
        self.shapes.append(f'<rect class="{style}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"/>')

    def pill(self, x: float, y: float, words: str, style: str, width: float) -> None:
        self.box(x, y - 10, width, 20, style, 10)
        self.middle(x + width / 2, y + 4.5, words, "on", 12, font_weight="600")

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points with a tip at its end; the last piece is level or upright."""
        (x0, y0), (x1, y1) = points[-2:]
        step = ((x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0))
        path = " ".join(f"{x},{y}" for x, y in (*points[:-1], (x1 - 6 * step[0], y1 - 6 * step[1])))
        self.shapes.append(f'<polyline class="wire" points="{path}"/>')
        back = (x1 - 9 * step[0], y1 - 9 * step[1])
        corners = [(back[0] + side * 5 * step[1], back[1] + side * 5 * step[0]) for side in (1, -1)]
        tip = " ".join(f"{x},{y}" for x, y in ((x1, y1), *corners))
        self.shapes.append(f'<polygon class="tip" points="{tip}"/>')

    def module(
        self, x: float, y: float, width: float, height: float, title: str, lines: list[str], adapter: str = ""
    ) -> None:
        """A frozen sub-model, with a strip at its bottom where adapters sit in it."""
        self.box(x, y, width, height, "frozen")
        self.text(x + 13, y + 24, title, height=15, font_weight="600")
        for number, line in enumerate(lines):
            self.text(x + 13, y + 44 + 17 * number, line, "f", 12.5)
        cx, cy = x + width - 18, y + 18
        for dx, dy in ((0, 7), (6, 3.5), (6, -3.5)):
            self.shapes.append(
                f'<line class="ice" stroke-width="1.6" x1="{cx - dx}" y1="{cy - dy}" x2="{cx + dx}" y2="{cy + dy}"/>'
            )
        if adapter:
            self.box(x + 8, y + height - 32, width - 16, 24, "adapter", 6)
            self.middle(x + width / 2, y + height - 15.5, adapter, "on", 12.5, font_weight="600")

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" role="img" aria-label="Architecture of SAM3-I">\n<style>{STYLE}</style>\n'
            + "\n".join(self.shapes)
            + "\n</svg>\n"
        )


def draw_model(drawing: Drawing, frozen: Counter, adapters: Counter, config: Sam3IConfig) -> None:
    """The upper half: the forward pass, from a picture and an instruction to instances."""
    layers = {
        name: f"{getattr(config, name).num_layers} layers" for name in ("detr_encoder_config", "detr_decoder_config")
    }
    text_layers = config.text_config.num_hidden_layers
    queries = config.detr_decoder_config.num_queries
    d = drawing
    d.text(30, 112, "picture", font_weight="600")
    d.text(30, 130, "once, however", "f", 12)
    d.text(30, 145, "many instructions", "f", 12)
    d.text(30, 220, "boxes", font_weight="600")
    d.text(30, 238, "like / not like this", "f", 12)
    d.text(30, 312, "instruction", font_weight="600")
    d.text(30, 330, "and its level", "f", 12)
    for y in (115, 220, 315):
        d.arrow((140, y), (170, y))
    d.module(170, 78, 205, 74, "Vision encoder", [f"ViT, pyramid · {size(frozen['vision_encoder'])}"])
    d.module(170, 186, 205, 68, "Geometry encoder", [size(frozen["geometry_encoder"])])
    d.module(
        170,
        286,
        205,
        98,
        "Text encoder",
        [f"{text_layers} layers · {size(frozen['text_encoder'] + frozen['text_projection'])}"],
        f"level modules × {text_layers}",
    )
    d.arrow((375, 115), (430, 115), (430, 195), (450, 195))
    d.arrow((375, 220), (450, 220))
    d.arrow((375, 330), (430, 330), (430, 245), (450, 245))
    for x, name, title in ((450, "detr_encoder", "DETR encoder"), (650, "detr_decoder", "DETR decoder")):
        count = getattr(config, f"{name}_config").num_layers
        line = layers[f"{name}_config"]
        more = [f"{line} · {size(frozen[name])}"] + ([f"{queries} queries"] if name == "detr_decoder" else [])
        d.module(x, 165, 170, 112, title, more, f"level modules × {count}")
    d.arrow((620, 220), (650, 220))
    d.arrow((820, 200), (840, 200), (840, 125), (860, 125))
    d.arrow((820, 245), (840, 245), (840, 315), (860, 315))
    d.module(860, 78, 205, 98, "Mask decoder", [size(frozen["mask_decoder"])], "level mask embedders")
    d.module(
        860, 270, 205, 114, "Scoring", [f"query · prompt, {size(frozen['dot_product_scoring'])}"], "instance selector"
    )
    d.text(873, 331, "selector: our design only", "f", 12)
    d.arrow((375, 98), (860, 98))
    d.arrow((1065, 125), (1095, 125))
    d.arrow((1065, 315), (1095, 315))
    d.text(1104, 130, "masks", font_weight="600")
    d.text(1104, 312, "boxes,", font_weight="600")
    d.text(1104, 331, "scores", font_weight="600")


def draw_levels(drawing: Drawing, x: float) -> None:
    """The lower left card: the path of each level through a site of the paper's cascade."""
    d = drawing
    d.box(x, 420, 400, 240, "card", 12)
    d.text(x + 18, 447, "A row takes the path of its level", height=15, font_weight="600")
    d.text(x + 18, 466, "cascade, the paper's design, at every orange site", "f", 12.5)
    paths = {"concept": [], "simple": ["S-Adapter"], "complex": ["copy of S", "C-Adapter"]}
    for number, (level, members) in enumerate(paths.items()):
        y = 500 + 44 * number
        d.pill(x + 18, y, level, level, 72)
        d.arrow((x + 90, y), (x + 112, y))
        d.box(x + 112, y - 15, 76, 30, "frozen", 6)
        d.middle(x + 150, y + 4.5, "stock layer", height=12)
        left = x + 188
        for member in members:
            d.arrow((left, y), (left + 16, y))
            d.box(left + 16, y - 15, 76, 30, level, 6)
            d.middle(left + 54, y + 4.5, member, "on", 12, font_weight="600")
            left += 92
        d.arrow((left, y), (x + 388, y))
    d.text(x + 18, 627, "Levels may differ row by row in one batch; concept rows equal", "f", 12)
    d.text(x + 18, 644, "SAM3's, bit for bit. “auto”: rules or a router choose.", "f", 12)


def draw_selective(drawing: Drawing, x: float, rank: int, queries: int) -> None:
    """The lower middle card: our design."""
    d = drawing
    d.box(x, 420, 380, 240, "card", 12)
    d.text(x + 18, 447, "Selective, our design", height=15, font_weight="600")
    d.text(x + 18, 466, "low-rank updates of every projection, routed by level", "f", 12.5)
    y = 500
    d.box(x + 18, y - 15, 92, 30, "frozen", 6)
    d.middle(x + 64, y + 4.5, "y = W x + b", height=12.5)
    for left, level, times in ((120, "simple", rank), (246, "complex", 2 * rank)):
        d.text(x + left, y + 5, "+", height=15)
        d.box(x + left + 14, y - 15, 106, 30, level, 6)
        d.middle(x + left + 67, y + 4.5, f"U D x, rank {times}", "on", 12, font_weight="600")
    d.text(x + 18, 540, "one of the two, or none for a concept", "f", 12)
    d.text(x + 18, 572, "Instance selector", height=13.5, font_weight="600")
    centres = [(36, 606), (70, 600), (104, 610)]
    for first, (cx, cy) in enumerate(centres):
        for other in centres[first + 1 :]:
            d.shapes.append(f'<line class="wire" x1="{x + cx}" y1="{cy}" x2="{x + other[0]}" y2="{other[1]}"/>')
    for number, (cx, cy) in enumerate(centres):
        style = "complex" if number == 0 else "frozen"
        d.shapes.append(f'<circle class="{style}" cx="{x + cx}" cy="{cy}" r="11"/>')
    words = (
        f"compares the {queries} best in pairs, by place",
        "and looks, as asked: “the leftmost”,",
        "“the one next to the dog”",
    )
    for number, line in enumerate(words):
        d.text(x + 132, 596 + 16 * number, line, "f", 12)
    d.text(x + 18, 649, "and changes their scores. It starts as no change.", "f", 12)


def draw_counts(drawing: Drawing, x: float, frozen: Counter, designs: dict[str, Counter]) -> None:
    """The lower right card: what trains, in parameters."""
    d = drawing
    d.box(x, 420, 318, 240, "card", 12)
    d.text(x + 18, 447, "Parameters that train", height=15, font_weight="600")
    d.text(x + 18, 466, f"frozen SAM3: {size(frozen.total())}", "f", 12.5)
    columns = {"cascade": x + 218, "selective": x + 300}
    for name, right in columns.items():
        d.text(right, 492, name, "t", 12.5, text_anchor="end", font_weight="600")
    rows = {
        "text encoder": "text_encoder",
        "DETR encoder": "detr_encoder",
        "DETR decoder": "detr_decoder",
        "mask embedders": "mask_decoder",
        "instance selector": "dot_product_scoring",
        "level router": "router",
    }
    y = 514
    for title, part in rows.items():
        if not any(counts[part] for counts in designs.values()):
            continue
        d.text(x + 18, y, title, "f", 12.5)
        for name, counts in designs.items():
            d.text(columns[name], y, size(counts[part]) if counts[part] else "-", "t", 12.5, text_anchor="end")
        y += 20
    d.shapes.append(f'<line class="part" x1="{x + 18}" y1="{y - 8}" x2="{x + 300}" y2="{y - 8}"/>')
    d.text(x + 18, y + 10, "all", height=13, font_weight="600")
    for name, counts in designs.items():
        d.text(columns[name], y + 10, size(counts.total()), height=13, text_anchor="end", font_weight="600")


def architecture() -> str:
    """The picture."""
    frozen, cascade, config = count_parameters("cascade")
    _, selective, _ = count_parameters("selective")
    drawing = Drawing()
    drawing.box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, "page", 16)
    drawing.text(30, 44, "SAM3-I", height=22, font_weight="700")
    drawing.text(130, 44, "frozen SAM3 that follows instructions at three levels, in one forward pass", "f", 15)
    drawing.box(870, 30, 18, 18, "frozen", 5)
    drawing.text(896, 44, "frozen", "f", 13)
    drawing.box(956, 30, 18, 18, "adapter", 5)
    drawing.text(982, 44, "trained, by level", "f", 13)
    draw_model(drawing, frozen, cascade, config)
    draw_levels(drawing, 30)
    draw_selective(drawing, 444, config.adapter_rank, config.selector_queries)
    draw_counts(drawing, 852, frozen, {"cascade": cascade, "selective": selective})
    return drawing.svg()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    output = parser.parse_args().output
    output.write_text(architecture(), encoding="utf-8")
    print(f"Written to {output}")


if __name__ == "__main__":
    main()
