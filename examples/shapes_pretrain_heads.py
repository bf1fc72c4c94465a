# SPDX-License-Identifier: Apache-2.0
"""Heads of the shapes pretraining that are thrown away afterwards: they make features tell objects apart."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from shapes_common import WIDTH
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from sam3i.processing.shapes import COLORS, Scene


class VisionHead(nn.Module):
    """Makes the feature map tell the objects: every cell and every object as a whole; training only.

    A cell says whether it lies on an object, and that object's shape, color and box. Shapes are slow to learn from
    cells, because a cell must first gather its neighbours; from the mean over an object's cells they are learned fast.
    """

    def __init__(self, nouns: Sequence[str]):
        super().__init__()
        self.nouns = tuple(nouns)
        self.sizes = [1, len(nouns), len(COLORS), 4]
        self.cell = nn.Conv2d(WIDTH, sum(self.sizes), 1)
        self.whole = nn.Linear(WIDTH, len(nouns))

    def forward(self, features: torch.Tensor, scenes: list[Scene]) -> tuple[torch.Tensor, dict[str, float]]:
        """`features` [I, C, h, w]; the loss and how often cell and object are named correctly."""
        size = features.shape[-2:]
        cover = [F.adaptive_avg_pool2d(torch.from_numpy(scene.masks).float(), size) for scene in scenes]  # [N, h, w]
        numbers = [object_numbers(scene, self.nouns) for scene in scenes]
        inside = torch.stack([c.max(0).values > 0.4 for c in cover])  # [I, h, w]
        owner = [c.argmax(0) for c in cover]
        noun_target, color_target = (
            torch.stack([n[kind][o] for n, o in zip(numbers, owner, strict=True)]) for kind in (0, 1)
        )
        box_target = torch.stack([self._boxes(scene, o) for scene, o in zip(scenes, owner, strict=True)])
        on_object, noun, color, box = self.cell(features).split(self.sizes, dim=1)
        whole = torch.cat(
            [torch.einsum("nhw,chw->nc", c, f) / c.sum((1, 2))[:, None] for c, f in zip(cover, features, strict=True)]
        )
        whole, whole_target = self.whole(whole), torch.cat([nouns for nouns, _ in numbers])
        noun, noun_target = noun.movedim(1, -1)[inside], noun_target[inside]
        loss = (
            F.binary_cross_entropy_with_logits(on_object[:, 0], inside.float())
            + 2 * F.cross_entropy(noun, noun_target)
            + F.cross_entropy(color.movedim(1, -1)[inside], color_target[inside])
            + (box - box_target).abs().sum(1)[inside].mean()
            + 2 * F.cross_entropy(whole, whole_target)
        )
        accuracy = {
            "cell": (noun.argmax(1) == noun_target).float().mean().item(),
            "whole": (whole.argmax(1) == whole_target).float().mean().item(),
        }
        return loss, accuracy

    @staticmethod
    def _boxes(scene: Scene, owner: torch.Tensor) -> torch.Tensor:
        """The owner's box relative to each cell, in quarters of the picture: [4, h, w]."""
        height, width = owner.shape
        ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        boxes = torch.from_numpy(scene.boxes)[owner].permute(2, 0, 1).clone()
        boxes[:2] -= (torch.stack([xs, ys]) + 0.5) / torch.tensor([width, height])[:, None, None]
        return boxes * 4


def object_numbers(scene: Scene, known: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the objects' nouns and colors."""
    nouns = [known.index(item.noun) for item in scene.objects]
    colors = [list(COLORS).index(item.color) for item in scene.objects]
    return torch.tensor(nouns), torch.tensor(colors)


class QueryHead(nn.Module):
    """Tells which object each query covers, whether it was asked for or not; training only."""

    def __init__(self, nouns: Sequence[str]):
        super().__init__()
        self.nouns = tuple(nouns)
        self.predict = nn.Linear(WIDTH, len(nouns) + 1 + len(COLORS))

    def forward(
        self, queries: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor, scenes: list[Scene]
    ) -> torch.Tensor:
        """`queries` [layers, R, Q, C], `boxes` [layers, R, Q, 4] cxcywh, `scores` [layers, R, Q], scenes of rows.

        The query that answers for an object that was asked for is the one that covers it here.
        """
        nothing = len(self.nouns)
        noun, color = self.predict(queries).split([nothing + 1, len(COLORS)], dim=-1)
        wanted = [torch.from_numpy(scene.boxes) for scene in scenes]
        found = boxes.detach()
        where, which = [], []
        for layer in range(len(boxes)):
            for row, target in enumerate(wanted):
                cost = torch.cdist(found[layer, row], target, p=1) - scores[layer, row, :, None]
                query, item = linear_sum_assignment(cost.numpy())
                where += [(layer, row, q) for q in query]
                which += [(row, i) for i in item]
        layer, row, query = torch.tensor(where).T
        items = [scenes[r].objects[i] for r, i in which]
        noun_target = torch.full(noun.shape[:-1], nothing)
        noun_target[layer, row, query] = torch.tensor([self.nouns.index(item.noun) for item in items])
        color_target = torch.tensor([list(COLORS).index(item.color) for item in items])
        weight = torch.ones(nothing + 1)
        weight[-1] = 0.2
        target = torch.stack([wanted[r][i] for r, i in which])
        box = boxes[layer, row, query]
        return (
            F.cross_entropy(noun.flatten(0, 2), noun_target.flatten(), weight=weight)
            + F.cross_entropy(color[layer, row, query], color_target)
            + 5 * (box - target).abs().sum(1).mean()
            + 2 * generalized_box_iou_loss(corners(box), corners(target), reduction="mean")
        )


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """(cx, cy, w, h) to (x0, y0, x1, y1)."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


class CaptionHead(nn.Module):
    """Makes the text encoder tell captions of different pictures apart; training only, and the text's alone.

    Stands for the image-text pretraining of real SAM3's text encoder. A caption fits a picture as well as it fits the
    best cell of its feature map; the loss is the cross-entropy of finding a caption's own picture among those of the
    batch, each of which is there in its mirror image, too. The features do not learn from it.
    """

    def __init__(self, text_width: int, cells: int, width: int = 64):
        super().__init__()
        self.text = nn.Linear(text_width, width)
        self.place = nn.Parameter(torch.randn(cells, WIDTH) * 0.02)
        self.cell = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, width))
        self.scale = nn.Parameter(torch.tensor(2.3))  # log of 10

    def forward(self, states: torch.Tensor, features: torch.Tensor, fits: torch.Tensor) -> tuple[torch.Tensor, float]:
        """`states` [T, C] at the ends of captions, `features` [I, C, h, w], `fits` [T, I] bool; loss, share found."""
        cells = self.cell(features.detach().flatten(2).transpose(1, 2) + self.place)
        text, cells = F.normalize(self.text(states), dim=-1), F.normalize(cells, dim=-1)
        logits = self.scale.exp() * torch.einsum("tc,inc->tin", text, cells).amax(2)
        loss = (logits.logsumexp(1) - logits.masked_fill(~fits, -torch.inf).logsumexp(1)).mean()
        return loss, fits[range(len(fits)), logits.argmax(1)].float().mean().item()
