"""Colours that people with any kind of colour vision can distinguish."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Okabe and Ito, "Color Universal Design" (2008); the black gives way to a grey, which shows on black and on white.
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#f0e442")
# Equidistant samples of matplotlib's "viridis" (CC0): perceptually uniform, and monotonic in lightness.
VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
# In charts, with the colour, the shape tells more things apart than 8 colours can.
MARKER_SHAPES = "osD^vPX*"
# Beyond the palette, its colours come again darker, then lighter.
_SHADES = (0.0, -0.4, 0.45)


def category_colors(count: int) -> list[str]:
    """Colours of categories.

    Any colour vision distinguishes the first 8; up to 24, neighbours in the list.

    Args:
        count: Number of categories.

    Returns:
        Colours as "#rrggbb", one for each category; after 24 they repeat.
    """
    return [_shade(OKABE_ITO[i % len(OKABE_ITO)], _SHADES[i // len(OKABE_ITO) % len(_SHADES)]) for i in range(count)]


def part_colors(count: int, own: Sequence[int] | None = None) -> list[str]:
    """Colours of `count` parts as "#rrggbb"; the parts that an object can have, `own`, get the first colours."""
    own = list(range(count) if own is None else own)
    colors = category_colors(count)
    for part, color in zip([*own, *sorted(set(range(count)) - set(own))], category_colors(count), strict=True):
        colors[part] = color
    return colors


def to_rgb(colors: Sequence[str]) -> np.ndarray:
    """Give colours, "#rrggbb", as red, green and blue from 0 to 1, of shape `(num_colors, 3)`."""
    channels = [[int(color[start : start + 2], 16) for start in (1, 3, 5)] for color in colors]
    return np.array(channels, dtype=np.float64).reshape(-1, 3) / 255


def _shade(color: str, amount: float) -> str:
    """Mix a colour with white (amount above 0) or black (below)."""
    channels = to_rgb([color])[0]
    mixed = channels + abs(amount) * (float(amount > 0) - channels)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in mixed)
