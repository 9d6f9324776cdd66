"""Procedural vehicles and outdoor objects. Units are arbitrary; y is up, vehicles point towards +x."""

from __future__ import annotations

import math

import numpy as np

from .geometry import bezier, regular_polygon
from .primitives import Surface

_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def airplane(rng: np.random.Generator) -> Surface:
    """Airliner, jet or propeller plane: fuselage, swept or straight wings, tail, engines or a propeller."""
    s = Surface()
    length, radius = 2.0, rng.uniform(0.09, 0.17)
    profile = bezier([(0.02, -1.0), (radius, -0.6), (1.25 * radius, 0.2), (1.2 * radius, 0.9), (0.0, 1.0)], 14)
    s.lathe(profile, axis=_X)
    jet = rng.random() < 0.6
    span, chord = rng.uniform(0.7, 1.15), rng.uniform(0.28, 0.5)
    taper, sweep = (
        (rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.65)) if jet else (rng.uniform(0.5, 1.0), rng.uniform(0.0, 0.1))
    )
    at, lift, rise = rng.uniform(0.0, 0.25), rng.uniform(-0.6, 0.8) * radius, rng.uniform(0.0, 0.12)
    tail, fin = rng.uniform(0.3, 0.5), rng.uniform(0.28, 0.45)
    for side in (-1.0, 1.0):
        wing = [(at, 0.0), (at - chord, 0.0), (at - max(chord * taper, 0.1) - sweep, span), (at - sweep, span)]
        out = (0.0, rise * side * side, side)
        s.prism(wing, (0.0, lift, 0.0), _X, out, (0.0, 0.03, 0.0))
        s.prism(
            [(-0.7, 0.0), (-0.97, 0.0), (-1.05, tail), (-0.9, tail)],
            (0.0, 0.04 if fin < 0.36 else 0.9 * fin, 0.0),
            _X,
            (0.0, 0.0, side),
            (0.0, 0.02, 0.0),
        )
    s.prism([(-0.65, 0.0), (-0.98, 0.0), (-1.08, fin), (-0.9, fin)], (0.0, 0.0, 0.0), _X, _Y, (0.0, 0.0, 0.03))
    if not jet:
        s.lathe([(0.0, 0.0), (0.04, 0.0), (0.0, 0.1)], (0.5 * length, 0.0, 0.0), _X)
        for angle in np.arange(int(rng.integers(2, 5))) * math.pi / 1.5:
            tip = (1.03, 0.3 * math.cos(angle), 0.3 * math.sin(angle))
            s.beam((1.03, 0.0, 0.0), tip, 0.015, 0.05)
        return s
    for place in (0.35, 0.65)[: int(rng.integers(1, 3))]:
        for side in (-1.0, 1.0):
            x, y, z = at - sweep * place - 0.05, lift + rise * place * span - 0.09, side * place * span
            s.frustum((x + 0.12, y, z), (x - 0.16, y, z), 0.065, 0.04)
    return s


def car(rng: np.random.Generator) -> Surface:
    """Car: saloon, hatchback, van or pick-up outline on four wheels, with mirrors and bumpers."""
    s = Surface()
    length, width, clear = rng.uniform(1.7, 2.3), rng.uniform(0.75, 0.95), rng.uniform(0.12, 0.22)
    sill, roof = rng.uniform(0.3, 0.42), rng.uniform(0.25, 0.5)
    s.box((0.0, clear + 0.5 * sill, 0.0), (length, sill, width))
    belt = clear + sill
    style = rng.random()
    front, back = 0.5 * length * rng.uniform(0.3, 0.6), -0.5 * length * rng.uniform(0.6, 0.98)
    slope = rng.uniform(0.15, 0.4)
    if style < 0.25:  # pick-up
        back = -0.1 * length
        for z in (-1.0, 1.0):
            s.box((-0.3 * length, belt + 0.08, z * (0.5 * width - 0.03)), (0.4 * length, 0.16, 0.05))
    elif style < 0.45:  # van
        front, back, roof = 0.42 * length, -0.49 * length, rng.uniform(0.45, 0.7)
    rear = 0.05 if back < -0.45 * length or style < 0.25 else slope
    cabin = [(front, 0.0), (front - slope, roof), (back + rear, roof), (back, 0.0)]
    s.prism(cabin, (0.0, belt, 0.0), _X, _Y, (0.0, 0.0, 0.88 * width))
    wheel, thick = clear + rng.uniform(0.02, 0.12), rng.uniform(0.1, 0.16)
    for x in (-0.31 * length, 0.31 * length):
        for side in (-1.0, 1.0):
            z = side * (0.5 * width - 0.3 * thick)
            s.frustum((x, wheel, z - 0.5 * thick), (x, wheel, z + 0.5 * thick), wheel)
    for side in (-1.0, 1.0):
        s.box((front - 0.05, belt + 0.06, side * (0.5 * width + 0.05)), (0.08, 0.07, 0.1))
        s.box((side * 0.5 * length, clear + 0.08, 0.0), (0.08, 0.1, width * 0.95))
    return s


def ship(rng: np.random.Generator) -> Surface:
    """Ship or boat: pointed hull with a deck, superstructure with funnels, or masts with sails."""
    s = Surface()
    beam, depth, bluff = rng.uniform(0.18, 0.32), rng.uniform(0.25, 0.5), rng.uniform(0.5, 1.0)
    profile = bezier([(bluff, -1.0), (1.1, -0.6), (1.2, 0.5), (0.0, 1.0)], 10)
    s.lathe(profile, axis=_X, scale=(beam, depth), arc=(0.0, math.pi))
    edge = profile * np.array([beam, 1.0])
    deck = np.concatenate([edge[:, ::-1], edge[-2::-1, ::-1] * np.array([1.0, -1.0])])
    s.prism(deck, (0.0, 0.02, 0.0), _X, _Z, (0.0, 0.05, 0.0))
    s.plate(
        (-1.0, -0.9 * depth * bluff, -0.6 * beam * bluff),
        (0.0, 0.9 * depth * bluff, 0.0),
        (0.0, 0.0, 1.2 * beam * bluff),
    )
    if rng.random() < 0.5:
        masts = int(rng.integers(1, 4))
        for i in range(masts):
            x, tall = (i + 0.5) / masts * 1.5 - 0.8, rng.uniform(0.8, 1.4)
            s.frustum((x, 0.0, 0.0), (x, tall, 0.0), 0.025, 0.012, caps=False)
            low = rng.uniform(0.12, 0.2)
            if masts == 1:
                s.plate(
                    (x - 0.04, low, 0.0), (-rng.uniform(0.5, 0.7), 0.0, 0.1), (0.0, 0.85 * tall, 0.0), triangle=True
                )
                s.plate(
                    (x + 0.06, low, 0.0), (rng.uniform(0.5, 0.7), 0.0, -0.05), (0.0, 0.7 * tall, 0.0), triangle=True
                )
            else:
                wide = rng.uniform(0.25, 0.4)
                s.plate((x + 0.04, low, -wide), (0.0, 0.0, 2 * wide), (0.0, 0.4 * tall, 0.0))
                s.plate((x + 0.04, low + 0.45 * tall, -0.8 * wide), (0.0, 0.0, 1.6 * wide), (0.0, 0.3 * tall, 0.0))
        return s
    x, wide, y = rng.uniform(-0.6, 0.0), beam * 1.4, 0.02
    size = rng.uniform(0.4, 1.0)
    for _ in range(int(rng.integers(1, 4))):
        tall = rng.uniform(0.1, 0.18)
        s.box((x, y + 0.5 * tall, 0.0), (size, tall, wide))
        y, size, wide = y + tall, size * rng.uniform(0.6, 0.85), wide * rng.uniform(0.7, 0.9)
    for i in range(int(rng.integers(1, 4))):
        s.frustum((x - 0.2 + 0.2 * i, y, 0.0), (x - 0.24 + 0.2 * i, y + rng.uniform(0.15, 0.3), 0.0), 0.06)
    if rng.random() < 0.4:
        for i in range(int(rng.integers(2, 4))):
            s.box((0.4 + 0.17 * i - 0.1, 0.1, 0.0), (0.14, 0.16, beam))
    return s


def rocket(rng: np.random.Generator) -> Surface:
    """Rocket: slender body with an ogive or conical nose, fins, nozzle, optional stages and side boosters."""
    s = Surface()
    radius, body, nose = rng.uniform(0.15, 0.3), rng.uniform(1.2, 2.0), rng.uniform(0.3, 0.8)
    neck = radius * (rng.uniform(0.6, 0.85) if rng.random() < 0.4 else 1.0)
    split = rng.uniform(0.4, 0.7) * body
    ogive = bezier([(neck, body), (neck, body + rng.uniform(0.05, 0.7) * nose), (0.0, body + nose)], 9)
    s.lathe(np.concatenate([[[0.0, 0.0], [radius, 0.0], [radius, split], [neck, split + 0.1]], ogive]))
    s.frustum((0.0, 0.0, 0.0), (0.0, -0.2, 0.0), 0.4 * radius, 0.75 * radius, caps=False)
    fins, reach, root = int(rng.integers(3, 6)), rng.uniform(0.2, 0.45), rng.uniform(0.3, 0.6)
    shape = [(0.0, 0.0), (reach, -rng.uniform(0.0, 0.25)), (reach, rng.uniform(0.05, 0.2)), (0.0, root)]
    for x, z in regular_polygon(fins).tolist():
        s.prism(shape, (radius * x * 0.95, 0.0, radius * z * 0.95), (x, 0.0, z), _Y, (-0.03 * z, 0.0, 0.03 * x))
    if rng.random() < 0.35:
        small, tall = 0.45 * radius, body * rng.uniform(0.4, 0.65)
        for side in (-1.0, 1.0):
            center = (side * (radius + small), 0.0, 0.0)
            s.lathe([(0.0, 0.0), (small, 0.0), (small, tall), (0.0, tall + 0.25)], center)
    return s


def bicycle(rng: np.random.Generator) -> Surface:
    """Bicycle: two spoked wheels, diamond or step-through frame, saddle, straight or dropped handlebar, pedals."""
    s = Surface()
    wheel, base, tyre = rng.uniform(0.3, 0.38), rng.uniform(0.95, 1.15), rng.uniform(0.015, 0.035)
    rear, front = (-0.5 * base, wheel, 0.0), (0.5 * base, wheel, 0.0)
    crank = (-0.08, wheel * rng.uniform(0.8, 1.0), 0.0)
    seat = (-0.08 - rng.uniform(0.1, 0.2), wheel + rng.uniform(0.35, 0.55), 0.0)
    head = (0.5 * base - rng.uniform(0.12, 0.22), wheel + rng.uniform(0.4, 0.55), 0.0)
    for hub in (rear, front):
        s.ring(hub, wheel, tyre, _Z)
        for x, y in regular_polygon(int(rng.integers(6, 11)), wheel).tolist():
            s.frustum(hub, (hub[0] + x, hub[1] + y, 0.0), 0.006, caps=False)
    tube = rng.uniform(0.014, 0.024)
    top = (seat[0], seat[1] - rng.uniform(0.03, 0.3), 0.0)
    low = (head[0] + 0.01, head[1] - 0.1, 0.0)
    for path in (
        [rear, crank, low],
        [crank, seat],
        [top, (head[0], head[1] - 0.03, 0.0)],
        [rear, top],
        [head, low, front],
    ):
        for start, end in zip(path[:-1], path[1:], strict=True):
            s.frustum(start, end, tube, caps=False)
    s.ellipsoid((seat[0] + 0.02, seat[1] + 0.02, 0.0), (0.14, 0.035, 0.07))
    stem = (head[0] + 0.02, head[1] + rng.uniform(0.02, 0.12), 0.0)
    s.frustum(head, stem, tube, caps=False)
    drop, reach, grip = rng.uniform(-0.16, 0.1), rng.uniform(-0.14, 0.12), rng.uniform(0.2, 0.32)
    for side in (-1.0, 1.0):
        end = (stem[0] + reach, stem[1] + drop, side * grip)
        s.tube(bezier([stem, (stem[0] + reach, stem[1], side * grip), end], 6), 0.016)
        foot = (crank[0] + side * 0.15, crank[1] - side * 0.05, side * 0.06)
        s.frustum(crank, foot, 0.012, caps=False)
        s.box((foot[0], foot[1], side * 0.11), (0.09, 0.02, 0.08))
    s.ring(crank, 0.09, 0.012, _Z, segments=12)
    return s


def _gable(s: Surface, center: tuple[float, float], size: tuple[float, float], y: float, rise: float) -> None:
    """Add a ridge roof along x over a rectangle, with eaves."""
    half_z, run = 0.5 * size[1] * 1.15, size[0] * 1.1
    s.prism([(-half_z, 0.0), (half_z, 0.0), (0.0, rise)], (center[0], y, center[1]), _Z, _Y, (run, 0.0, 0.0))


def house(rng: np.random.Generator) -> Surface:
    """House: one or two storeys, ridge, hip or flat roof, door, windows, optional chimney, wing and porch."""
    s = Surface()
    width, depth, height = rng.uniform(0.9, 1.6), rng.uniform(0.7, 1.0), rng.uniform(0.45, 1.0)
    s.box((0.0, 0.5 * height, 0.0), (width, height, depth))
    rise, style = rng.uniform(0.25, 0.6), rng.random()
    if style < 0.6:
        _gable(s, (0.0, 0.0), (width, depth), height, rise)
    elif style < 0.85:
        base = np.array([[-0.56, -0.56], [0.56, -0.56], [0.56, 0.56], [-0.56, 0.56]]) * np.array([width, depth])
        s.prism(base, (0.0, height + 0.5 * rise, 0.0), _X, _Z, (0.0, rise, 0.0), top_scale=rng.uniform(0.0, 0.4))
    else:
        s.box((0.0, height + 0.03, 0.0), (width * 1.15, 0.06, depth * 1.15))
    if rng.random() < 0.6:
        s.box((rng.uniform(-0.35, 0.35) * width, height + 0.6 * rise, 0.15 * depth), (0.12, rise, 0.12))
    if rng.random() < 0.4:
        wing = rng.uniform(0.4, 0.7)
        s.box((0.5 * (width + wing), 0.35 * height, 0.0), (wing, 0.7 * height, 0.7 * depth))
        _gable(s, (0.5 * (width + wing), 0.0), (wing, 0.7 * depth), 0.7 * height, 0.6 * rise)
    front = 0.5 * depth + 0.015
    s.box((rng.uniform(-0.2, 0.2) * width, 0.16, front), (0.16, 0.32, 0.04))
    for x in (-0.33, 0.33):
        for y in (0.6,) if height < 0.7 else (0.3, 0.75):
            s.box((x * width, y * height, front), (0.18, 0.18, 0.03))
    if rng.random() < 0.3:
        s.box((0.0, 0.4, 0.5 * depth + 0.15), (0.7 * width, 0.03, 0.32))
        for side in (-0.32, 0.32):
            s.frustum((side * width, 0.0, 0.5 * depth + 0.28), (side * width, 0.4, 0.5 * depth + 0.28), 0.025)
    return s


def tower(rng: np.random.Generator) -> Surface:
    """Tower: round or square, in set-back tiers, closed by battlements, a spire, a dome or a mast."""
    s = Surface()
    sides = int((4, 6, 8, 24)[int(rng.integers(4))])
    radius, y = rng.uniform(0.25, 0.5), 0.0
    for _ in range(int(rng.integers(1, 5))):
        tall, shrink = rng.uniform(0.4, 0.9), rng.uniform(0.85, 1.0)
        s.prism(
            regular_polygon(sides, radius, 0.785),
            (0.0, y + 0.5 * tall, 0.0),
            _X,
            _Z,
            (0.0, tall, 0.0),
            top_scale=shrink,
        )
        s.prism(regular_polygon(sides, radius * 1.1, 0.785), (0.0, y + tall, 0.0), _X, _Z, (0.0, 0.05, 0.0))
        y, radius = y + tall, radius * shrink * rng.uniform(0.72, 1.0)
    style = rng.random()
    if style < 0.35:
        count = max(8, sides)
        for x, z in regular_polygon(count, radius, 0.785).tolist():
            s.box((x, y + 0.09, z), (0.09, 0.16, 0.09))
    elif style < 0.65:
        rise = rng.uniform(0.4, 1.0)
        s.prism(
            regular_polygon(sides, 1.15 * radius, 0.785),
            (0.0, y + 0.5 * rise, 0.0),
            _X,
            _Z,
            (0.0, rise, 0.0),
            top_scale=0.0,
        )
    elif style < 0.85:
        s.ellipsoid((0.0, y, 0.0), (radius, radius * rng.uniform(0.7, 1.3), radius), lower=0.0)
        s.frustum((0.0, y + 0.6 * radius, 0.0), (0.0, y + 1.8 * radius, 0.0), 0.02)
    else:
        s.frustum((0.0, y, 0.0), (0.0, y + rng.uniform(0.5, 1.0), 0.0), 0.05, 0.01)
    return s


def tree(rng: np.random.Generator) -> Surface:
    """Tree: conifer in tiers, broadleaf with a crown of several blobs, or palm."""
    s = Surface()
    trunk, thick = rng.uniform(0.4, 1.0), rng.uniform(0.06, 0.13)
    style = rng.random()
    if style < 0.35:
        y, radius = 0.4 * trunk, rng.uniform(0.45, 0.7)
        tiers = int(rng.integers(2, 6))
        s.frustum((0.0, 0.0, 0.0), (0.0, y + 0.1, 0.0), thick, caps=False)
        for i in range(tiers):
            tall, r = rng.uniform(0.5, 0.7), radius * (1.0 - 0.75 * i / tiers)
            s.frustum((0.0, y, 0.0), (0.0, y + tall, 0.0), r, 0.02)
            y += tall * 0.55
    elif style < 0.8:
        s.frustum((0.0, 0.0, 0.0), (0.0, trunk + 0.2, 0.0), thick, 0.6 * thick, caps=False)
        blobs = int(rng.integers(1, 7))
        spread = 0.0 if blobs == 1 else rng.uniform(0.25, 0.45)
        for angle in np.arange(blobs) * 2.4:
            x, z = spread * math.cos(angle), spread * math.sin(angle)
            center = (x, trunk + rng.uniform(0.25, 0.8), z)
            s.frustum((0.0, 0.7 * trunk, 0.0), center, 0.03, caps=False)
            r = rng.uniform(0.45, 0.6) if blobs == 1 else rng.uniform(0.25, 0.42)
            s.ellipsoid(center, (r, r * rng.uniform(0.75, 1.4), r))
    else:
        tall, bow = rng.uniform(1.2, 1.9), rng.uniform(-0.3, 0.3)
        s.tube(
            bezier([(0.0, 0.0, 0.0), (0.0, 0.5 * tall, 0.0), (bow, tall, 0.0)], 8), np.linspace(thick, 0.6 * thick, 8)
        )
        top = np.array([bow, tall, 0.0])
        for angle in np.arange(int(rng.integers(6, 11))) * 2.4:
            out, side = (
                np.array([math.cos(angle), 0.0, math.sin(angle)]),
                np.array([-math.sin(angle), 0.0, math.cos(angle)]),
            )
            reach = rng.uniform(0.5, 0.8)
            path = bezier([top, top + 0.6 * reach * out + [0.0, 0.3, 0.0], top + reach * out - [0.0, 0.35, 0.0]], 5)
            breadth = np.array([0.04, 0.09, 0.11, 0.09, 0.01])[:, None] * side
            s.strip(path - breadth, path + breadth)
    return s


BUILDERS = {
    "airplane": airplane,
    "bicycle": bicycle,
    "car": car,
    "house": house,
    "rocket": rocket,
    "ship": ship,
    "tower": tower,
    "tree": tree,
}
