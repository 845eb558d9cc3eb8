"""The report's colours for runs are told apart by people who see all colours, and by those who do not, on light and dark pages."""

import math
import re
from itertools import combinations

import pytest

from launch.report.chart import COLOURS
from tests.support.processes import ROOT

LEAST = 10.0
"""CIEDE2000 between any two of them; about 2 is the least that is seen side by side."""
Vector = tuple[float, float, float]
SIMULATIONS: dict[str, tuple[Vector, Vector, Vector]] = {
    "all colours": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red cones": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green cones": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "no blue cones": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""Machado, Oliveira and Fernandes 2009, at full severity, on linear RGB."""


def linear(colour: str) -> Vector:
    """#rrggbb as light."""
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (r, g, b))  # type: ignore[return-value]


def lab(rgb: Vector) -> Vector:
    """CIELAB under D65."""
    r, g, b = rgb
    xyz = (
        (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047,
        0.2126729 * r + 0.7151522 * g + 0.0721750 * b,
        (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883,
    )
    x, y, z = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def seen(colour: str, matrix: tuple[Vector, Vector, Vector]) -> Vector:
    """A colour as it is seen."""
    light = linear(colour)
    r, g, b = (min(max(sum(m * v for m, v in zip(row, light, strict=True)), 0.0), 1.0) for row in matrix)
    return lab((r, g, b))


def difference(one: Vector, other: Vector) -> float:
    """CIEDE2000 (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * math.sqrt(mean**7 / (mean**7 + 25**7))
    c1, c2 = math.hypot(stretch * a1, b1), math.hypot(stretch * a2, b2)
    h1, h2 = (math.degrees(math.atan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    hue = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn / 2))
    light, chroma, angle = (l1 + l2) / 2, (c1 + c2) / 2, (h1 + turn / 2) % 360
    cosines = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63))
    t = 1 + sum(k * math.cos(math.radians(n * angle + at)) for k, n, at in cosines)
    s_l = 1 + 0.015 * (light - 50) ** 2 / math.sqrt(20 + (light - 50) ** 2)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    spin = math.sin(math.radians(60 * math.exp(-(((angle - 275) / 25) ** 2))))
    rotate = -2 * math.sqrt(chroma**7 / (chroma**7 + 25**7)) * spin
    d_l, d_c, d_h = (l2 - l1) / s_l, (c2 - c1) / s_c, hue / s_h
    return math.sqrt(d_l**2 + d_c**2 + d_h**2 + rotate * d_c * d_h)


def palettes() -> list[tuple[str, list[str]]]:
    """(the page's colour, the runs' colours) for light and dark, from the style sheet."""
    style = (ROOT / "launch" / "report" / "page.css").read_text()
    papers = re.findall(r"--paper: (#\w{6})", style)
    runs = [re.findall(r"--c\d: (#\w{6})", line) for line in style.splitlines() if "--c0:" in line and "--c7:" in line]
    return list(zip(papers, runs, strict=True))


def test_the_measure_is_the_published_one() -> None:
    """Pairs 1, 7 and 17 of the paper's table."""
    for one, other, told in (
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ):
        assert difference(one, other) == pytest.approx(told, abs=1e-4)


@pytest.mark.parametrize(("paper", "colours"), palettes(), ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIMULATIONS)
def test_eight_runs_are_told_apart(paper: str, colours: list[str], sight: str) -> None:
    assert len(colours) == COLOURS == 8
    views = [seen(colour, SIMULATIONS[sight]) for colour in colours]
    closest = min(difference(a, b) for a, b in combinations(views, 2))
    assert closest >= LEAST
    lights = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(linear, [paper, *colours])]
    contrasts = [(max(lights[0], light) + 0.05) / (min(lights[0], light) + 0.05) for light in lights[1:]]
    assert min(contrasts) >= 3, "WCAG 2.2, 1.4.11"
