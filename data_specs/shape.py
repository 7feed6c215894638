"""The shape that all stages must agree on (image, grid, depth, codebook), and the transformers' table of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CODES = 2**16  # codes are uint16
MAX_DEPTH = 64
MAX_LAYERS = 2**12  # a description of more would take the memory and time of a machine before any weight is read
MAX_WIDTH = 2**24  # of a table or layer: with more torch cannot count the bytes of its weights
# Layers, heads, width (paper, table of model sizes; 1B … 7B as in the released code).
SIZES: dict[str, tuple[int, int, int]] = {
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "XXXL": (48, 32, 2048),
    "1B": (22, 32, 2048),
    "3B": (24, 32, 3200),
    "7B": (32, 32, 4096),
}


def check_transformer(num_layers: int, num_heads: int, width: int, head_layers: Sequence[int]) -> None:
    """Refuse sizes that make no transformer.

    Raises:
        ValueError: attention heads do not divide the width, or head_layers do not rise to the last layer.
    """
    if num_layers > MAX_LAYERS:
        raise ValueError(f"{num_layers} layers: at most {MAX_LAYERS} can be built")
    if width % num_heads or (width // num_heads) % 4:
        raise ValueError(f"width {width} over {num_heads} heads must give a head width that is a multiple of 4")
    if list(head_layers) != sorted(set(head_layers)):
        raise ValueError(f"head_layers {list(head_layers)} must rise")
    if head_layers[-1] != num_layers - 1:
        raise ValueError(f"the last of head_layers must be the last layer, {num_layers - 1}, not {head_layers[-1]}")


class Section(BaseModel):
    """A section of the spec: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Shape(Section):
    """What every stage must agree on: the image, its grid of codes and the codebook."""

    image_size: int = Field(ge=8, le=4096, description="side of the square image, pixels")
    grid: tuple[int, int] = Field(description="code positions, rows x columns")
    depth: int = Field(ge=1, le=MAX_DEPTH, description="residual codes at each position")
    codebook_size: int = Field(ge=2, le=MAX_CODES, description="rows of the codebook; codes are uint16")

    @model_validator(mode="after")
    def _grid_divides(self) -> Shape:
        for side in self.grid:
            if side < 1 or self.image_size % side:
                divisors = [n for n in range(1, self.image_size + 1) if self.image_size % n == 0]
                raise ValueError(
                    f"grid {self.grid} does not divide image_size {self.image_size}: use one of {divisors}"
                )
        return self


class HoldsCodes(Protocol):
    """What says of which shape codes are."""

    @property
    def grid(self) -> tuple[int, ...]: ...
    @property
    def depth(self) -> int: ...
    @property
    def codebook_size(self) -> int: ...


class CodeShape(NamedTuple):
    """What a transformer sees of codes: positions (rows, columns), codes at each, and how many values a code has."""

    grid: tuple[int, int]
    depth: int
    codebook_size: int

    @classmethod
    def of(cls, holder: HoldsCodes) -> CodeShape:
        """Return the shape of a section of the spec or of a model's configuration."""
        return cls((holder.grid[0], holder.grid[1]), holder.depth, holder.codebook_size)

    def refuse_other(self, found: CodeShape, where: str, whose: str, remedy: str) -> None:
        """Refuse a model whose codes are of another shape than these.

        Raises:
            ValueError: names both shapes, `where` the model lies, `whose` these are, and the remedy.
        """
        if found != self:
            raise ValueError(
                f"{where}: its codes are {[*found.grid, found.depth]} of {found.codebook_size} rows, {whose} "
                f"{[*self.grid, self.depth]} of {self.codebook_size}: {remedy}"
            )

    def flattened(self) -> CodeShape:
        """Return the shape of the same codes with those of a position side by side (tokenize.flatten)."""
        rows, columns = self.grid
        return CodeShape((rows, columns * self.depth), 1, self.codebook_size * self.depth)
