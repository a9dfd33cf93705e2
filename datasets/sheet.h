/* Many pictures of one size as one, in rows and columns with labels. */
#ifndef VULORA_DATASETS_SHEET_H
#define VULORA_DATASETS_SHEET_H

#include "datasets/image.h"

enum { SHEET_MOST_SIDE = 32768 }; /* pixels */

typedef struct sheet_layout {
    int columns, rows;
    const char *const *captions; /* [columns], above them; broken between words */
    const char *const *labels;   /* [rows], above each; broken too */
    int width, height;           /* of the pictures; small ones are enlarged by a whole number */
} sheet_layout;

typedef struct sheet {
    int width, height;
    uint8_t *pixels; /* [height, width, 3]; pictures that were not put are white */
    int cell_width, cell_height;
    int *row_tops; /* [rows], of their pictures */
} sheet;

/* Texts are shown in ASCII; other characters are question marks. False: too large, or no memory. */
bool sheet_create(sheet *s, const sheet_layout *layout, error *err);
void sheet_free(sheet *s);
bool sheet_put(sheet *s, int row, int column, const image_rgb *picture, error *err);

#endif
