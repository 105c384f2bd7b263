"""One side's network: from looked-up embeddings and numbers to a unit vector.

Legend: `B` inputs, `D` vector dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Tower"]


class Tower(nn.Module):
    """A multi-layer perceptron with ReLU, beside it a linear map; the output has unit length.

    The perceptron finds crossings of features; the linear map lets an embedding reach the vector
    as it is, which is how factorisation learns, and learns it from the first step.
    """

    def __init__(
        self,
        input_dim: int,
        hidden: tuple[int, ...],
        vector_dim: int,
        *,
        skip: bool,
        generator: torch.Generator,
        num_added: int = 0,
    ) -> None:
        """Draw the parameters.

        Args:
            input_dim: width of the input.
            hidden: widths of the hidden layers.
            vector_dim: `D`.
            skip: whether there is a linear map beside the perceptron.
            generator: source of all randomness.
            num_added: inputs of width `D`, the first ones, that the linear map begins by adding up.
        """
        super().__init__()
        dims = (input_dim, *hidden, vector_dim)
        self.layers = nn.ModuleList(nn.Linear(source, target) for source, target in pairwise(dims))
        self.skip = nn.Linear(input_dim, vector_dim, bias=False) if skip else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                _initialise(layer, generator)
        if num_added:
            _add_up(self.skip or self.layers[0], num_added)

    def linear_layers(self) -> Iterator[nn.Linear]:
        """Yield the layers from input to output."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            yield layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Return unit vectors.

        Args:
            inputs: `[B, input_dim]`.

        Returns:
            `[B, D]`.
        """
        *hidden, last = self.linear_layers()
        current = inputs
        for layer in hidden:
            current = functional.relu(layer(current))
        output = last(current)
        if self.skip is not None:
            output = output + self.skip(inputs)
        return functional.normalize(output, dim=1)


def _initialise(layer: nn.Linear, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(layer.in_features)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()


def _add_up(layer: nn.Module, num_added: int) -> None:
    assert isinstance(layer, nn.Linear)
    identity = torch.eye(layer.out_features)
    with torch.no_grad():
        layer.weight[:, : num_added * layer.out_features] = identity.repeat(1, num_added)
