"""An endless procedural world of captioned pictures.

Every scene shows one or two objects of 12 kinds in 10 colours before one of 8 backgrounds, with a caption
that says so: "a photo of a small red ball on a beach".  Sizes are in pixels: a picture smaller than 100 pixels
is a close-up of one object.  Everything is drawn at twice the size and reduced,
so edges are smooth.  `python world.py [OUT.png]` writes a contact sheet of 32 scenes.
"""
import math
import random
import sys

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 40, 40), "blue": (45, 90, 225), "green": (40, 165, 55),
    "yellow": (250, 215, 45), "purple": (130, 55, 190), "orange": (245, 130, 25),
    "pink": (250, 150, 190), "black": (35, 35, 40), "white": (248, 248, 248),
    "brown": (125, 75, 40),
}
BACKGROUNDS = ("on a beach", "in a forest", "at night", "in the snow",
               "on a meadow", "in the desert", "under water", "in a room")
OBJECTS = ("ball", "cube", "star", "heart", "house", "tree",
           "car", "cat", "flower", "fish", "mushroom", "boat")
SIZES = {"small": (44, 50), "": (56, 72), "big": (86, 100), "close": (44, 58), "pair": (50, 58)}    # pixels
PREFIXES = ("", "", "", "a photo of ", "a picture of ")
SCALE = 2
DARK_LINE, LIGHT_LINE = (25, 25, 30), (225, 225, 225)


def jitter(colour, rng, amount=12):
    """A colour near `colour`."""
    return tuple(max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)


def shade(colour, factor):
    """`colour` made darker (factor below 1) or lighter (above 1)."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)
    return tuple(int(c + (255 - c) * (factor - 1)) for c in colour)


def gradient(draw, box, top, bottom):
    """Fill `box` with a vertical colour gradient."""
    x0, y0, x1, y1 = box
    for y in range(y0, y1):
        t = (y - y0) / max(1, y1 - y0)
        draw.line([(x0, y), (x1, y)], fill=tuple(int(a + (b - a) * t) for a, b in zip(top, bottom)))


def dots(draw, rng, area, count, size, colour):
    """Scatter `count` discs over `area`."""
    x0, y0, x1, y1 = area
    for _ in range(count):
        x, y = rng.randint(x0, x1), rng.randint(y0, y1)
        draw.ellipse([x, y, x + size, y + size], fill=colour)


# ---- backgrounds: each draws the whole picture, `h` is the height of the horizon --------------------------

def _beach(d, w, s, h, rng):
    gradient(d, (0, 0, w, h), jitter((120, 190, 245), rng), jitter((205, 232, 250), rng))
    d.rectangle([0, h - s // 7, w, h], fill=jitter((35, 110, 190), rng))
    gradient(d, (0, h, w, s), jitter((245, 222, 160), rng), jitter((228, 198, 130), rng))
    x = rng.randint(8, w - 50)
    d.ellipse([x, 14, x + 40, 54], fill=(255, 240, 130))


def _forest(d, w, s, h, rng):
    gradient(d, (0, 0, w, s), jitter((140, 190, 140), rng), jitter((85, 140, 85), rng))
    for i in range(w // 40):
        x, thick = i * 40 + rng.randint(0, 22), rng.randint(12, 20)
        d.rectangle([x, 0, x + thick, h + 16], fill=jitter((80, 55, 35), rng))
    d.rectangle([0, h + 8, w, s], fill=jitter((50, 95, 45), rng))


def _night(d, w, s, h, rng):
    gradient(d, (0, 0, w, h), jitter((8, 10, 40), rng, 6), jitter((35, 38, 95), rng))
    dots(d, rng, (0, 0, w, h - 12), w // 10, 4, (250, 250, 215))
    x = rng.randint(8, w - 54)
    d.ellipse([x, 12, x + 44, 56], fill=(240, 240, 215))
    d.rectangle([0, h, w, s], fill=jitter((22, 26, 48), rng, 6))


def _snow(d, w, s, h, rng):
    gradient(d, (0, 0, w, h), jitter((165, 185, 210), rng), jitter((205, 216, 230), rng))
    d.rectangle([0, h, w, s], fill=jitter((240, 244, 250), rng, 6))
    dots(d, rng, (0, 0, w, s), w // 6, 6, (255, 255, 255))


def _meadow(d, w, s, h, rng):
    gradient(d, (0, 0, w, h), jitter((95, 170, 245), rng), jitter((180, 220, 250), rng))
    gradient(d, (0, h, w, s), jitter((125, 205, 80), rng), jitter((80, 165, 50), rng))
    for _ in range(3):
        x, y = rng.randint(0, w), rng.randint(6, 50)
        d.ellipse([x - 25, y, x + 30, y + 20], fill=(250, 250, 252))


def _desert(d, w, s, h, rng):
    gradient(d, (0, 0, w, h), jitter((245, 175, 105), rng), jitter((250, 220, 165), rng))
    gradient(d, (0, h, w, s), jitter((222, 160, 85), rng), jitter((190, 125, 60), rng))
    x = rng.randint(30, w - 30)
    d.polygon([(x - 65, h), (x, h - 60), (x + 65, h)], fill=jitter((185, 125, 70), rng))
    d.polygon([(x, h - 60), (x + 65, h), (x + 15, h)], fill=jitter((150, 98, 55), rng))


def _water(d, w, s, h, rng):
    gradient(d, (0, 0, w, s), jitter((45, 130, 195), rng), jitter((10, 45, 110), rng))
    for _ in range(w // 16):
        x, y, q = rng.randint(0, w), rng.randint(0, s - 40), rng.randint(5, 11)
        d.ellipse([x, y, x + q, y + q], outline=(190, 220, 245), width=2)
    d.rectangle([0, s - s // 9, w, s], fill=jitter((150, 138, 100), rng))


def _room(d, w, s, h, rng):
    d.rectangle([0, 0, w, h + 20], fill=jitter((228, 208, 182), rng))
    d.rectangle([0, h + 20, w, s], fill=jitter((150, 98, 62), rng))
    x = rng.randint(8, w - 80)
    d.rectangle([x, 18, x + 66, 84], fill=jitter((150, 200, 240), rng), outline=(252, 252, 252), width=6)
    d.line([(x + 33, 18), (x + 33, 84)], fill=(252, 252, 252), width=5)


_PAINTERS = dict(zip(BACKGROUNDS, (_beach, _forest, _night, _snow, _meadow, _desert, _water, _room)))


def background(name, rng, width=128, height=128):
    """A picture of the surroundings alone, at SCALE times the size asked for."""
    w, s = width * SCALE, height * SCALE
    image = Image.new("RGB", (w, s))
    _PAINTERS[name](ImageDraw.Draw(image), w, s, int(s * rng.uniform(0.46, 0.64)), rng)
    return image


class Pen:
    """Draws outlined shapes in the unit square placed at (x, y) with side `size`."""

    def __init__(self, draw, x, y, size, line):
        self.draw, self.x, self.y, self.size, self.line = draw, x, y, size, line
        self.width = max(3, round(size / 36))

    def _at(self, a, b):
        return self.x + a * self.size, self.y + b * self.size

    def oval(self, a, b, w, h, fill, outline=True):
        self.draw.ellipse([*self._at(a, b), *self._at(a + w, b + h)], fill=fill,
                          outline=self.line if outline else None, width=self.width)

    def box(self, a, b, w, h, fill, outline=True):
        self.draw.rectangle([*self._at(a, b), *self._at(a + w, b + h)], fill=fill,
                            outline=self.line if outline else None, width=self.width)

    def poly(self, points, fill, outline=True):
        path = [self._at(a, b) for a, b in points]
        self.draw.polygon(path, fill=fill)
        if outline:
            self.draw.line(path + path[:2], fill=self.line, width=self.width, joint="curve")

    def half_disc(self, a, b, w, h, fill):
        box = [*self._at(a, b), *self._at(a + w, b + h)]
        self.draw.pieslice(box, 180, 360, fill=fill, outline=self.line, width=self.width)


# ---- objects: each draws itself with a pen in the unit square ----------------------------------------------

def _ball(p, c):
    p.oval(0.02, 0.02, 0.96, 0.96, c)
    p.oval(0.2, 0.14, 0.26, 0.22, shade(c, 1.6), False)


def _cube(p, c):
    p.poly([(.08, .3), (.62, .3), (.62, .96), (.08, .96)], c)
    p.poly([(.08, .3), (.36, .06), (.94, .06), (.62, .3)], shade(c, 1.4))
    p.poly([(.62, .3), (.94, .06), (.94, .7), (.62, .96)], shade(c, .65))


def _star(p, c):
    radius = (.52, .22)
    p.poly([(.5 + radius[i % 2] * math.sin(i * math.pi / 5), .54 - radius[i % 2] * math.cos(i * math.pi / 5))
            for i in range(10)], c)


def _heart(p, c):
    points = []
    for i in range(40):
        t = i * math.pi / 20
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((.5 + x / 34, .46 - y / 34))
    p.poly(points, c)


def _house(p, c):
    p.box(.15, .44, .7, .54, c)
    p.poly([(.02, .46), (.5, .02), (.98, .46)], shade(c, .6))
    p.box(.56, .62, .2, .36, (95, 60, 35))
    p.box(.25, .58, .2, .2, (210, 235, 250))


def _tree(p, c):
    p.box(.42, .78, .16, .2, (110, 70, 40))
    for top, half in ((.44, .46), (.23, .38), (.02, .29)):
        p.poly([(.5, top), (.5 + half, top + .36), (.5 - half, top + .36)], c)


def _car(p, c):
    p.poly([(.18, .48), (.32, .2), (.7, .2), (.86, .48)], shade(c, 1.2))
    p.poly([(.35, .26), (.49, .26), (.49, .45), (.26, .45)], (210, 235, 250), False)
    p.poly([(.54, .26), (.67, .26), (.76, .45), (.54, .45)], (210, 235, 250), False)
    p.box(.0, .45, 1., .27, c)
    for x in (.12, .64):
        p.oval(x, .6, .25, .25, (45, 45, 50))
        p.oval(x + .08, .68, .09, .09, (200, 200, 205), False)


def _cat(p, c):
    p.poly([(.08, .5), (.12, .02), (.46, .26)], c)
    p.poly([(.92, .5), (.88, .02), (.54, .26)], c)
    p.oval(.05, .18, .9, .8, c)
    for x in (.22, .58):
        p.oval(x, .4, .2, .22, (245, 250, 215))
        p.oval(x + .07, .44, .07, .15, (20, 20, 20), False)
    p.poly([(.43, .68), (.57, .68), (.5, .78)], (240, 140, 150))


def _flower(p, c):
    p.box(.46, .55, .08, .44, (50, 140, 50))
    p.oval(.54, .72, .28, .13, (50, 140, 50))
    for i in range(6):
        a = i * math.pi / 3
        p.oval(.34 + .24 * math.cos(a), .2 + .22 * math.sin(a), .32, .32, c)
    p.oval(.37, .23, .26, .26, (250, 225, 90) if c[2] > 90 or c[1] < 190 else (120, 75, 40))


def _fish(p, c):
    p.poly([(.66, .5), (1., .16), (1., .84)], shade(c, .7))
    p.oval(0, .18, .82, .64, c)
    p.oval(.14, .34, .17, .17, (255, 255, 255))
    p.oval(.18, .38, .08, .08, (0, 0, 0), False)
    p.poly([(.4, .48), (.6, .4), (.6, .6)], shade(c, .7))


def _mushroom(p, c):
    p.box(.36, .5, .28, .46, (245, 232, 208))
    p.half_disc(.0, .06, 1., 1., c)
    for a, b in ((.18, .34), (.43, .16), (.68, .34)):
        p.oval(a, b, .16, .14, (252, 252, 252) if sum(c) < 690 else (200, 60, 60), False)


def _boat(p, c):
    p.box(.46, .04, .06, .64, (100, 70, 40))
    p.poly([(.56, .06), (.56, .58), (.96, .58)], c)
    p.poly([(.42, .16), (.42, .58), (.08, .58)], shade(c, 1.3))
    p.poly([(.02, .66), (.98, .66), (.8, .96), (.2, .96)], shade(c, .75))


_SHAPES = dict(zip(OBJECTS, (_ball, _cube, _star, _heart, _house, _tree,
                             _car, _cat, _flower, _fish, _mushroom, _boat)))


def draw_object(draw, kind, colour_name, x, y, size, rng):
    """Draw one object; dark ones get a light outline so that they show on every ground."""
    line = LIGHT_LINE if colour_name == "black" else DARK_LINE
    _SHAPES[kind](Pen(draw, x, y, size, line), jitter(COLOURS[colour_name], rng, 8))


def article(words):
    """`words` with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def _place_one(w, s, rng):
    """Where a single object goes: x, y, size, the size word and the place word; close-ups have no such words."""
    if min(w, s) < 100 * SCALE:
        word = place = ""
        size = rng.uniform(*SIZES["close"]) * SCALE
        return (w - size) * rng.uniform(.1, .9), (s - size) * rng.uniform(.2, .9), size, word, place
    word = rng.choice(("small", "", "", "", "big"))
    size = rng.uniform(*SIZES[word]) * SCALE
    place = rng.choice(("", "", "", "on the left", "on the right")) if word != "big" else ""
    low, high = {"on the left": (.02, .15), "on the right": (.85, .98)}.get(place, (.3, .7))
    y = (s - size) * rng.uniform(.55, .92)
    return (w - size) * rng.uniform(low, high), y, size, word, place


def _one_object(draw, w, s, rng):
    kind, colour = rng.choice(OBJECTS), rng.choice(list(COLOURS))
    x, y, size, word, place = _place_one(w, s, rng)
    draw_object(draw, kind, colour, x, y, size, rng)
    thing = article(" ".join(filter(None, (word, colour, kind))))
    return " ".join(filter(None, (thing, place)))


def _two_objects(draw, w, s, rng):
    colours = rng.sample(list(COLOURS), 2)
    kinds = rng.sample(OBJECTS, 2)
    for i in range(2):
        size = rng.uniform(*SIZES["pair"]) * SCALE
        x = (w / 2 - size) * rng.uniform(.2, .8) + i * w / 2
        draw_object(draw, kinds[i], colours[i], x, (s - size) * rng.uniform(.55, .9), size, rng)
    first, second = (article(f"{c} {k}") for c, k in zip(colours, kinds))
    return f"{first} and {second}"


def scene(rng, width=128, height=128):
    """One picture and its caption; `rng` (a random.Random) decides everything."""
    where = rng.choice(BACKGROUNDS)
    image = background(where, rng, width, height)
    draw = ImageDraw.Draw(image)
    roomy = min(width, height) >= 112 and rng.random() < .2
    paint = _two_objects if roomy else _one_object
    things = paint(draw, *image.size, rng)
    caption = f"{rng.choice(PREFIXES)}{things} {where}"
    return image.resize((width, height), Image.LANCZOS), caption


def main():
    """Write a contact sheet of 32 scenes and print their captions."""
    rng = random.Random(1)
    sheet = Image.new("RGB", (8 * 130, 4 * 130))
    for i in range(32):
        image, caption = scene(rng)
        sheet.paste(image, (i % 8 * 130, i // 8 * 130))
        print(caption)
    sheet.save(sys.argv[1] if len(sys.argv) > 1 else "world.png")


if __name__ == "__main__":
    main()
