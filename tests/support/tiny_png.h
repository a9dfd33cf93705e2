/* A small PNG picture for tests: coloured stripes, uncompressed, no library needed. */
#ifndef VULORA_TESTS_SUPPORT_TINY_PNG_H
#define VULORA_TESTS_SUPPORT_TINY_PNG_H

#include <stdbool.h>

/* RGB, width x height; the colour follows from the seed. width * height * 3 + height must stay below 65536 * 1000. */
bool tiny_png_write(const char *path, int width, int height, unsigned seed);

#endif
