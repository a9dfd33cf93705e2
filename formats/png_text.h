/* PNG pictures with text in them, as A1111's webui writes its `parameters` (PNG specification, third edition: tEXt, zTXt, iTXt). */
#ifndef VULORA_FORMATS_PNG_TEXT_H
#define VULORA_FORMATS_PNG_TEXT_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One text, both UTF-8. Written as tEXt where the value fits Latin-1, else as iTXt. */
typedef struct png_text {
    const char *key; /* 1 to 79 characters of ASCII */
    const char *value;
} png_text;

/* The texts of a picture, in its order. */
typedef struct png_texts {
    struct {
        char *key, *value;
    } * items;
    size_t count;
} png_texts;

/* Encodes a picture. pixels: [height, width, channels], 8 bits, channels 1 (grey), 3 (RGB) or 4 (RGBA). The result is freed by the
   caller; NULL with an error when a size, a key or a text cannot be written. */
uint8_t *png_encode(const uint8_t *pixels, int width, int height, int channels, const png_text *texts, size_t text_count, size_t *size,
                    error *err);

/* The same into a file, under a temporary name first. */
bool png_write(const char *path, const uint8_t *pixels, int width, int height, int channels, const png_text *texts, size_t text_count,
               error *err);

/* Reads the texts of a PNG file or of one in memory (name: for messages). */
bool png_texts_read(png_texts *texts, const char *path, error *err);
bool png_texts_parse(png_texts *texts, const uint8_t *data, size_t size, const char *name, error *err);

/* The value of a key, or NULL. */
const char *png_texts_find(const png_texts *texts, const char *key);
void png_texts_free(png_texts *texts);

#endif
