"""Synthetic scenes with exact labels: handwritten digits and street views.

Every function draws with the generator it is given, so equal generators give
equal images. Images are BGR and float, 0 to 255, until ``finish``.
"""
import cv2
import numpy as np

# Cityscapes train ids of what ``street_scene`` draws.
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN = range(8)
VEGETATION, TERRAIN, SKY, PERSON = 8, 9, 10, 11
CAR, TRUCK, BUS = 13, 14, 15
IGNORE = 255
# The first digits are drawn in training images, the other 597 in test images.
TRAIN_DIGITS = 1200


class Digits:
    """The handwritten digits of one split, by class."""

    def __init__(self, train):
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError('the digits come from scikit-learn, which is '
                              'missing: pip install scikit-learn') from error
        data = load_digits()
        part = slice(TRAIN_DIGITS) if train else slice(TRAIN_DIGITS, None)
        images, labels = data.images[part] / 16., data.target[part]
        self._images = [images[labels == label] for label in range(10)]

    def draw(self, rng, label, size):
        """A warped digit as an opacity map, cropped to what is visible."""
        image = self._images[label][rng.integers(len(self._images[label]))]
        image = cv2.resize(image, (48, 48), interpolation=cv2.INTER_CUBIC)
        image = np.pad(image, 24)
        angle = rng.uniform(-20, 20)
        matrix = cv2.getRotationMatrix2D((48, 48), angle, 1.)
        matrix[0, 1] += rng.uniform(-.2, .2)
        matrix[0, 0] *= rng.uniform(.8, 1.2)
        matrix[:, 2] += 48 - matrix @ (48, 48, 1)
        image = cv2.warpAffine(image, matrix, (96, 96))
        # The threshold is the pen: low is bold, high is thin.
        image = np.clip((image - rng.uniform(.25, .5)) * 4 + .5, 0, 1)
        image = crop_visible(image)
        scale = size / max(image.shape)
        shape = [max(int(round(scale * side)), 3) for side in image.shape]
        return cv2.resize(image, tuple(shape[::-1]),
                          interpolation=cv2.INTER_AREA)


def crop_visible(image):
    rows = np.flatnonzero(image.max(1) > .3)
    columns = np.flatnonzero(image.max(0) > .3)
    return image[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def ring(opacity, thickness):
    """The opacity map with a circle around it."""
    radius = int(np.ceil(np.hypot(*opacity.shape) / 2)) + thickness
    plate = np.zeros((2 * radius + 1, 2 * radius + 1))
    top, left = ((radius * 2 + 1 - side) // 2 for side in opacity.shape)
    plate[top:top + opacity.shape[0], left:left + opacity.shape[1]] = opacity
    circle = np.zeros(plate.shape, np.uint8)
    cv2.circle(circle, (radius, radius), radius - thickness // 2 - 1, 255,
               thickness, cv2.LINE_AA)
    return np.maximum(plate, circle / 255.)


# Outlines of signs: corners (0: none; 64: a circle) and turn in degrees.
OUTLINES = ((0, 0), (64, 0), (3, -90), (3, 90), (4, 0), (4, 45), (5, -90),
            (5, 90), (6, 0), (8, 22.5))


def outlined(opacity, outline, side):
    """The opacity map in the middle of a square plate, with an outline.

    Args:
        opacity (ndarray): A digit.
        outline (tuple[int, float]): One of ``OUTLINES``.
        side (int): Side of the plate, in pixels.
    """
    corners, turn = outline
    plate = np.zeros((side, side))
    top, left = ((side - part) // 2 for part in opacity.shape)
    plate[top:top + opacity.shape[0], left:left + opacity.shape[1]] = opacity
    if corners:
        angles = np.radians(turn) + np.arange(corners) * 2 * np.pi / corners
        points = np.stack([np.cos(angles), np.sin(angles)], 1)
        # As wide as the plate, wherever the corners are.
        points = (points - points.min(0)) / (points.max(0) - points.min(0))
        lines = np.zeros(plate.shape, np.uint8)
        cv2.polylines(lines, [np.int32(1.5 + points * (side - 4))], True, 255,
                      2, cv2.LINE_AA)
        plate = np.maximum(plate, lines / 255.)
    return plate


def colour(rng, low=0, high=255):
    return rng.uniform(low, high, 3)


def texture(rng, height, width, grid, strength):
    """Smooth random colours: a ``grid``-cell noise, enlarged."""
    noise = rng.uniform(-1, 1, (grid, grid, 3))
    return strength * cv2.resize(noise, (width, height),
                                 interpolation=cv2.INTER_CUBIC)


def background(rng, height, width):
    image = np.empty((height, width, 3))
    image[:] = colour(rng, 20, 140)
    image += texture(rng, height, width, 3, 30)
    image += texture(rng, height, width, 9, 15)
    if rng.random() < .4:
        y, x = np.mgrid[:height, :width]
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 16)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi /
                      period)
        image += 15 * wave[..., None] * rng.uniform(-1, 1, 3)
    return image


def clutter(rng, image, count, size):
    """Unlabelled strokes: the parts that digits and rings are made of."""
    height, width = image.shape[:2]
    for _ in range(count):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        thickness = int(rng.integers(1, 4))
        ink = tuple(colour(rng))
        if rng.random() < .5:
            axes = tuple(int(a) for a in rng.integers(3, size // 2 + 4, 2))
            start = rng.uniform(0, 360)
            cv2.ellipse(image, centre, axes, rng.uniform(0, 180), start,
                        start + rng.uniform(60, 200), ink, thickness,
                        cv2.LINE_AA)
        else:
            shift = rng.integers(-size, size + 1, 2)
            end = (centre[0] + int(shift[0]), centre[1] + int(shift[1]))
            cv2.line(image, centre, end, ink, thickness, cv2.LINE_AA)


def paste(rng, image, opacity, left, top, contrast):
    """Blend an object in, ``contrast`` or more grey levels brighter."""
    height, width = opacity.shape
    area = image[top:top + height, left:left + width]
    ink = colour(rng)
    ink = ink + max(area.mean() + contrast - ink.mean(), 0)
    opacity = opacity[..., None]
    area[:] = area * (1 - opacity) + np.clip(ink, 0, 255) * opacity


def finish(rng, image, noise=(3, 15), blur=.8):
    """Camera: light falloff, blur and sensor noise; then 8 bits."""
    height, width = image.shape[:2]
    light = np.linspace(rng.uniform(.75, 1.1), rng.uniform(.75, 1.1), width)
    image = image * light[None, :, None]
    sigma = rng.uniform(0, blur)
    if sigma > .2:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    grain = rng.standard_normal(image.shape, np.float32)
    image = image + rng.uniform(*noise) * grain
    return np.clip(image, 0, 255).astype(np.uint8)


def classification_scene(rng, digits, label, size=32):
    """Image of one digit; labels 10 to 19 are digits inside a ring."""
    image = background(rng, size, size)
    clutter(rng, image, int(rng.integers(0, 3)), 12)
    if label < 10:
        opacity = digits.draw(rng, label, rng.uniform(.6, .85) * size)
    else:
        glyph = digits.draw(rng, label - 10, rng.uniform(.45, .55) * size)
        opacity = ring(glyph, 2)[:size, :size]
    top, left = (int(rng.integers(size - side + 1))
                 for side in opacity.shape)
    paste(rng, image, opacity, left, top, 110)
    return finish(rng, image, (3, 12), .7)


def sign_scene(rng, digits, label, size=32):
    """Image of a sign: a digit (``label % 10``) and an outline around it."""
    image = background(rng, size, size)
    clutter(rng, image, int(rng.integers(1, 5)), 14)
    glyph = digits.draw(rng, label % 10, rng.uniform(.36, .44) * size)
    opacity = outlined(glyph, OUTLINES[label // 10],
                       int(rng.integers(size - 7, size - 1)))
    top, left = (int(rng.integers(size - side + 1))
                 for side in opacity.shape)
    paste(rng, image, opacity, left, top, 80)
    clutter(rng, image, int(rng.integers(0, 2)), 6)  # in front of it
    return finish(rng, image, (4, 16), .8)


def detection_scene(rng, digits, size=128):
    """Image and its objects: list of (label, xmin, ymin, xmax, ymax)."""
    image = background(rng, size, size)
    clutter(rng, image, int(rng.integers(3, 9)), 40)
    objects = []
    for _ in range(int(rng.integers(1, 6))):
        label = int(rng.integers(10))
        opacity = digits.draw(rng, label, rng.uniform(22, 56))
        height, width = opacity.shape
        for _ in range(20):
            left = int(rng.integers(size - width + 1))
            top = int(rng.integers(size - height + 1))
            box = (left, top, left + width, top + height)
            if all(overlap(box, other[1:]) < .15 for other in objects):
                break
        else:
            continue
        paste(rng, image, opacity, left, top, 90)
        objects.append((label, *box))
    clutter(rng, image, int(rng.integers(0, 4)), 14)
    return finish(rng, image), objects


def overlap(box, other):
    """Shared area as a part of the smaller box."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(width, 0) * max(height, 0) / smaller


class Street:
    """An image and its label map, drawn together from far to near."""

    def __init__(self, rng, digits, height, width):
        self.rng, self.digits = rng, digits
        self.height, self.width = height, width
        self.image = np.zeros((height, width, 3))
        self.labels = np.full((height, width), IGNORE, np.uint8)

    def fill(self, mask, label, look):
        self.image[mask] = look[mask] if np.ndim(look) == 3 else look
        self.labels[mask] = label

    def polygon(self, points, label, look):
        mask = np.zeros(self.labels.shape, np.uint8)
        cv2.fillPoly(mask, [np.int32(points)], 1)
        self.fill(mask > 0, label, look)

    def box(self, left, top, right, bottom, label, look):
        mask = np.zeros(self.labels.shape, bool)
        # A negative bound would count from the image's other side.
        left, top, right, bottom = (max(int(bound), 0) for bound in
                                    (left, top, right, bottom))
        mask[top:bottom, left:right] = True
        self.fill(mask, label, look)

    def ellipse(self, centre, axes, label, look):
        mask = np.zeros(self.labels.shape, np.uint8)
        cv2.ellipse(mask, tuple(int(c) for c in centre),
                    tuple(max(int(a), 1) for a in axes), 0, 0, 360, 1, -1)
        self.fill(mask > 0, label, look)

    def surface(self, base, spread, grid, strength, grain=0):
        """A textured colour near ``base`` for the whole image."""
        rng = self.rng
        look = np.asarray(base) + rng.uniform(-spread, spread, 3)
        look = look + texture(rng, self.height, self.width, grid, strength)
        if grain:
            look = look + grain * rng.standard_normal((*look.shape[:2], 1))
        return look

    def tiles(self, look, period_x, period_y, depth):
        """Darken a grid of lines: windows, bricks, paving."""
        look = look.copy()
        y, x = np.mgrid[:self.height, :self.width]
        look[(x % period_x == 0) | (y % period_y == 0)] -= depth
        return look

    def grey(self):
        return np.full(3, self.rng.uniform(70, 170))

    def ground(self, horizon):
        rng, width, height = self.rng, self.width, self.height
        grass = self.surface((60, 115, 95), 35, 24, 22, 14)
        self.box(0, horizon, width, height, TERRAIN, grass)
        middle = rng.uniform(.35, .65) * width
        far, near = rng.uniform(.06, .12) * width, rng.uniform(.3, .5) * width
        side = rng.uniform(1.3, 1.7)
        paving = self.tiles(self.surface(self.grey() + 20, 12, 6, 8),
                            int(rng.integers(6, 10)), 5, 22)
        asphalt = self.surface(self.grey() - 10, 8, 6, 8, 5)
        for spread, label, look in ((side, SIDEWALK, paving),
                                    (1, ROAD, asphalt)):
            self.polygon([(middle - far * spread, horizon),
                          (middle + far * spread, horizon),
                          (middle + near * spread, height),
                          (middle - near * spread, height)], label, look)
        for step in range(4):
            top = horizon + (height - horizon) * (.15 + .25 * step)
            self.box(middle - 1, top, middle + 1, top + 5, ROAD,
                     self.grey() + 80)

    def skyline(self, horizon):
        rng, width = self.rng, self.width
        sky = self.surface((205, 180, 160), 35, 3, 18)
        self.box(0, 0, width, horizon, SKY, sky)
        left = int(rng.integers(-20, 20))
        while left < width:
            right = left + int(rng.integers(18, 50))
            kind = rng.random()
            top = horizon * rng.uniform(.1, .7)
            if kind < .5:
                look = self.tiles(self.surface(colour(rng, 60, 190), 10, 3, 8),
                                  int(rng.integers(4, 8)),
                                  int(rng.integers(4, 8)), 40)
                self.box(left, top, right, horizon, BUILDING, look)
            elif kind < .85:
                look = self.surface((60, 110, 80), 35, 30, 32, 16)
                for _ in range(4):
                    self.ellipse((rng.uniform(left, right),
                                  rng.uniform(top, horizon)),
                                 rng.uniform(6, 15, 2), VEGETATION, look)
            left = right
        for label in (WALL, FENCE):
            if rng.random() < .55:
                self.barrier(label, horizon)

    def barrier(self, label, horizon):
        rng = self.rng
        left = int(rng.integers(0, self.width - 40))
        right = left + int(rng.integers(35, 80))
        top = horizon - rng.uniform(4, 9)
        bottom = horizon + rng.uniform(3, 7)
        if label == WALL:
            look = self.tiles(self.surface(colour(rng, 80, 170), 8, 3, 6),
                              6, 3, 25)
            self.box(left, top, right, bottom, WALL, look)
        else:
            mask = np.zeros(self.labels.shape, bool)
            mask[int(top):int(bottom), left:right] = True
            self.labels[mask] = FENCE
            # Bars only: the scene behind shows through.
            mask[:, (np.arange(self.width) % 4) > 1] = False
            mask[int(top), left:right] = True
            self.image[mask] = colour(rng, 20, 120)

    def vehicle(self, label, x, foot, size):
        rng = self.rng
        paint = self.surface(colour(rng, 30, 230), 5, 3, 10)
        dark = np.full(3, rng.uniform(15, 50))
        length, height = {CAR: (2.1, .62), TRUCK: (2.3, 1.15),
                          BUS: (2.9, 1.1)}[label]
        length, height = size * length, size * height
        top, right = foot - height, x + length
        if label == CAR:
            self.box(x, foot - .65 * height, right, foot, CAR, paint)
            self.polygon([(x + .15 * length, foot - .6 * height),
                          (x + .3 * length, top), (x + .7 * length, top),
                          (x + .88 * length, foot - .6 * height)], CAR, dark)
        elif label == BUS:
            self.box(x, top, right, foot, BUS, paint)
            for part in range(4):
                window = x + length * (.06 + .24 * part)
                self.box(window, top + .2 * height, window + .17 * length,
                         top + .55 * height, BUS, dark)
        else:
            self.box(x, top, x + .68 * length, foot, TRUCK, paint)
            cab = colour(rng, 30, 230)
            self.box(x + .7 * length, foot - .65 * height, right, foot, TRUCK,
                     cab)
            self.box(x + .82 * length, foot - .58 * height, right,
                     foot - .32 * height, TRUCK, dark)
        for wheel in (.2, .8):
            self.ellipse((x + wheel * length, foot), (.17 * size, .17 * size),
                         label, dark * .6)

    def person(self, x, foot, size):
        rng = self.rng
        wide = .16 * size
        self.box(x - wide * .7, foot - .5 * size, x + wide * .7, foot, PERSON,
                 colour(rng, 10, 140))
        self.ellipse((x, foot - .6 * size), (wide, .25 * size), PERSON,
                     colour(rng, 20, 235))
        self.ellipse((x, foot - .92 * size), (.11 * size, .12 * size), PERSON,
                     np.array((120, 150, 190)) * rng.uniform(.4, 1.1))

    def pole(self, x, foot, size, kind):
        rng = self.rng
        top = foot - 2 * size
        self.box(x - 1, top, x + 2, foot, POLE, self.grey() * .8)
        half = .3 * size
        if kind == LIGHT:
            self.box(x - half, top - half, x + half, top + 3 * half, LIGHT,
                     np.full(3, rng.uniform(15, 60)))
            lamps = ((40, 40, 220), (40, 190, 220), (60, 200, 60))
            for step, lamp in enumerate(lamps):
                lit = 1 if step == rng.integers(3) else .45
                self.ellipse((x, top + half * step), (half * .5, half * .5),
                             LIGHT, np.array(lamp) * lit)
        elif kind == SIGN:
            self.ellipse((x, top), (1.6 * half, 1.6 * half), SIGN,
                         colour(rng, 20, 230))
            self.ellipse((x, top), (1.1 * half, 1.1 * half), SIGN,
                         colour(rng, 10, 90))
            opacity = self.digits.draw(rng, int(rng.integers(10)), 1.6 * half)
            left, upper = (int(centre - side / 2) for centre, side in
                           zip((x, top), opacity.shape[::-1]))
            inside = 0 <= left and left + opacity.shape[1] < self.width
            if inside and upper >= 0:
                paste(rng, self.image, opacity, left, upper, 90)


def street_scene(rng, digits, height=96, width=192):
    """Image and its map of Cityscapes train ids."""
    street = Street(rng, digits, height, width)
    horizon = int(rng.uniform(.38, .5) * height)
    street.skyline(horizon)
    street.ground(horizon)
    kinds = (CAR, CAR, TRUCK, BUS, PERSON, PERSON, LIGHT, SIGN, POLE)
    feet = np.sort(rng.uniform(horizon + 4, height - 6,
                               int(rng.integers(5, 10))))
    # Far to near, larger the nearer: perspective and occlusion.
    for foot in feet:
        kind = kinds[rng.integers(len(kinds))]
        size = 13 + .55 * (foot - horizon)
        x = rng.uniform(-.05, .95) * width
        if kind in (CAR, TRUCK, BUS):
            street.vehicle(kind, x, foot, size * rng.uniform(.85, 1.15))
        elif kind == PERSON:
            street.person(x, foot, 1.35 * size)
        else:
            street.pole(x, foot, size, kind)
    # As in Cityscapes, the camera car's bonnet is not evaluated.
    street.ellipse((width // 2, height + 2), (width // 3, 6), IGNORE,
                   street.grey() * .5)
    return finish(rng, street.image, (3, 12), .8), street.labels
