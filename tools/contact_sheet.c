/* One PNG out of many pictures of one size, in labelled rows. The demo shows with it what an adapter changes.

   contact_sheet OUTPUT.png COLUMNS CAPTION... {LABEL PICTURE...}...
   COLUMNS captions, then for every row a label and COLUMNS pictures. */
#include "base/memory.h"
#include "datasets/image.h"
#include "formats/png_text.h"

#include <stb/stb_easy_font.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    GAP = 8,        /* between pictures, in pixels */
    CELL = 256,     /* pictures are enlarged to at least this width */
    TEXT_SCALE = 2, /* of stb_easy_font, whose lines are 12 pixels high */
    LINE = 12 * TEXT_SCALE,
    MOST_COLUMNS = 64,
    MOST_QUADS = 2048 /* rectangles in a line of text */
};

typedef struct sheet {
    int width, height;
    uint8_t *pixels; /* [height, width, 3] */
    int cell_width, cell_height;
} sheet;

static void sheet_fill(sheet *s, int x0, int y0, int x1, int y1, uint8_t grey) {
    for (int y = y0 < 0 ? 0 : y0; y < y1 && y < s->height; y++)
        for (int x = x0 < 0 ? 0 : x0; x < x1 && x < s->width; x++)
            memset(s->pixels + ((size_t)y * (size_t)s->width + (size_t)x) * 3, grey, 3);
}

/* One line of text with its upper left corner at x, y. */
static void sheet_text(sheet *s, int x, int y, char *text) {
    struct {
        float x, y, z;
        unsigned char colour[4];
    } corners[MOST_QUADS][4];
    int quads = stb_easy_font_print(0, 0, text, NULL, corners, sizeof corners);
    for (int q = 0; q < quads; q++)
        sheet_fill(s, x + (int)corners[q][0].x * TEXT_SCALE, y + (int)corners[q][0].y * TEXT_SCALE, x + (int)corners[q][2].x * TEXT_SCALE,
                   y + (int)corners[q][2].y * TEXT_SCALE, 20);
}

/* Text broken between words into lines of at most `width` pixels; draws them with the sheet given, only counts them without. */
static int wrap_text(sheet *s, int x, int y, int width, const char *text) {
    char *line = memory_new(strlen(text) + 1, 1);
    int lines = 0;
    while (*text) {
        size_t best = 0, length = 0;
        do {
            length += strcspn(text + length + (length > 0), " ") + (length > 0);
            memcpy(line, text, length);
            line[length] = 0;
            if (best && stb_easy_font_width(line) * TEXT_SCALE > width) break;
            best = length;
        } while (text[length]);
        line[best] = 0;
        if (s) sheet_text(s, x, y + lines * LINE, line);
        text += best + strspn(text + best, " ");
        lines++;
    }
    free(line);
    return lines;
}

/* Puts a picture, enlarged to the cell, at x, y. */
static bool sheet_picture(sheet *s, int x, int y, const image_rgb *picture, error *err) {
    size_t row = (size_t)s->cell_width * 3;
    float *scaled = malloc(row * (size_t)s->cell_height * sizeof *scaled);
    image_area all = {0, 0, picture->width, picture->height};
    if (!scaled) return error_set(err, "out of memory");
    bool ok = image_scale(picture, all, false, scaled, s->cell_width, s->cell_height, err);
    for (int i = 0; ok && i < s->cell_height; i++) {
        uint8_t *out = s->pixels + ((size_t)(y + i) * (size_t)s->width + (size_t)x) * 3;
        for (size_t j = 0; j < row; j++) {
            float value = scaled[(size_t)i * row + j] * 127.5f + 128.0f;
            out[j] = value <= 0 ? 0 : value >= 255 ? 255 : (uint8_t)value;
        }
    }
    free(scaled);
    return ok;
}

/* argv: captions, then the rows. */
static bool sheet_draw(const char *output, int columns, int rows, char **argv, error *err) {
    static const uint8_t white[3] = {255, 255, 255};
    sheet s = {0};
    char **row = argv + columns;
    bool ok = true;
    int header = 0;
    for (int i = 0; ok && i < rows * (columns + 1); i++) {
        int r = i / (columns + 1), c = i % (columns + 1) - 1;
        image_rgb picture = {0};
        if (c < 0) continue;
        ok = image_read(row[i], white, &picture, err);
        if (ok && !s.pixels) {
            int factor = (CELL + picture.width - 1) / picture.width;
            s.cell_width = picture.width * factor, s.cell_height = picture.height * factor;
            for (int j = 0; j < columns; j++) {
                int lines = wrap_text(NULL, 0, 0, s.cell_width, argv[j]);
                header = lines * LINE > header ? lines * LINE : header;
            }
            s.width = columns * (s.cell_width + GAP) + GAP;
            s.height = 2 * GAP + header + rows * (LINE + s.cell_height + GAP);
            s.pixels = memory_new((size_t)s.width * (size_t)s.height, 3);
            sheet_fill(&s, 0, 0, s.width, s.height, 255);
            for (int j = 0; j < columns; j++) wrap_text(&s, GAP + j * (s.cell_width + GAP), GAP, s.cell_width, argv[j]);
        }
        int y = 2 * GAP + header + r * (LINE + s.cell_height + GAP);
        if (ok && c == 0) sheet_text(&s, GAP, y, row[i - 1]);
        ok = ok && sheet_picture(&s, GAP + c * (s.cell_width + GAP), y + LINE, &picture, err);
        image_free(&picture);
    }
    ok = ok && png_write(output, s.pixels, s.width, s.height, 3, NULL, 0, err);
    free(s.pixels);
    return ok;
}

int main(int argc, char **argv) {
    int columns = argc > 2 ? atoi(argv[2]) : 0;
    int cells = argc - 3 - columns;
    if (columns < 1 || columns > MOST_COLUMNS || cells < columns + 1 || cells % (columns + 1)) {
        fputs("usage: contact_sheet OUTPUT.png COLUMNS CAPTION... {LABEL PICTURE...}...\n", stderr);
        return 2;
    }
    error err;
    if (sheet_draw(argv[1], columns, cells / (columns + 1), argv + 3, &err)) return 0;
    fprintf(stderr, "contact_sheet: %s\n", err.text);
    return 1;
}
