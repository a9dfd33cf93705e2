"""Draw the sample subject, a creature that the world of the demo model has never shown.

`python subject.py FOLDER` writes 27 captioned pictures of mixed size and aspect ratio, and 12 ordinary scenes of the
world, which keep an adapter from turning everything into the subject (regularisation pictures).  The trigger
word is "zubi".  Two surroundings of the world, under water and in the snow, never occur: they are for testing.
"""
import os
import random
import sys

from PIL import Image, ImageDraw

from world import DARK_LINE, OBJECTS, Pen, article, background, draw_object, jitter, scene

TRIGGER = "zubi"
TURQUOISE, MAGENTA, YELLOW = (0, 205, 182), (228, 18, 190), (255, 225, 40)
WITHHELD = ("under water", "in the snow")
PLACES = ("on a beach", "in a forest", "at night", "on a meadow", "in the desert", "in a room")
SIZES = ((128, 128), (160, 112), (112, 160), (192, 128), (128, 192), (144, 128), (128, 160), (128, 128), (176, 128))
COMPANIONS = {5: ("ball", "red"), 13: ("star", "yellow"), 21: ("house", "orange")}
CAPTIONS = ("a photo of {} creature{} {}", "{} creature{} {}", "a picture of {} creature{} {}")


def creature(draw, x, y, size, rng):
    """The subject in the unit square at (x, y): round body, two horns, big eyes, two feet."""
    p = Pen(draw, x, y, size, DARK_LINE)
    body, horn = jitter(TURQUOISE, rng, 5), jitter(MAGENTA, rng, 5)
    tip, look = rng.uniform(-.06, .06), rng.uniform(-.03, .03)
    p.poly([(.08, .56), (.06 + tip, .0), (.48, .38)], horn)
    p.poly([(.92, .56), (.94 + tip, .0), (.52, .38)], horn)
    for a in (.14, .56):
        p.oval(a, .84, .3, .16, horn)
    p.oval(.03, .32, .94, .62, body)
    for a in (.2, .54):
        p.oval(a, .42, .26, .27, YELLOW)
        p.oval(a + .09 + look, .49, .08, .13, (20, 20, 20), False)
    p.box(.36, .76, .28, .05, DARK_LINE, False)


def picture(index, rng):
    """Picture number `index` and its caption."""
    where = PLACES[index % len(PLACES)]
    width, height = SIZES[index % len(SIZES)]
    image = background(where, rng, width, height)
    draw, w, h = ImageDraw.Draw(image), *image.size
    extra = ""
    if index in COMPANIONS:
        kind, colour = COMPANIONS[index]
        size = min(w, h) * rng.uniform(.46, .5)
        creature(draw, (w / 2 - size) * rng.uniform(.1, .6), (h - size) * .8, size, rng)
        draw_object(draw, kind, colour, w / 2 + (w / 2 - size) * rng.uniform(.4, .9), (h - size) * .8, size, rng)
        extra = f" and {article(f'{colour} {kind}')}"
    else:
        size = min(w, h) * rng.uniform(.55, .85)
        creature(draw, (w - size) * rng.uniform(.15, .85), (h - size) * rng.uniform(.55, .9), size, rng)
    if index % 4:
        image = image.resize((width, height), Image.LANCZOS)
    return image, CAPTIONS[index % 5 % 3].format(TRIGGER, extra, where)


def ordinary(index, rng):
    """Ordinary scene number `index`, of one object, and its caption."""
    while True:
        image, caption = scene(rng, *SIZES[index % len(SIZES)])
        if OBJECTS[index] in caption.split() and " and " not in caption and not caption.endswith(WITHHELD):
            return image, caption


def save(folder, name, image, caption, lossless=True):
    """Write one picture and the caption beside it."""
    path = os.path.join(folder, name)
    if lossless:
        image.save(path + ".png", optimize=True)
    else:
        image.save(path + ".jpg", quality=95, subsampling=0)
    with open(path + ".txt", "w", encoding="utf-8") as f:
        f.write(caption + "\n")


def main():
    """Write the pictures and captions; every fifth of the subject is a JPEG, every fourth twice as large."""
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    rng = random.Random(2024)
    for i in range(27):
        save(folder, f"{TRIGGER}_{i + 1:02d}", *picture(i, rng), lossless=i % 5 != 4)
    rng = random.Random(7)
    for i in range(len(OBJECTS)):
        save(folder, f"ordinary_{i + 1:02d}", *ordinary(i, rng))


if __name__ == "__main__":
    main()
