"""Procedural furniture. Units are arbitrary (about metres); y is up, the floor at y = 0, the front towards +z."""

from __future__ import annotations

import numpy as np

from .geometry import regular_polygon, rotation_matrix
from .primitives import Surface

_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def _legs(
    surface: Surface,
    rng: np.random.Generator,
    half: tuple[float, float],
    top: float,
    thickness: float,
    count: int = 4,
    splay: float = 0.0,
) -> None:
    """Add round or square legs from height `top` to the floor, inside a rectangle of half-sizes `half`."""
    square = rng.random() < 0.5
    taper = rng.uniform(0.6, 1.0)
    inset = 1.0 - thickness / min(half)
    if count == 4:
        corners = [(-1.0, -1.0), (-1.0, 1.0), (1.0, 1.0), (1.0, -1.0)]
    else:
        corners = regular_polygon(count, 1.2, rng.uniform(0.0, 6.28)).tolist()
    for cx, cz in corners:
        x, z = cx * half[0] * inset, cz * half[1] * inset
        start, end = (x, top, z), (x * (1.0 + splay), 0.0, z * (1.0 + splay))
        if square:
            surface.beam(start, end, thickness, thickness)
        else:
            surface.frustum(start, end, 0.55 * thickness, 0.55 * thickness * taper, caps=False)


def _pedestal(surface: Surface, rng: np.random.Generator, top: float, radius: float, stem: float) -> None:
    """Add a central stem on a round foot or a cross foot."""
    surface.frustum((0.0, 0.0, 0.0), (0.0, top, 0.0), stem, caps=False)
    if rng.random() < 0.5:
        surface.lathe([(0.0, 0.0), (radius, 0.0), (radius, 0.02), (stem, rng.uniform(0.03, 0.1))])
        return
    arms = int(rng.integers(3, 6))
    for x, z in regular_polygon(arms, radius, rng.uniform(0.0, 6.28)).tolist():
        surface.beam((0.0, rng.uniform(0.03, 0.06), 0.0), (x, 0.02, z), 0.04, 0.04)


def _tabletop(surface: Surface, shape: str, half: tuple[float, float], y: float, thickness: float) -> None:
    """Add a rectangular, round or polygonal slab whose lower face is at height y."""
    if shape == "rectangle":
        surface.box((0.0, y + 0.5 * thickness, 0.0), (2.0 * half[0], thickness, 2.0 * half[1]))
    elif shape == "round":
        surface.lathe([(0.0, y), (1.0, y), (1.0, y + thickness), (0.0, y + thickness)], scale=half)
    else:
        polygon = regular_polygon(6 if shape == "hexagon" else 8, 1.05, 0.4) * np.array(half)
        surface.prism(polygon, (0.0, y + 0.5 * thickness, 0.0), _X, _Z, (0.0, thickness, 0.0))


def _choice(rng: np.random.Generator, *names: str) -> str:
    return names[int(rng.integers(len(names)))]


def table(rng: np.random.Generator) -> Surface:
    """Dining table: rectangular, oval or octagonal top on four legs, three legs, trestles or a pedestal."""
    s = Surface()
    shape = _choice(rng, "rectangle", "rectangle", "round", "octagon")
    half_z = rng.uniform(0.35, 0.55)
    half = (half_z * rng.uniform(1.3, 2.4) if shape == "rectangle" else half_z * rng.uniform(1.0, 1.5), half_z)
    height, thickness = rng.uniform(0.65, 0.8), rng.uniform(0.02, 0.06)
    _tabletop(s, shape, half, height, thickness)
    base = rng.random()
    if shape == "rectangle" and base < 0.25:
        for side in (-1.0, 1.0):
            x = side * half[0] * 0.75
            s.box((x, 0.5 * height, 0.0), (0.05, height, half_z * rng.uniform(0.3, 1.6)))
            s.box((x, 0.03, 0.0), (0.07, 0.06, 1.8 * half_z))
        s.box((0.0, height * rng.uniform(0.2, 0.5), 0.0), (1.5 * half[0], 0.08, 0.03))
    elif base < 0.5 and shape != "rectangle":
        _pedestal(s, rng, height, half_z * rng.uniform(0.5, 0.8), rng.uniform(0.03, 0.08))
    else:
        inner = (half[0] * 0.7, half[1] * 0.7) if shape != "rectangle" else half
        _legs(s, rng, inner, height, rng.uniform(0.04, 0.09), 3 if rng.random() < 0.2 else 4, rng.uniform(0.0, 0.1))
        if shape == "rectangle" and rng.random() < 0.5:
            s.box((0.0, height - 0.05, 0.0), (1.8 * half[0], 0.1, 1.8 * half[1]))
    return s


def side_table(rng: np.random.Generator) -> Surface:
    """Small occasional table: thin top about as wide as high, sometimes a shelf or a drawer."""
    s = Surface()
    shape = _choice(rng, "rectangle", "round", "hexagon")
    half_z = rng.uniform(0.19, 0.32)
    half = (half_z * (rng.uniform(1.0, 1.4) if shape == "rectangle" else 1.0), half_z)
    height, thickness = rng.uniform(0.42, 0.65), rng.uniform(0.015, 0.04)
    _tabletop(s, shape, half, height, thickness)
    inner = half if shape == "rectangle" else (half[0] * 0.66, half[1] * 0.66)
    if rng.random() < 0.3:
        _pedestal(s, rng, height, half_z * rng.uniform(0.5, 0.8), rng.uniform(0.02, 0.04))
        return s
    count = 3 if shape != "rectangle" and rng.random() < 0.5 else 4
    _legs(s, rng, inner, height, rng.uniform(0.025, 0.05), count, rng.uniform(0.0, 0.2))
    if rng.random() < 0.4:
        _tabletop(s, shape, (inner[0] * 0.95, inner[1] * 0.95), height * rng.uniform(0.15, 0.4), 0.02)
    if shape == "rectangle" and rng.random() < 0.35:
        drawer = rng.uniform(0.08, 0.15)
        s.box((0.0, height - 0.5 * drawer, 0.0), (1.8 * half[0], drawer, 1.8 * half[1]))
        s.ellipsoid((0.0, height - 0.5 * drawer, 0.95 * half[1]), (0.015, 0.015, 0.015))
    return s


def stool(rng: np.random.Generator) -> Surface:
    """Stool or bar stool: small thick seat on three or four splayed legs with a foot rest, or on a pedestal."""
    s = Surface()
    shape = _choice(rng, "round", "round", "rectangle")
    half_z = rng.uniform(0.15, 0.22)
    half = (half_z * rng.uniform(1.0, 1.35), half_z) if shape == "rectangle" else (half_z, half_z)
    height, thickness = rng.uniform(0.4, 0.75), rng.uniform(0.025, 0.09)
    _tabletop(s, shape, half, height, thickness)
    if shape == "round" and rng.random() < 0.4:
        s.ellipsoid((0.0, height + thickness, 0.0), (half_z, rng.uniform(0.02, 0.05), half_z), lower=0.0)
    inner = half if shape == "rectangle" else (half[0] * 0.7, half[1] * 0.7)
    style = rng.random()
    if style < 0.25:
        _pedestal(s, rng, height, half_z * rng.uniform(0.8, 1.3), rng.uniform(0.02, 0.035))
        if height > 0.55:
            s.ring((0.0, height * 0.35, 0.0), half_z * 0.8, 0.012)
        return s
    count = 3 if shape == "round" and rng.random() < 0.4 else 4
    splay = rng.uniform(0.0, 0.5)
    _legs(s, rng, inner, height, rng.uniform(0.025, 0.05), count, splay)
    level = rng.uniform(0.2, 0.45)
    reach = 1.0 + splay * (1.0 - level)
    if shape == "round" and rng.random() < 0.5:
        s.ring((0.0, level * height, 0.0), 1.3 * inner[0] * reach * 0.85, 0.012)
    elif rng.random() < 0.6 and count == 4:
        x, z, y = inner[0] * reach * 0.85, inner[1] * reach * 0.85, level * height
        for side in (-1.0, 1.0):
            s.beam((-x, y, side * z), (x, y, side * z), 0.022, 0.022)
            s.beam((side * x, y + 0.05, -z), (side * x, y + 0.05, z), 0.022, 0.022)
    return s


def _back(
    s: Surface, rng: np.random.Generator, width: float, base: float, height: float, z: float, lean: float, style: str
) -> None:
    """Add a backrest whose lower edge is centred at (0, base, z), leaning backwards by `lean` radians."""
    part = Surface()
    if style == "solid":
        part.box((0.0, 0.5 * height, 0.0), (width, height, rng.uniform(0.02, 0.06)))
    else:
        for side in (-1.0, 1.0):
            part.box((side * (0.5 * width - 0.02), 0.5 * height, 0.0), (0.04, height, 0.04))
        part.box((0.0, height - 0.04, 0.0), (width, 0.08, 0.03))
        count = int(rng.integers(2, 6))
        for i in range(count):
            f = (i + 0.5) / count
            if style == "bars":
                part.box(((f - 0.5) * (width - 0.08), 0.5 * height, 0.0), (0.03, height, 0.02))
            else:
                part.box((0.0, (0.2 + 0.7 * f) * height, 0.0), (width - 0.06, 0.4 * height / count, 0.02))
    s.add(part, rotation_matrix("x", -lean), (0.0, base, z))


def chair(rng: np.random.Generator) -> Surface:
    """Dining or office chair: seat, solid, barred or slatted back, legs or a wheeled star base, optional armrests."""
    s = Surface()
    width, depth = rng.uniform(0.38, 0.5), rng.uniform(0.38, 0.5)
    height, thickness = rng.uniform(0.4, 0.52), rng.uniform(0.03, 0.08)
    s.box((0.0, height + 0.5 * thickness, 0.0), (width, thickness, depth))
    back = rng.uniform(0.35, 0.65)
    _back(
        s,
        rng,
        width * rng.uniform(0.8, 1.0),
        height + thickness,
        back,
        -0.5 * depth + 0.03,
        rng.uniform(0.0, 0.25),
        _choice(rng, "solid", "bars", "slats"),
    )
    if rng.random() < 0.25:
        _pedestal(s, rng, height, 0.5 * width * rng.uniform(0.9, 1.2), 0.03)
    else:
        _legs(s, rng, (0.5 * width, 0.5 * depth), height, rng.uniform(0.03, 0.055), splay=rng.uniform(0.0, 0.15))
    if rng.random() < 0.4:
        arm = rng.uniform(0.18, 0.26)
        for side in (-1.0, 1.0):
            x = side * (0.5 * width - 0.02)
            s.box((x, height + arm, 0.0), (0.05, 0.03, depth * 0.95))
            s.box((x, height + 0.5 * arm, 0.4 * depth), (0.035, arm, 0.035))
    return s


def _upholstered(rng: np.random.Generator, width: float, seats: int) -> Surface:
    """Sofa-like seat: base, seat and back cushions, block, slanted or rolled arms, feet."""
    s = Surface()
    depth, base, seat = rng.uniform(0.75, 0.95), rng.uniform(0.18, 0.3), rng.uniform(0.12, 0.2)
    foot = rng.uniform(0.03, 0.14)
    arm_width, arm_height = rng.uniform(0.08, 0.22), rng.uniform(0.5, 0.68)
    total = width + 2.0 * arm_width
    s.box((0.0, foot + 0.5 * base, 0.0), (total, base, depth))
    for i in range(seats):
        w = width / seats
        s.box(((i + 0.5) * w - 0.5 * width, foot + base + 0.5 * seat, 0.08), (w * 0.97, seat, depth * 0.85))
    back_height, lean = rng.uniform(0.35, 0.6), rng.uniform(0.05, 0.3)
    back = Surface()
    thickness = rng.uniform(0.12, 0.2)
    cushions = seats if rng.random() < 0.6 else 1
    for i in range(cushions):
        w = width / cushions
        back.box(((i + 0.5) * w - 0.5 * width, 0.5 * back_height, 0.0), (w * 0.97, back_height, thickness))
    s.add(back, rotation_matrix("x", -lean), (0.0, foot + base + 0.5 * seat, -0.5 * depth + thickness))
    s.box((0.0, foot + base + 0.45 * back_height, -0.5 * depth + 0.04), (total, back_height * 0.9, 0.08))
    style = rng.random()
    for side in (-1.0, 1.0):
        x = side * 0.5 * (width + arm_width)
        if style < 0.85:
            s.box((x, foot + 0.5 * arm_height, 0.0), (arm_width, arm_height, depth))
        if 0.4 < style < 0.85:
            s.frustum((x, foot + arm_height, -0.5 * depth), (x, foot + arm_height, 0.5 * depth), 0.65 * arm_width)
        for z in (-0.42, 0.42):
            s.frustum((side * 0.45 * total, foot, z * depth), (side * 0.45 * total, 0.0, z * depth), 0.03, 0.02)
    return s


def armchair(rng: np.random.Generator) -> Surface:
    """Upholstered chair for one person."""
    return _upholstered(rng, rng.uniform(0.5, 0.85), 1)


def sofa(rng: np.random.Generator) -> Surface:
    """Upholstered seat for two to four, sometimes with a chaise longue."""
    seats = int(rng.integers(2, 5))
    s = _upholstered(rng, seats * rng.uniform(0.42, 0.62), seats)
    if rng.random() < 0.25:
        s.box((0.3 * seats * (1.0 if rng.random() < 0.5 else -1.0), 0.22, 0.7), (0.6, 0.38, 0.7))
    return s


def bench(rng: np.random.Generator) -> Surface:
    """Long seat of one slab or of slats, on legs or side panels, with or without a back and armrests."""
    s = Surface()
    width, depth = rng.uniform(1.0, 1.9), rng.uniform(0.35, 0.6)
    height, thickness = rng.uniform(0.38, 0.5), rng.uniform(0.03, 0.08)
    if rng.random() < 0.5:
        s.box((0.0, height, 0.0), (width, thickness, depth))
    else:
        count = int(rng.integers(3, 6))
        for i in range(count):
            s.box((0.0, height, ((i + 0.5) / count - 0.5) * depth), (width, thickness, 0.75 * depth / count))
    if rng.random() < 0.5:
        for side in (-1.0, 1.0):
            x = side * width * rng.uniform(0.36, 0.48)
            s.box((x, 0.5 * height, 0.0), (rng.uniform(0.04, 0.12), height, depth * 0.9))
    else:
        _legs(s, rng, (0.47 * width, 0.47 * depth), height, rng.uniform(0.04, 0.08), splay=rng.uniform(0.0, 0.06))
    if rng.random() < 0.55:
        lean = rng.uniform(0.05, 0.3)
        _back(
            s, rng, width, height, rng.uniform(0.35, 0.5), -0.5 * depth, lean, _choice(rng, "solid", "bars", "slats")
        )
        if rng.random() < 0.5:
            for side in (-1.0, 1.0):
                s.box((side * 0.48 * width, height + 0.22, 0.0), (0.05, 0.04, depth))
                s.box((side * 0.48 * width, height + 0.11, 0.42 * depth), (0.05, 0.22, 0.05))
    return s


def bed(rng: np.random.Generator) -> Surface:
    """Single or double bed: frame, mattress, headboard of varied style, optional footboard, pillows and posts."""
    s = Surface()
    length, width = rng.uniform(1.8, 2.1), rng.uniform(0.8, 1.8)
    frame, mattress, leg = rng.uniform(0.08, 0.25), rng.uniform(0.12, 0.28), rng.uniform(0.05, 0.25)
    top = leg + frame + mattress
    s.box((0.0, leg + 0.5 * frame, 0.0), (width, frame, length))
    s.box((0.0, leg + frame + 0.5 * mattress, 0.0), (0.95 * width, mattress, 0.97 * length))
    _legs(s, rng, (0.5 * width, 0.5 * length), leg, rng.uniform(0.05, 0.09))
    head = rng.uniform(0.2, 0.65)
    style = rng.random()
    if style < 0.85:
        _back(s, rng, width, leg, head + frame + mattress, -0.5 * length, 0.02, _choice(rng, "solid", "solid", "bars"))
    if style < 0.3:
        _back(s, rng, width, leg, 0.5 * head + frame + mattress, 0.5 * length, 0.0, _choice(rng, "solid", "bars"))
    pillows = 2 if width > 1.2 else 1
    for i in range(pillows if rng.random() < 0.85 else 0):
        x = ((i + 0.5) / pillows - 0.5) * width
        s.ellipsoid((x, top + 0.04, -0.38 * length), (0.4 * width / pillows, 0.07, 0.18))
    return s


def bookshelf(rng: np.random.Generator) -> Surface:
    """Open shelves between two side panels, with or without a back panel and books."""
    s = Surface()
    width, depth, height = rng.uniform(0.5, 1.4), rng.uniform(0.22, 0.4), rng.uniform(0.9, 2.0)
    board = rng.uniform(0.02, 0.04)
    shelves = int(rng.integers(3, 7))
    columns = 1 + int(width > 0.9 and rng.random() < 0.6)
    for i in range(columns + 1):
        s.box(((i / columns - 0.5) * width, 0.5 * height, 0.0), (board, height, depth))
    for i in range(shelves):
        s.box((0.0, 0.05 + (height - 0.07) * i / (shelves - 1), 0.0), (width, board, depth))
    if rng.random() < 0.5:
        s.box((0.0, 0.5 * height, -0.5 * depth), (width, height, 0.01))
    gap = (height - 0.07) / (shelves - 1)
    for i in range(shelves - 1):
        if rng.random() < 0.5:
            w, h = width / columns * rng.uniform(0.3, 0.8), gap * rng.uniform(0.5, 0.85)
            s.box((0.5 * (w - width) + board, 0.05 + gap * i + 0.5 * h, 0.0), (w, h, depth * 0.7))
    return s


def cabinet(rng: np.random.Generator) -> Surface:
    """Closed cabinet or chest of drawers: fronts standing off the body, handles or knobs, feet or a plinth."""
    s = Surface()
    width, depth, height = rng.uniform(0.5, 1.5), rng.uniform(0.35, 0.55), rng.uniform(0.6, 1.3)
    foot = rng.uniform(0.05, 0.18)
    s.box((0.0, foot + 0.5 * height, 0.0), (width, height, depth))
    s.box((0.0, foot + height + 0.015, 0.0), (width + 0.06, 0.03, depth + 0.06))
    _legs(s, rng, (0.5 * width, 0.5 * depth), foot, 0.05)
    rows = int(rng.integers(1, 5))
    columns = int(rng.integers(1, 4)) if width > 0.8 else int(rng.integers(1, 3))
    knob = rng.random() < 0.5
    w, h = width / columns, height / rows
    for i in range(rows):
        for j in range(columns):
            x, y = (j + 0.5) * w - 0.5 * width, foot + (i + 0.5) * h
            s.box((x, y, 0.5 * depth + 0.015), (0.9 * w, 0.9 * h, 0.03))
            if knob:
                s.ellipsoid((x, y, 0.5 * depth + 0.05), (0.02, 0.02, 0.02))
            else:
                s.beam((x - 0.25 * w, y, 0.5 * depth + 0.05), (x + 0.25 * w, y, 0.5 * depth + 0.05), 0.02, 0.02)
    return s


BUILDERS = {
    "armchair": armchair,
    "bed": bed,
    "bench": bench,
    "bookshelf": bookshelf,
    "cabinet": cabinet,
    "chair": chair,
    "side_table": side_table,
    "sofa": sofa,
    "stool": stool,
    "table": table,
}
