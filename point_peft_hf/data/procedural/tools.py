"""Procedural hand tools and machine parts (as in CAD models). Units are arbitrary; y is up."""

from __future__ import annotations

import math

import numpy as np

from .geometry import bezier, regular_polygon
from .primitives import Surface

_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def _grip(s: Surface, rng: np.random.Generator, length: float, radius: float) -> None:
    """Add a handle along +y from the origin: plain, waisted or with a pommel, sometimes flattened."""
    swell = rng.uniform(0.8, 1.4)
    profile = bezier(
        [(radius, 0.0), (radius * swell, 0.35 * length), (radius * 0.7, 0.6 * length), (radius, length)], 9
    )
    s.lathe(np.concatenate([[[0.0, 0.0]], profile, [[0.0, length]]]), scale=(1.0, rng.uniform(0.6, 1.0)))


def hammer(rng: np.random.Generator) -> Surface:
    """Hammer, upright: handle, head with a face and a claw, a peen, or a second face (mallet)."""
    s = Surface()
    length, radius = rng.uniform(1.0, 1.7), rng.uniform(0.05, 0.085)
    _grip(s, rng, length, radius)
    size, y, style = rng.uniform(0.09, 0.16), length - rng.uniform(0.0, 0.08), rng.random()
    reach = rng.uniform(0.22, 0.38)
    square = rng.random() < 0.5
    if style < 0.3:  # mallet
        size *= 1.4
        if square:
            s.box((0.0, y, 0.0), (2.0 * reach, 2.0 * size, 1.6 * size))
        else:
            s.frustum((-reach, y, 0.0), (reach, y, 0.0), size)
        return s
    s.box((0.0, y, 0.0), (0.24, 1.6 * size, 1.5 * size))
    s.frustum((0.1, y, 0.0), (reach - 0.05, y, 0.0), 0.6 * size, 0.7 * size, caps=False)
    if square:
        s.box((reach, y, 0.0), (0.12, 1.8 * size, 1.8 * size))
    else:
        s.frustum((reach - 0.05, y, 0.0), (reach + 0.06, y, 0.0), size)
    if style < 0.65:  # claw
        drop = rng.uniform(0.05, 0.25)
        for side in (-1.0, 1.0):
            path = bezier(
                [
                    (-0.1, y + 0.3 * size, side * 0.2 * size),
                    (-0.3, y + 0.5 * size, side * 0.5 * size),
                    (-0.42, y - drop, side * size),
                ],
                6,
            )
            s.tube(path, np.linspace(0.4 * size, 0.12 * size, 6))
    else:  # wedge peen
        s.prism(
            [(0.0, -0.8 * size), (0.0, 0.8 * size), (-reach, 0.1 * size), (-reach, -0.1 * size)],
            (-0.1, y, 0.0),
            _X,
            _Y,
            (0.0, 0.0, 1.5 * size),
        )
    return s


def _open_jaw(s: Surface, rng: np.random.Generator, y: float, sign: float, radius: float, thick: float) -> None:
    """Add the open end of a wrench, opening towards sign * y with a slight skew."""
    skew = rng.uniform(0.0, 0.35)
    mouth = rng.uniform(0.5, 0.8)
    angle = np.linspace(mouth, 2.0 * math.pi - mouth, 11) + skew
    inner, outer = radius * rng.uniform(0.45, 0.6), radius
    circle = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    s.band(inner * circle, outer * circle, (0.0, y, 0.0), _X, (0.0, sign, 0.0), (0.0, 0.0, thick))


def wrench(rng: np.random.Generator) -> Surface:
    """Wrench, upright: flat shank with open or ring ends, or an adjustable jaw."""
    s = Surface()
    length, width, thick = rng.uniform(0.75, 1.9), rng.uniform(0.08, 0.17), rng.uniform(0.04, 0.14)
    head = rng.uniform(0.16, 0.33)
    if rng.random() < 0.5:
        s.box((0.0, 0.5 * length, 0.0), (width, length, thick))
    else:
        s.beam((0.0, 0.0, 0.0), (0.0, length, 0.0), 0.6 * width, 0.6 * width)
    if rng.random() < 0.3:  # adjustable: two blocks beyond a wide neck
        s.box((0.0, length + 0.08, 0.0), (2.0 * head, 0.18, 1.6 * thick))
        for x, w in ((-0.75 * head, 0.5), (rng.uniform(0.0, 0.7) * head, 0.45)):
            s.box((x, length + 0.28, 0.0), (w * head, 0.26, 1.6 * thick))
        s.frustum((-0.12, length - 0.04, 0.0), (0.12, length - 0.04, 0.0), 0.06)
        if rng.random() < 0.5:
            s.ring((0.0, 0.0, 0.0), 0.6 * width, 0.04, _Z, segments=12)
        return s
    _open_jaw(s, rng, length + 0.6 * head, 1.0, head, 1.4 * thick)
    end = rng.random()
    if end < 0.45:
        r = head * rng.uniform(0.8, 1.0)
        profile = [
            (0.6 * r, -0.7 * thick),
            (r, -0.7 * thick),
            (r, 0.7 * thick),
            (0.6 * r, 0.7 * thick),
            (0.6 * r, -0.7 * thick),
        ]
        s.lathe(profile, (0.0, -0.7 * r, 0.0), _Z)
    elif end < 0.8:
        r = head * rng.uniform(0.7, 1.0)
        _open_jaw(s, rng, -0.6 * r, -1.0, r, 1.4 * thick)
    return s


def screwdriver(rng: np.random.Generator) -> Surface:
    """Screwdriver, tip up: fluted, round or ball grip, thin shaft, flat or pointed tip."""
    s = Surface()
    grip, radius, shaft = rng.uniform(0.4, 0.75), rng.uniform(0.08, 0.15), rng.uniform(0.5, 1.4)
    thin = rng.uniform(0.02, 0.045)
    style = rng.random()
    if style < 0.4:
        s.prism(regular_polygon(6, radius), (0.0, 0.5 * grip, 0.0), _X, _Z, (0.0, grip, 0.0))
        s.frustum((0.0, grip, 0.0), (0.0, grip + 0.1, 0.0), 0.9 * radius, 1.5 * thin)
    elif style < 0.85:
        profile = bezier(
            [
                (0.5 * radius, 0.0),
                (1.5 * radius, 0.1 * grip),
                (0.9 * radius, 0.6 * grip),
                (0.5 * radius, 0.8 * grip),
                (0.8 * radius, grip),
            ],
            12,
        )
        s.lathe(np.concatenate([[[0.0, 0.0]], profile, [[0.0, grip]]]))
    else:
        s.ellipsoid((0.0, 0.5 * grip, 0.0), (0.32 * grip, 0.5 * grip, 0.32 * grip))
    s.frustum((0.0, grip, 0.0), (0.0, grip + shaft, 0.0), thin, caps=False)
    if rng.random() < 0.5:
        s.prism(
            [
                (-thin, 0.0),
                (thin, 0.0),
                (1.8 * thin, 0.06),
                (1.4 * thin, 0.14),
                (-1.4 * thin, 0.14),
                (-1.8 * thin, 0.06),
            ],
            (0.0, grip + shaft, 0.0),
            _X,
            _Y,
            (0.0, 0.0, 0.6 * thin),
        )
    else:
        s.frustum((0.0, grip + shaft, 0.0), (0.0, grip + shaft + 0.1, 0.0), thin, 0.005, caps=False)
    return s


def bolt(rng: np.random.Generator) -> Surface:
    """Bolt, head down: hexagonal, round or countersunk head, threaded shank, optional nut and washer."""
    s = Surface()
    radius, length = rng.uniform(0.14, 0.26), rng.uniform(0.6, 1.6)
    head, tall = radius * rng.uniform(1.6, 2.2), rng.uniform(0.14, 0.3)
    style = rng.random()
    if style < 0.6:
        s.prism(regular_polygon(6, head), (0.0, -0.5 * tall, 0.0), _X, _Z, (0.0, tall, 0.0))
    elif style < 0.8:
        s.ellipsoid((0.0, 0.0, 0.0), (head, tall, head), upper=0.0)
        s.lathe([(0.0, 0.0), (head, 0.0)])
    else:
        s.frustum((0.0, -tall, 0.0), (0.0, 0.1, 0.0), head, radius)
    threads, start = int(rng.integers(6, 14)), rng.uniform(0.0, 0.5) * length
    heights = np.linspace(start, length, 2 * threads + 1)
    radii = np.where(np.arange(2 * threads + 1) % 2 == 0, radius, radius * 0.8)
    thread = np.stack([radii, heights], axis=1)
    s.lathe(np.concatenate([[[radius, 0.0]], thread, [[0.0, length + 0.03]]]))
    if rng.random() < 0.55:
        at = rng.uniform(0.45, 0.85) * length
        s.prism(
            regular_polygon(6, head, rng.uniform(0.0, 1.0)),
            (0.0, at, 0.0),
            _X,
            _Z,
            (0.0, rng.uniform(0.15, 0.25), 0.0),
        )
    if rng.random() < 0.3:
        s.lathe([(radius, 0.02), (head * 1.25, 0.02), (head * 1.25, 0.06), (radius, 0.06)])
    return s


def gear(rng: np.random.Generator) -> Surface:
    """Spur gear lying flat: varied number of teeth and thickness, bore, hub, and a solid, holed or spoked web."""
    s = Surface()
    teeth, thick, bore = int(rng.integers(7, 21)), rng.uniform(0.08, 0.32), rng.uniform(0.12, 0.3)
    tooth = min(0.35, 3.2 / teeth) * rng.uniform(0.8, 1.2)
    half, rim = 0.5 * thick, rng.uniform(0.65, 0.85)
    # Every tooth has four corners: root, tip, tip, root.
    pitch = 2.0 * math.pi / teeth
    angle = (np.arange(teeth)[:, None] * pitch + np.array([-0.3, -0.17, 0.17, 0.3]) * pitch).ravel()
    angle = np.append(angle, angle[0])
    radius = np.append(np.tile([1.0, 1.0 + tooth, 1.0 + tooth, 1.0], teeth), 1.0)[:, None]
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    s.band(rim * circle, radius * circle, (0.0, 0.0, 0.0), _X, _Z, (0.0, thick, 0.0))
    hub = bore + rng.uniform(0.06, 0.15)
    tall = half * rng.uniform(1.0, 1.8)
    s.lathe([(bore, -tall), (hub, -tall), (hub, tall), (bore, tall), (bore, -tall)])
    if rng.random() < 0.6:
        web = half * rng.uniform(0.3, 1.0)
        for y in (-web, web):
            s.lathe([(hub, y), (rim, y)])
    else:
        for x, z in regular_polygon(int(rng.integers(3, 7))).tolist():
            s.beam((hub * x, 0.0, hub * z), (rim * x, 0.0, rim * z), 0.16, thick * 0.7)
    return s


def pipe_elbow(rng: np.random.Generator) -> Surface:
    """Pipe bend: 45 to 135 degrees with straight ends and flanges or sockets, sometimes a tee."""
    s = Surface()
    radius, bend = rng.uniform(0.18, 0.32), rng.uniform(0.4, 0.8)
    angle = rng.uniform(0.8, 2.3)
    first, last = rng.uniform(0.05, 0.7), rng.uniform(0.05, 0.7)
    turn = np.linspace(0.0, angle, 16)
    arc = np.stack([bend - bend * np.cos(turn), bend * np.sin(turn), np.zeros(16)], axis=1)
    ahead = np.array([math.sin(angle), math.cos(angle), 0.0])
    start, end = np.array([0.0, -first, 0.0]), arc[-1] + last * ahead
    path = np.concatenate([[start], arc, [end]])
    s.tube(path, radius)
    if rng.random() < 0.5:
        s.tube(path, 0.85 * radius)
    style = rng.random()
    ring = radius * (rng.uniform(1.4, 1.8) if style < 0.5 else rng.uniform(1.12, 1.25))
    deep = rng.uniform(0.06, 0.1) if style < 0.5 else rng.uniform(0.15, 0.25)
    for origin, axis in ((start, np.array([0.0, 1.0, 0.0])), (end, -ahead)):
        inner = 0.9 * radius
        s.lathe([(inner, 0.0), (ring, 0.0), (ring, deep), (inner, deep)], origin, axis)
    if rng.random() < 0.2:
        s.frustum(
            (bend * (1 - math.cos(0.5 * angle)), bend * math.sin(0.5 * angle), 0.0),
            (-0.4, 1.2 * bend, 0.0),
            0.8 * radius,
            caps=False,
        )
    return s


def bracket(rng: np.random.Generator) -> Surface:
    """Mounting bracket: L, U, T or Z profile with bosses around the holes and optional gussets."""
    s = Surface()
    base, wall, width = rng.uniform(0.7, 1.2), rng.uniform(0.5, 1.2), rng.uniform(0.35, 0.9)
    thick = rng.uniform(0.06, 0.14)
    style = int(rng.integers(4))
    s.box((0.5 * base, 0.5 * thick, 0.0), (base, thick, width))
    at = 0.5 * base if style == 2 else 0.5 * thick
    s.box((at, 0.5 * wall, 0.0), (thick, wall, width))
    if style == 1:
        s.box((base - 0.5 * thick, 0.5 * wall, 0.0), (thick, wall, width))
    elif style == 3:
        s.box((thick - 0.4 * base, wall - 0.5 * thick, 0.0), (0.8 * base, thick, width))
    for place in (0.3, 0.75)[: int(rng.integers(1, 3))]:
        hole = rng.uniform(0.06, 0.1)
        profile = [(hole, 0.0), (1.7 * hole, 0.0), (1.7 * hole, 0.07), (hole, 0.07), (hole, 0.0)]
        s.lathe(profile, (place * base if style != 2 else 0.9 * place * base, thick, 0.0), _Y)
        s.lathe(profile, (at + 0.5 * thick, max(place, 0.45) * wall, 0.0), _X)
    if rng.random() < 0.5:
        size = rng.uniform(0.4, 0.8) * min(base, wall) * (0.5 if style == 2 else 1.0)
        for z in (-0.4, 0.4) if rng.random() < 0.5 else (0.0,):
            s.prism([(0.0, 0.0), (size, 0.0), (0.0, size)], (at, thick, z * width), _X, _Y, (0.0, 0.0, 0.05))
    return s


BUILDERS = {
    "bolt": bolt,
    "bracket": bracket,
    "gear": gear,
    "hammer": hammer,
    "pipe_elbow": pipe_elbow,
    "screwdriver": screwdriver,
    "wrench": wrench,
}
