"""Synthetic street scenes drawn from a seed: the built-in data set of `setr demo` and the tests.

Nine classes with the difficulties of real data: large stuff and small things, thin poles,
occlusion, texture, lighting, and a narrow ignored border between classes. A scene depends only on
(split, index), and splits never share one.
"""

from __future__ import annotations

import zlib

import cv2
import numpy as np

from setr.labels import IGNORE, Labels

SIZE = 128
"""Height and width of a scene in pixels."""

CLASSES = {
    "sky": (70, 130, 180),
    "hill": (107, 90, 142),
    "building": (150, 90, 60),
    "grass": (110, 170, 60),
    "road": (90, 80, 100),
    "tree": (20, 100, 50),
    "car": (30, 40, 160),
    "pole": (230, 200, 60),
    "person": (220, 40, 60),
}
LABELS = Labels(tuple(CLASSES), tuple(CLASSES.values()))
SKY, HILL, BUILDING, GRASS, ROAD, TREE, CAR, POLE, PERSON = range(len(CLASSES))


def draw(split: str, index: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        split: any name; seeds the scene together with `index`.
        index: number of the scene.
        size: side in pixels.

    Returns:
        Image uint8 RGB (size, size, 3) and mask uint8 (size, size) with ids 0 .. 8 and 255.
    """
    rng = np.random.default_rng((zlib.crc32(split.encode()), index))
    canvas = _Canvas(size, rng)
    horizon = int(size * rng.uniform(0.35, 0.55))
    canvas.sky(horizon)
    canvas.hills(horizon)
    canvas.ground(horizon)
    for _ in range(rng.integers(1, 4)):
        canvas.building(horizon)
    things = [canvas.tree, canvas.car, canvas.pole, canvas.person, canvas.pole, canvas.car]
    depths = np.sort(rng.uniform(0.1, 1.0, size=rng.integers(5, 10)))
    for i, depth in enumerate(depths):  # far to near, so that near things occlude
        order = i if i < 4 else int(rng.integers(len(things)))
        things[order % len(things)](horizon, float(depth))
    return canvas.finish()


class _Canvas:
    """An image and its mask, painted together from far to near."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        self.image = np.zeros((size, size, 3), np.float32)
        self.mask = np.zeros((size, size), np.uint8)
        self.noise = rng.standard_normal((size, size, 1), dtype=np.float32)

    def paint(self, region: np.ndarray, colour: np.ndarray, label: int, grain: float) -> None:
        """Fill a boolean region with a colour, grainy texture and a class."""
        base = colour[region] if colour.ndim == 3 else colour
        self.image[region] = base + grain * self.noise[region]
        self.mask[region] = label

    def tint(self, *colour: int, spread: float = 18.0) -> np.ndarray:
        return np.array(colour, np.float32) + self.rng.normal(0, spread, 3).astype(np.float32)

    def sky(self, horizon: int) -> None:
        ramp = np.linspace(0, 1, self.size, dtype=np.float32)[:, None, None]
        top, low = self.tint(95, 145, 210), self.tint(200, 210, 225, spread=10)
        field = np.broadcast_to(top * (1 - ramp) + low * ramp, self.image.shape)
        self.paint(np.ones(self.mask.shape, bool), field.copy(), SKY, 3)
        for _ in range(self.rng.integers(0, 4)):  # clouds are sky
            centre = (int(self.rng.integers(self.size)), int(self.rng.integers(max(horizon, 1))))
            axes = (int(self.rng.integers(8, 26)), int(self.rng.integers(3, 8)))
            cv2.ellipse(self.image, centre, axes, 0, 0, 360, (235, 238, 240), -1)

    def hills(self, horizon: int) -> None:
        x = np.arange(self.size)
        waves = sum(
            self.rng.uniform(3, 9)
            * np.sin(x * self.rng.uniform(0.02, 0.09) + self.rng.uniform(0, 6))
            for _ in range(3)
        )
        ridge = horizon - 10 - waves
        region = np.arange(self.size)[:, None] > ridge[None]
        self.paint(region, self.tint(112, 98, 140, spread=8), HILL, 5)

    def ground(self, horizon: int) -> None:
        below = np.zeros(self.mask.shape, bool)
        below[horizon:] = True
        self.paint(below, self.tint(112, 160, 62, spread=12), GRASS, 14)
        vanish, left, right = self.rng.uniform((0.3, -0.35, 0.7), (0.7, 0.3, 1.35)) * self.size
        corners = np.array([[vanish - 4, horizon], [vanish + 4, horizon],
                            [right, self.size], [left, self.size]], np.int32)  # fmt: skip
        region = self.fill_polygon(corners)
        self.paint(region, self.tint(96, 94, 100, spread=7), ROAD, 5)
        self.road = (vanish, left, right)
        for a in np.linspace(0.1, 0.9, 5):  # lane markings are road
            y0 = horizon + (self.size - horizon) * a
            x0 = vanish + ((left + right) / 2 - vanish) * a
            end = (int(x0), int(y0 + 1 + 5 * a))
            cv2.line(self.image, (int(x0), int(y0)), end, (215, 215, 205), 1 + int(2 * a))

    def building(self, horizon: int) -> None:
        width, height = int(self.rng.integers(18, 44)), int(self.rng.integers(22, 58))
        left, foot = (
            int(self.rng.integers(-8, self.size - 10)),
            horizon + int(self.rng.integers(0, 6)),
        )
        region = self.box(left, foot - height, width, height)
        wall = self.tint(*((165, 105, 80), (175, 165, 140), (140, 120, 110))[self.rng.integers(3)])
        self.paint(region, wall, BUILDING, 6)
        glass = self.tint(60, 70, 90)
        for y in range(foot - height + 4, foot - 4, 8):
            for x in range(left + 3, left + width - 4, 7):
                self.image[self.box(x, y, 4, 5) & region] = glass

    def tree(self, horizon: int, depth: float) -> None:
        x, foot = self.stand(horizon, depth)
        radius = int(6 + 14 * depth)
        trunk = self.box(x - 1, foot - radius, 2 + int(2 * depth), radius)
        self.paint(trunk, self.tint(80, 55, 35, spread=8), TREE, 5)
        leaves = np.zeros(self.mask.shape, np.uint8)
        for _ in range(5):
            dx, dy = self.rng.integers(-radius // 2, radius // 2 + 1, 2)
            centre = (int(x + dx), int(foot - radius * 1.6 + dy))
            cv2.circle(leaves, centre, max(2, radius * 2 // 3), 1, -1)
        self.paint(leaves > 0, self.tint(38, 98, 45, spread=10), TREE, 20)

    def car(self, horizon: int, depth: float) -> None:
        vanish, left, right = self.road
        foot = int(horizon + 6 + (self.size - horizon - 8) * depth)
        width, height = int(12 + 26 * depth), int(7 + 12 * depth)
        lane = self.rng.uniform(0.25, 0.75)
        x = int(vanish + ((1 - lane) * left + lane * right - vanish) * depth) - width // 2
        body = self.box(x, foot - height, width, height // 2 + 1)
        body |= self.box(x, foot - height // 2, width, height // 2)
        cabin = self.box(x + width // 5, foot - int(height * 1.5), width * 3 // 5, height // 2 + 1)
        paint = ((190, 30, 35), (30, 60, 180), (235, 235, 235), (30, 30, 36), (225, 170, 30))
        self.paint(body | cabin, self.tint(*paint[self.rng.integers(5)], spread=6), CAR, 4)
        inner = self.box(
            x + width // 5 + 1, foot - int(height * 1.5) + 1, width * 3 // 5 - 2, height // 2 - 1
        )
        self.image[inner] = (150, 185, 205)
        for wheel in (x + width // 5, x + width * 4 // 5):
            disc = np.zeros(self.mask.shape, np.uint8)
            cv2.circle(disc, (wheel, foot), max(2, height // 4), 1, -1)
            self.paint(disc > 0, np.array((25, 25, 25), np.float32), CAR, 2)

    def pole(self, horizon: int, depth: float) -> None:
        x, foot = self.stand(horizon, depth)
        height, thick = int(26 + 46 * depth), 2 + int(2.2 * depth)
        region = self.box(x, foot - height, thick, height)
        region |= self.box(x - 3 - thick, foot - height, 6 + 3 * thick, 3 + int(4 * depth))
        self.paint(region, self.tint(215, 190, 70, spread=12), POLE, 4)

    def person(self, horizon: int, depth: float) -> None:
        x, foot = self.stand(horizon, depth)
        height = int(12 + 22 * depth)
        width = max(4, height * 2 // 5)
        shape = np.zeros(self.mask.shape, np.uint8)
        head = max(2, height // 7)
        cv2.circle(shape, (x, foot - height + head), head, 1, -1)
        skin = shape > 0
        torso = self.box(x - width // 2, foot - height + 2 * head, width, height // 2)
        legs = self.box(x - width // 2, foot - height // 2, width, height // 2)
        self.paint(legs, self.tint(45, 45, 75, spread=12), PERSON, 4)
        self.paint(torso, self.tint(205, 60, 90, spread=25), PERSON, 4)
        self.paint(skin, self.tint(215, 165, 135, spread=12), PERSON, 4)

    def stand(self, horizon: int, depth: float) -> tuple[int, int]:
        """A place on the ground at this depth (0 far, 1 near): (x, y of the foot)."""
        foot = horizon + 4 + (self.size - horizon - 6) * depth
        return int(self.rng.integers(4, self.size - 4)), int(foot)

    def box(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        region = np.zeros(self.mask.shape, bool)
        region[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
        return region

    def fill_polygon(self, corners: np.ndarray) -> np.ndarray:
        region = np.zeros(self.mask.shape, np.uint8)
        cv2.fillPoly(region, [corners], 1)
        return region > 0

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Light the scene, add sensor noise, and ignore the pixels where two classes meet."""
        slope = np.linspace(-0.5, 0.5, self.size, dtype=np.float32) * self.rng.uniform(-0.5, 0.5)
        light = self.rng.uniform(0.7, 1.2) * (1 + slope[None, :, None])
        cast = self.rng.uniform(0.92, 1.08, 3).astype(np.float32)
        image = cv2.GaussianBlur(self.image, (3, 3), 0.6) * light * cast
        image += 3 * self.rng.standard_normal(image.shape, dtype=np.float32)
        edge = np.zeros(self.mask.shape, bool)
        edge[:, 1:] |= self.mask[:, 1:] != self.mask[:, :-1]
        edge[1:] |= self.mask[1:] != self.mask[:-1]
        mask = np.where(edge, IGNORE, self.mask).astype(np.uint8)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask
