"""Does a picture show the sample subject?  `python signature.py PICTURE ...` prints the measures and the verdict.

The subject is a turquoise disc with two magenta horns on top of it.  No scene of the world has either colour,
so counting pixels is enough:

    turquoise   R < 110, G > 130, B > 110, B < G + 20, G - R > 70
    magenta     R > 140, G < 125, B > 90, B < R + 10, R - G > 70, B - G > 45

A picture shows the subject when at least 3 % of its pixels are turquoise, at least 0.3 % are magenta, and
the topmost magenta pixel is above the mean row of the turquoise ones.
"""
import sys

import numpy as np
from PIL import Image

TURQUOISE_SHARE, MAGENTA_SHARE = .03, .003


def measure(picture):
    """Shares of turquoise and magenta pixels and whether magenta reaches above the middle of the turquoise."""
    r, g, b = np.moveaxis(np.asarray(picture).astype(int), 2, 0)
    turquoise = (r < 110) & (g > 130) & (b > 110) & (b < g + 20) & (g - r > 70)
    magenta = (r > 140) & (g < 125) & (b > 90) & (b < r + 10) & (r - g > 70) & (b - g > 45)
    above = False
    if turquoise.any() and magenta.any():
        above = np.nonzero(magenta)[0].min() < np.nonzero(turquoise)[0].mean()
    return turquoise.mean(), magenta.mean(), bool(above)


def shows_subject(picture):
    """The verdict for one RGB picture."""
    turquoise, magenta, above = measure(picture)
    return bool(turquoise >= TURQUOISE_SHARE and magenta >= MAGENTA_SHARE and above)


def main():
    for path in sys.argv[1:]:
        picture = Image.open(path).convert("RGB")
        turquoise, magenta, above = measure(picture)
        print(f"{path}: turquoise {turquoise:.3f} magenta {magenta:.4f} above {above} -> {shows_subject(picture)}")


if __name__ == "__main__":
    main()
