"""Procedural household objects and plants. Units are arbitrary; y is up, the front towards +z."""

from __future__ import annotations

import math

import numpy as np

from .geometry import bezier, regular_polygon, rotation_matrix
from .primitives import Surface

_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def _handle(s: Surface, x0: float, low: float, high: float, reach: float, thickness: float, angular: bool) -> None:
    """Add an ear-shaped handle in the xy plane between two heights of a wall at x0."""
    if angular:
        path = [(x0, high, 0.0), (x0 + reach, high, 0.0), (x0 + reach, low, 0.0), (x0, low, 0.0)]
    else:
        path = bezier(
            [
                (x0, high, 0.0),
                (x0 + 1.4 * reach, high + 0.1 * reach, 0.0),
                (x0 + 1.2 * reach, low, 0.0),
                (x0, low, 0.0),
            ],
            12,
        )
    s.tube(path, thickness)


def _vessel(s: Surface, outer: np.ndarray, wall: float, floor: float | None = None) -> None:
    """Add an open vessel: the outer profile (radius, height) from the foot to the rim, and an inner wall."""
    inner = outer[::-1] - np.array([wall, 0.0])
    bottom = outer[0, 1] + (wall if floor is None else floor)
    inner = inner[inner[:, 1] > bottom]
    inner[:, 0] = np.maximum(inner[:, 0], 0.0)
    ends = np.array([[inner[-1, 0], bottom], [0.0, bottom]])
    s.lathe(np.concatenate([[[0.0, outer[0, 1]]], outer, inner, ends]))


def mug(rng: np.random.Generator) -> Surface:
    """Drinking mug or cup: straight, flared or rounded wall and one handle (now and then none)."""
    s = Surface()
    height, radius = rng.uniform(0.7, 1.15), rng.uniform(0.38, 0.55)
    foot, belly = radius * rng.uniform(0.6, 1.05), radius * rng.uniform(0.9, 1.2)
    outer = bezier([(foot, 0.0), (belly, 0.1 * height), (belly, 0.7 * height), (radius, height)], 9)
    _vessel(s, outer, rng.uniform(0.03, 0.06))
    if rng.random() < 0.88:
        low, high = rng.uniform(0.12, 0.3) * height, rng.uniform(0.7, 0.9) * height
        wall = 0.5 * (belly + radius) * 0.93
        _handle(s, wall, low, high, rng.uniform(0.22, 0.36), rng.uniform(0.035, 0.06), rng.random() < 0.25)
    return s


def bowl(rng: np.random.Generator) -> Surface:
    """Bowl: half-round to flat, on a foot ring or flat, some deep enough to be taken for a pot."""
    s = Surface()
    radius, height = 1.0, rng.uniform(0.35, 1.0)
    foot, bulge = rng.uniform(0.3, 0.6), rng.uniform(0.75, 1.15)
    outer = bezier([(foot, 0.0), (bulge, 0.02 * height), (radius, 0.5 * height), (radius, height)], 12)
    if rng.random() < 0.35:
        rim = rng.uniform(0.05, 0.2)
        outer = np.concatenate([outer, [[radius + rim, height + 0.1 * rim]]])
    _vessel(s, outer, rng.uniform(0.03, 0.06))
    if rng.random() < 0.5:
        ring = rng.uniform(0.04, 0.12)
        s.frustum((0.0, -ring, 0.0), (0.0, 0.0, 0.0), foot * 0.9, foot, caps=False)
    if rng.random() < 0.15:
        for side in (-1.0, 1.0):
            s.box((side * (radius + 0.08), height * 0.93, 0.0), (0.2, 0.04, 0.25))
    return s


def cooking_pot(rng: np.random.Generator) -> Surface:
    """Pot or saucepan: straight or rounded wall, two side handles or one long one, optional lid with a knob."""
    s = Surface()
    radius, height = 1.0, rng.uniform(0.6, 1.5)
    foot = rng.uniform(0.75, 1.0)
    corner = rng.uniform(0.02, 0.4) * height
    outer = bezier([(foot, 0.0), (radius, 0.0), (radius, corner), (radius, height)], 9)
    lid = rng.random() < 0.45
    _vessel(s, outer, rng.uniform(0.03, 0.05))
    if lid:
        dome = rng.uniform(0.03, 0.3)
        s.ellipsoid((0.0, height, 0.0), (radius, dome, radius), lower=0.0)
        s.frustum((0.0, height + dome, 0.0), (0.0, height + dome + 0.1, 0.0), 0.04, 0.12)
    y = height * rng.uniform(0.65, 0.9)
    if rng.random() < 0.3:
        length, tilt = rng.uniform(0.8, 1.8), rng.uniform(0.0, 0.3)
        s.tube([(radius * 0.97, y, 0.0), (radius + length, y + tilt, 0.0)], rng.uniform(0.05, 0.1), caps=True)
        return s
    reach, half, t = rng.uniform(0.15, 0.35), rng.uniform(0.2, 0.35), rng.uniform(0.03, 0.06)
    for side in (-1.0, 1.0) if rng.random() < 0.92 else ():
        x = side * radius * 0.93
        path = [(x, y, -half), (x + side * 1.4 * reach, y, -half), (x + side * 1.4 * reach, y, half), (x, y, half)]
        s.tube(bezier(path, 9), t)
    return s


def teapot(rng: np.random.Generator) -> Surface:
    """Teapot or kettle: rounded body, curved spout, side or overhead handle, lid with a knob."""
    s = Surface()
    height, foot, rim = rng.uniform(0.9, 1.6), rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.6)
    belly_low, belly_high = rng.uniform(0.8, 1.3), rng.uniform(0.7, 1.25)
    profile = bezier([(foot, 0.0), (belly_low, 0.1 * height), (belly_high, 0.8 * height), (rim, height)], 12)
    s.lathe(np.concatenate([[[0.0, 0.0]], profile, [[0.0, height + rng.uniform(0.05, 0.2)]]]))
    s.ellipsoid((0.0, height + 0.18, 0.0), (0.09, rng.uniform(0.07, 0.12), 0.09))
    wall = float(profile[:, 0].max()) * 0.95
    low, tip = rng.uniform(0.25, 0.45) * height, rng.uniform(0.8, 1.1) * height
    length = rng.uniform(0.45, 0.9)
    spout = bezier(
        [
            (-wall, low, 0.0),
            (-wall - 0.8 * length, low, 0.0),
            (-wall - 0.4 * length, tip, 0.0),
            (-wall - length, tip, 0.0),
        ],
        10,
    )
    s.tube(spout, np.linspace(rng.uniform(0.15, 0.25), rng.uniform(0.06, 0.1), 10))
    if rng.random() < 0.7:
        _handle(s, wall * 0.95, 0.22 * height, 0.8 * height, rng.uniform(0.35, 0.6), rng.uniform(0.05, 0.08), False)
    else:
        top = height + rng.uniform(0.6, 1.1)
        path = [(-0.8 * wall, 0.8 * height, 0.0), (-wall, top, 0.0), (wall, top, 0.0), (0.8 * wall, 0.8 * height, 0.0)]
        s.tube(bezier(path, 14), rng.uniform(0.04, 0.07))
    return s


def bottle(rng: np.random.Generator) -> Surface:
    """Bottle: round or square body, sloped or sharp shoulder, slim neck and a cap or cork."""
    s = Surface()
    radius, body, neck = rng.uniform(0.25, 0.5), rng.uniform(0.7, 1.3), rng.uniform(0.2, 0.7)
    slim, shoulder = radius * rng.uniform(0.25, 0.5), rng.uniform(0.05, 0.5)
    top = body + shoulder + neck
    curve = bezier(
        [(radius, body), (radius, body + 0.7 * shoulder), (slim, body + 0.5 * shoulder), (slim, body + shoulder)]
    )
    if rng.random() < 0.2:
        s.box((0.0, 0.5 * body, 0.0), (1.8 * radius, body, 1.8 * radius))
        s.lathe(np.concatenate([curve, [[slim, top], [0.0, top]]]))
    else:
        s.lathe(np.concatenate([[[0.0, 0.0], [radius * 0.95, 0.0], [radius, 0.05]], curve, [[slim, top], [0.0, top]]]))
    cap = rng.uniform(0.08, 0.2)
    s.frustum((0.0, top - 0.5 * cap, 0.0), (0.0, top + 0.5 * cap, 0.0), slim * rng.uniform(1.1, 1.4))
    return s


def vase(rng: np.random.Generator) -> Surface:
    """Vase: tall open vessel with a free S-shaped profile, optional ears or foot."""
    s = Surface()
    height = rng.uniform(1.5, 2.6)
    radii = rng.uniform([0.25, 0.3, 0.2, 0.15, 0.25], [0.5, 1.3, 1.3, 0.5, 0.7])
    heights = np.array([0.0, 0.15, 0.6, 0.85, 1.0]) * height
    outer = bezier(np.stack([radii, heights], axis=1), 16)
    _vessel(s, outer, 0.035, floor=0.1)
    if rng.random() < 0.3:
        for turn in (0.0, math.pi):
            ear = Surface()
            _handle(ear, float(outer[11, 0]) * 0.9, float(outer[9, 1]), float(outer[13, 1]), 0.25, 0.04, False)
            s.add(ear, rotation_matrix("y", turn))
    return s


def lamp(rng: np.random.Generator) -> Surface:
    """Lamp: straight table or floor lamp with a shade, or an articulated desk lamp."""
    s = Surface()
    foot = rng.uniform(0.2, 0.35)
    s.lathe([(0.0, 0.0), (foot, 0.0), (foot, 0.04), (0.05, rng.uniform(0.05, 0.12)), (0.0, 0.12)])
    if rng.random() < 0.6:
        height = rng.uniform(0.4, 0.9) if rng.random() < 0.5 else rng.uniform(1.2, 2.0)
        s.frustum((0.0, 0.0, 0.0), (0.0, height, 0.0), rng.uniform(0.02, 0.04), caps=False)
        if height < 1.0 and rng.random() < 0.4:
            s.ellipsoid((0.0, 0.35 * height, 0.0), (0.16, 0.3 * height, 0.16))
        lower, upper, tall = rng.uniform(0.3, 0.5), rng.uniform(0.12, 0.3), rng.uniform(0.25, 0.5)
        s.frustum((0.0, height - 0.3 * tall, 0.0), (0.0, height + 0.7 * tall, 0.0), lower, upper, caps=False)
        return s
    elbow = np.array([-rng.uniform(0.1, 0.4), rng.uniform(0.5, 0.8), 0.0])
    head = elbow + np.array([rng.uniform(0.4, 0.7), rng.uniform(0.1, 0.5), 0.0])
    s.tube([(0.0, 0.05, 0.0), elbow, head], 0.025)
    s.ellipsoid(elbow, (0.05, 0.05, 0.05))
    aim = np.array([rng.uniform(0.1, 0.6), -1.0, 0.0])
    s.frustum(head, head + 0.3 * aim / np.linalg.norm(aim), 0.05, rng.uniform(0.16, 0.26), caps=False)
    return s


def laptop(rng: np.random.Generator) -> Surface:
    """Open laptop: keyboard deck with keys and touch pad, thin screen at a varied angle."""
    s = Surface()
    width, depth = rng.uniform(0.9, 1.3), rng.uniform(0.65, 0.9)
    thick = rng.uniform(0.03, 0.07)
    s.box((0.0, 0.5 * thick, 0.0), (width, thick, depth))
    s.box((0.0, thick + 0.008, -0.15 * depth), (0.86 * width, 0.016, 0.4 * depth))
    s.box((0.0, thick + 0.004, 0.3 * depth), (0.3 * width, 0.008, 0.25 * depth))
    lid = Surface()
    high = depth * rng.uniform(0.85, 1.0)
    lid.box((0.0, 0.5 * high, 0.0), (width, high, rng.uniform(0.015, 0.03)))
    s.add(lid, rotation_matrix("x", rng.uniform(-0.8, 0.25)), (0.0, thick, -0.5 * depth))
    return s


def monitor(rng: np.random.Generator) -> Surface:
    """Desktop display: flat or curved panel, bezel at the back, stem and a flat, round or V-shaped foot."""
    s = Surface()
    width, height, lift = rng.uniform(0.9, 1.7), rng.uniform(0.5, 0.8), rng.uniform(0.2, 0.45)
    panel = rng.uniform(0.03, 0.08)
    if rng.random() < 0.25:
        bend = rng.uniform(0.04, 0.14) * width
        for i in range(6):
            x0, x1 = (i / 6 - 0.5) * width, ((i + 1) / 6 - 0.5) * width
            z0, z1 = bend * (2 * x0 / width) ** 2, bend * (2 * x1 / width) ** 2
            middle = lift + 0.5 * height
            s.beam((x0, middle, z0), (x1, middle, z1), panel, height)
    else:
        s.box((0.0, lift + 0.5 * height, 0.0), (width, height, panel))
        s.box((0.0, lift + 0.5 * height, -panel), (0.5 * width, 0.6 * height, panel * rng.uniform(1.0, 2.5)))
    s.box((0.0, 0.5 * lift + 0.1, -0.08), (rng.uniform(0.06, 0.2), lift + 0.2, 0.04))
    style = rng.random()
    if style < 0.4:
        s.box((0.0, 0.012, 0.0), (rng.uniform(0.35, 0.6), 0.025, rng.uniform(0.25, 0.4)))
    elif style < 0.7:
        s.lathe([(0.0, 0.0), (0.25, 0.0), (0.25, 0.025), (0.0, 0.025)], scale=(rng.uniform(0.9, 1.4), 1.0))
    else:
        for side in (-1.0, 1.0):
            s.beam((0.0, 0.02, -0.08), (side * rng.uniform(0.25, 0.45), 0.02, 0.25), 0.05, 0.03)
    return s


def keyboard(rng: np.random.Generator) -> Surface:
    """Computer keyboard: flat case with rows of keys, optional number pad and wrist rest."""
    s = Surface()
    rows, columns = int(rng.integers(4, 7)), int(rng.integers(10, 18))
    pitch, thick, cap = 0.1, rng.uniform(0.03, 0.09), rng.uniform(0.03, 0.07)
    width, depth = columns * pitch + 0.06, rows * pitch + 0.06
    s.box((0.0, 0.5 * thick, 0.0), (width, thick, depth))
    pad = columns - 4 if columns > 13 and rng.random() < 0.7 else None
    for i in range(rows):
        shift = 0.25 * pitch * (i % 2)
        for j in range(columns - (i % 2)):
            if j != pad:
                x, z = (j + 0.5 - 0.5 * columns) * pitch + shift, (i + 0.5 - 0.5 * rows) * pitch
                s.box((x, thick + 0.5 * cap, z), (0.8 * pitch, cap, 0.8 * pitch))
    if rng.random() < 0.3:
        s.box((0.0, 0.4 * thick, 0.5 * depth + 0.12), (width, 0.8 * thick, 0.22))
    return s


def umbrella(rng: np.random.Generator) -> Surface:
    """Umbrella or parasol: ribbed canopy on a pole, with a crook, a straight grip or a stand."""
    s = Surface()
    sides, radius, drop = int(rng.integers(6, 13)), 1.0, rng.uniform(0.25, 0.65)
    pole = rng.uniform(1.3, 2.1)
    rim = regular_polygon(sides, radius)
    rim = np.concatenate([rim, rim[:1]])
    rings = [
        np.stack([rim[:, 0] * f, np.full(sides + 1, pole - drop * f**1.6), rim[:, 1] * f], axis=1)
        for f in (1.0, 0.55, 0.0)
    ]
    s.strip(rings[0], rings[1])
    s.strip(rings[1], rings[2])
    s.frustum((0.0, 0.0, 0.0), (0.0, pole + 0.12, 0.0), rng.uniform(0.02, 0.04), caps=False)
    style = rng.random()
    if style < 0.5:
        size = rng.uniform(0.12, 0.2)
        s.tube(
            bezier([(0.0, 0.0, 0.0), (0.0, -1.8 * size, 0.0), (2 * size, -1.8 * size, 0.0), (2 * size, 0.0, 0.0)]),
            0.04,
        )
    elif style < 0.75:
        s.frustum((0.0, -0.05, 0.0), (0.0, 0.25, 0.0), 0.06)
    else:
        s.lathe([(0.0, -0.05), (0.35, -0.05), (0.3, 0.06), (0.05, 0.15)])
    return s


def hat(rng: np.random.Generator) -> Surface:
    """Hat: brimmed hat or top hat with a band, cap with a peak, or pointed hat."""
    s = Surface()
    crown, height = rng.uniform(0.4, 0.55), rng.uniform(0.4, 0.6)
    depth = crown * rng.uniform(1.0, 1.25)
    scale = (1.0, depth / crown)
    style = rng.random()
    if style < 0.25:
        s.ellipsoid((0.0, 0.0, 0.0), (crown, height, depth), lower=0.0)
        length = rng.uniform(0.35, 0.55)
        half = np.linspace(-0.9, 0.9, 9)
        outline = np.concatenate(
            [
                np.stack([crown * np.sin(half), depth * np.cos(half)], axis=1),
                np.stack([crown * np.sin(half), depth * np.cos(half) + length * np.cos(half * 1.7)], axis=1)[::-1],
            ]
        )
        s.prism(outline, (0.0, 0.02, 0.0), _X, _Z, (0.0, 0.03, 0.0))
        s.ellipsoid((0.0, height, 0.0), (0.05, 0.04, 0.05))
        return s
    brim, droop = crown + rng.uniform(0.2, 0.55), rng.uniform(-0.12, 0.12)
    if style < 0.7:
        lip = rng.uniform(0.6, 1.05)
        profile = bezier([(crown, 0.0), (crown, 0.9 * height), (crown * lip, height), (0.0, height)], 12)
    elif style < 0.85:
        height *= rng.uniform(1.2, 1.8)
        profile = np.array([[crown, 0.0], [crown * rng.uniform(0.95, 1.1), height], [0.0, height]])
    else:
        profile = np.array([[crown, 0.0], [0.5 * crown, 0.7 * height], [0.02, 2.2 * height]])
    s.lathe(np.concatenate([[[brim, droop]], profile]), scale=scale)
    s.lathe([(crown * 1.03, 0.02), (crown * 1.03, rng.uniform(0.08, 0.16))], scale=scale)
    return s


def potted_plant(rng: np.random.Generator) -> Surface:
    """Plant in a pot: arching leaves, or stems with round foliage, or a cactus."""
    s = Surface()
    rim, pot = rng.uniform(0.3, 0.45), rng.uniform(0.35, 0.65)
    foot = rim * rng.uniform(0.6, 0.95)
    s.lathe(
        [
            (0.0, 0.0),
            (foot, 0.0),
            (rim, pot),
            (rim * 1.12, pot),
            (rim * 1.12, pot + 0.07),
            (rim, pot + 0.07),
            (0.0, pot),
        ]
    )
    style = rng.random()
    if style < 0.5:
        for angle in np.arange(rng.integers(6, 13)) * 2.4 + rng.uniform(0.0, 6.0):
            reach, rise, width = rng.uniform(0.25, 0.8), rng.uniform(0.5, 1.2), rng.uniform(0.06, 0.16)
            out, side = (
                np.array([math.cos(angle), 0.0, math.sin(angle)]),
                np.array([-math.sin(angle), 0.0, math.cos(angle)]),
            )
            base = np.array([0.0, pot, 0.0])
            path = bezier(
                [base, base + [0.0, rise, 0.0], base + out * reach + [0.0, rise, 0.0], base + out * reach * 1.3], 5
            )
            breadth = width * np.array([0.5, 0.9, 1.0, 0.8, 0.1])[:, None] * side
            s.strip(path - breadth, path + breadth)
    elif style < 0.8:
        for _ in range(int(rng.integers(2, 6))):
            tip = np.array([rng.uniform(-0.4, 0.4), pot + rng.uniform(0.5, 1.2), rng.uniform(-0.4, 0.4)])
            s.frustum((0.0, pot, 0.0), tip, 0.025, caps=False)
            s.ellipsoid(tip, rng.uniform(0.16, 0.32, 3))
    else:
        tall, r = rng.uniform(0.6, 1.2), rng.uniform(0.14, 0.24)
        s.lathe([(r, pot), (r, pot + tall - r), (0.7 * r, pot + tall - 0.3 * r), (0.0, pot + tall)])
        for side in (-1.0, 1.0)[: int(rng.integers(1, 3))]:
            y, x = pot + tall * rng.uniform(0.25, 0.5), side * (r + rng.uniform(0.15, 0.3))
            s.tube([(0.0, y, 0.0), (x, y, 0.0), (x, y + rng.uniform(0.2, 0.5), 0.0)], 0.55 * r, caps=True)
    return s


def guitar(rng: np.random.Generator) -> Surface:
    """Acoustic or electric guitar, upright: waisted body, sound hole or pickups, neck and head with pegs."""
    s = Surface()
    lower, upper, waist = rng.uniform(0.38, 0.5), rng.uniform(0.28, 0.38), rng.uniform(0.2, 0.3)
    length, depth = rng.uniform(0.9, 1.2), rng.uniform(0.06, 0.26)
    # Half-widths at fixed heights, with the waist at just over half the body's length.
    heights = np.array([0.0, 0.03, 0.1, 0.2, 0.3, 0.42, 0.52, 0.6, 0.68, 0.78, 0.87, 0.95, 1.0])
    lobes = np.array([0.0, 0.5, 0.85, 1.0, 0.97, 0.6, 0.1, 0.0, 0.35, 0.9, 1.0, 0.75, 0.0])
    bout = np.where(heights < 0.6, lower, upper)
    half = waist + (bout - waist) * lobes
    half[[0, 1, -1]] = (0.3 * lower, 0.65 * lower, 0.12)
    right = np.stack([half, heights * length], axis=1)
    outline = np.concatenate([right, right[::-1] * np.array([-1.0, 1.0])])
    s.prism(outline, (0.0, 0.0, 0.0), _X, _Y, (0.0, 0.0, depth))
    front, neck = 0.5 * depth, rng.uniform(0.75, 1.05)
    if depth > 0.14:
        s.ring((0.0, 0.62 * length, front), rng.uniform(0.1, 0.14), 0.02, _Z, segments=16)
    else:
        for y in (0.4, 0.6):
            s.box((0.0, y * length, front + 0.02), (0.22, 0.07, 0.03))
    s.box((0.0, 0.25 * length, front + 0.015), (0.3, 0.05, 0.03))
    s.box((0.0, 0.7 * length + 0.5 * (neck + 0.3 * length), front), (0.09, neck + 0.3 * length, 0.06))
    head = length + neck
    s.box((0.0, head + 0.12, front - 0.02), (rng.uniform(0.13, 0.2), 0.26, 0.05))
    for i in range(3):
        s.beam((-0.15, head + 0.05 + 0.08 * i, front), (0.15, head + 0.05 + 0.08 * i, front), 0.02, 0.02)
    return s


BUILDERS = {
    "bottle": bottle,
    "bowl": bowl,
    "cooking_pot": cooking_pot,
    "guitar": guitar,
    "hat": hat,
    "keyboard": keyboard,
    "lamp": lamp,
    "laptop": laptop,
    "monitor": monitor,
    "mug": mug,
    "potted_plant": potted_plant,
    "teapot": teapot,
    "umbrella": umbrella,
    "vase": vase,
}
