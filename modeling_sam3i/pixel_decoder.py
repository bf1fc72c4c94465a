# SPDX-License-Identifier: Apache-2.0
"""The pixel decoder for many instructions on one image: the image's part once, the rest with a quarter of the work.

Each stage of SAM3's pixel decoder is `relu(norm(conv(up(x) + f)))` with a 3x3 convolution, nearest upsampling by two,
a map `x` of the instruction and a map `f` of the image. Convolution is linear: `conv(f)` is computed once per image.
In one dimension, with weights `a, b, c`, `S = a + b + c` and `d[i] = x[i-1] - x[i]`,

    conv(up(x))[2i] = S x[i] + a d[i]        conv(up(x))[2i+1] = S x[i] - c d[i+1]

and in two dimensions the products of these: nine products with a matrix per small pixel instead of 36. Same numbers up
to rounding.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ..compat import Sam3MaskDecoder

_BLOCK_BYTES = 2**20
"""What is worked on at once, so that it stays in the processor's cache."""


def applies_to(mask_decoder: Sam3MaskDecoder, fpn_states: Sequence[torch.Tensor]) -> bool:
    """Whether [`ImagePixels`] can stand in for the modules of a mask decoder.

    The processor only: an accelerator is faster with its own convolution. Modules that something has replaced or
    wrapped (LoRA, quantisation, offloading) run themselves, and so do all under autocast.

    Args:
        fpn_states: FPN maps `(images, width, h_i, w_i)`, finest first.
    """
    decoder = mask_decoder.pixel_decoder
    convolutions = decoder.conv_layers[: len(fpn_states) - 1]
    modules = [*convolutions, mask_decoder.instance_projection, mask_decoder.semantic_projection]
    return (
        not torch.is_autocast_enabled("cpu")
        and all(
            states.device.type == "cpu" and states.dtype in (torch.float32, torch.float64) for states in fpn_states
        )
        and all(type(module) is nn.Conv2d and module.weight.device.type == "cpu" for module in modules)
        and all(type(norm) is nn.GroupNorm for norm in decoder.norms)
        and all(module.kernel_size == (3, 3) and module.padding == (1, 1) for module in convolutions)
        and not any(hasattr(module, "_hf_hook") for module in mask_decoder.modules())
        and all(
            fine.shape[-2:] == (2 * coarse.shape[-2], 2 * coarse.shape[-1])
            for fine, coarse in zip(fpn_states, fpn_states[1:], strict=False)
        )
    )


class UpsamplingStage:
    """`norm(conv(up(x) + f))` of one stage for one image; `relu` and the last step of `norm` are left to the caller.

    Args:
        convolution (`nn.Conv2d`): 3x3, with bias.
        norm (`nn.GroupNorm`): What follows it.
        skip (`torch.Tensor` of shape `(1, width, 2 h, 2 w)`): The image's map `f`.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.GroupNorm, skip: torch.Tensor):
        self.norm = norm
        self.of_image = convolution(skip)[0].permute(1, 2, 0).contiguous()  # (2h, 2w, width)
        weight = convolution.weight  # (out, in, 3, 3)
        whole, before, after = (
            [part.sum(2).T.contiguous(), part[:, :, 0].T, -part[:, :, 2].T]
            for part in (weight.sum(2), weight[:, :, 0], -weight[:, :, 2])
        )
        self.centre = whole[0]
        self.columns = torch.cat(whole[1:], dim=1)  # (in, 2 out): for even and for odd columns
        self.rows = (before[0], after[0])  # for even and for odd rows
        self.corners = (torch.cat(before[1:], dim=1), torch.cat(after[1:], dim=1))

    def __call__(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            states (`torch.Tensor` of shape `(h, w, width)`): The instruction's map `x`.

        Returns:
            Values `(2 h, 2 w, width)` before normalisation, and the factor and the term, both `(width,)`, that
            normalise them.
        """
        height, width, channels = states.shape
        output = torch.empty_like(self.of_image)
        total, squares = states.new_zeros(2, channels, dtype=torch.float64)
        down = _differences(states, 0)
        right = _differences(states, 1)
        diagonal = _differences(right, 0)
        step = max(1, _BLOCK_BYTES // (4 * width * channels * states.element_size()))
        for start in range(0, height, step):
            stop = min(start + step, height)
            centre = states[start:stop].reshape(-1, channels) @ self.centre
            sides = right[start:stop].reshape(-1, channels) @ self.columns
            for odd_row in range(2):
                below = slice(start + odd_row, stop + odd_row)
                middle = torch.addmm(centre, down[below].reshape(-1, channels), self.rows[odd_row])
                edges = torch.addmm(sides, diagonal[below].reshape(-1, channels), self.corners[odd_row])
                middle = middle.view(-1, width, channels)
                edges = edges.view(-1, width + 1, 2, channels)
                fine_rows = slice(2 * start + odd_row, 2 * stop, 2)
                for odd_column in range(2):
                    fine = output[fine_rows, odd_column::2]
                    torch.add(self.of_image[fine_rows, odd_column::2], middle, out=fine)
                    fine += edges[:, odd_column : odd_column + width, odd_column]
            block = output[2 * start : 2 * stop].view(-1, channels)
            total += block.sum(0)
            squares += (block * block).sum(0)
        return output, *self._normalisation(total, squares, output.shape[0] * output.shape[1])

    def _normalisation(self, total: torch.Tensor, squares: torch.Tensor, pixels: int):
        """Factor and term of group normalisation from sums over pixels `(width,)`."""
        groups = self.norm.num_groups
        mean = total.view(groups, -1).mean(1, keepdim=True) / pixels
        variance = (squares.view(groups, -1).mean(1, keepdim=True) / pixels - mean.square()).clamp(min=0)
        scale = (variance + self.norm.eps).rsqrt()
        ones = torch.ones_like(total.view(groups, -1))
        factor, term = (scale * ones).flatten(), (-mean * scale * ones).flatten()
        if self.norm.affine:
            factor, term = factor * self.norm.weight, term * self.norm.weight + self.norm.bias
        dtype = self.of_image.dtype
        return factor.to(dtype), term.to(dtype)


class ImagePixels:
    """The pixel decoder and the mask heads of one image, for one instruction after the other.

    Args:
        mask_decoder ([`Sam3MaskDecoder`]): Whose weights are read; see [`applies_to`].
        fpn_states (`list[torch.Tensor]`): FPN maps `(1, width, h_i, w_i)` of the image, finest first.
    """

    def __init__(self, mask_decoder: Sam3MaskDecoder, fpn_states: Sequence[torch.Tensor]):
        self.mask_decoder = mask_decoder
        self.size = fpn_states[-1].shape[-2:]
        decoder, skips = mask_decoder.pixel_decoder, reversed(fpn_states[:-1])
        self.stages = [
            UpsamplingStage(*layer)
            for layer in zip(decoder.conv_layers, decoder.norms, skips)  # noqa: B905 (stock has a layer too many)
        ]

    def predict(self, states: torch.Tensor, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of chosen queries of one instruction.

        Args:
            states (`torch.Tensor` of shape `(pixels, width)`): What the encoder made of the coarsest map.
            embeddings (`torch.Tensor` of shape `(K, width)`): Mask embeddings of the queries.

        Returns:
            Mask logits `(K, height, width)` and the semantic map `(1, height, width)`.
        """
        states = states.view(*self.size, -1)
        *earlier, last = self.stages
        for stage in earlier:
            states, factor, term = stage(states)
            torch.addcmul(term, states, factor, out=states).relu_()
        states, factor, term = last(states)
        # The projections of the pixels are moved to the queries, which are fewer.
        instance, semantic = self.mask_decoder.instance_projection, self.mask_decoder.semantic_projection
        weights = torch.cat([embeddings @ instance.weight.flatten(1), semantic.weight.flatten(1)])  # (K + 1, width)
        bias = torch.cat([embeddings @ instance.bias, semantic.bias])
        masks = states.new_empty(len(weights), *states.shape[:2])
        step = max(1, _BLOCK_BYTES // states[0].nbytes)
        for start in range(0, len(states), step):
            block = torch.addcmul(term, states[start : start + step], factor).relu_()  # (rows, columns, width)
            flat = torch.addmm(bias[:, None], weights, block.flatten(0, 1).T)
            masks[:, start : start + step] = flat.view(-1, *block.shape[:2])
        return masks[:-1], masks[-1:]


def _differences(states: torch.Tensor, axis: int) -> torch.Tensor:
    """`d[i] = x[i-1] - x[i]` along an axis with zeros beyond both ends: one entry more than `states` has."""
    size = list(states.shape)
    size[axis] += 1
    result = states.new_empty(size)
    length = states.shape[axis]
    inner = result.narrow(axis, 1, length - 1)
    torch.sub(states.narrow(axis, 0, length - 1), states.narrow(axis, 1, length - 1), out=inner)
    torch.neg(states.narrow(axis, 0, 1), out=result.narrow(axis, 0, 1))
    result.narrow(axis, length, 1).copy_(states.narrow(axis, length - 1, 1))
    return result
