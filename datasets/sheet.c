#include "datasets/sheet.h"

#include "base/memory.h"

#include <stb/stb_easy_font.h>
#include <stdlib.h>
#include <string.h>

enum {
    GAP = 8,        /* between pictures, in pixels */
    CELL = 256,     /* pictures are enlarged to at least this width */
    TEXT_SCALE = 2, /* of stb_easy_font, whose lines are 12 pixels high */
    LINE = 12 * TEXT_SCALE,
    MOST_QUADS = 2048, /* rectangles in a line of text */
    INK = 20
};

static void fill(sheet *s, int x0, int y0, int x1, int y1, uint8_t grey) {
    for (int y = y0 < 0 ? 0 : y0; y < y1 && y < s->height; y++)
        for (int x = x0 < 0 ? 0 : x0; x < x1 && x < s->width; x++)
            memset(s->pixels + ((size_t)y * (size_t)s->width + (size_t)x) * 3, grey, 3);
}

/* ---- text ---- */

/* One line of text with its upper left corner at x, y. */
static void draw_line(sheet *s, int x, int y, char *text) {
    struct {
        float x, y, z;
        unsigned char colour[4];
    } corners[MOST_QUADS][4];
    int quads = stb_easy_font_print(0, 0, text, NULL, corners, sizeof corners);
    for (int q = 0; q < quads; q++)
        fill(s, x + (int)corners[q][0].x * TEXT_SCALE, y + (int)corners[q][0].y * TEXT_SCALE, x + (int)corners[q][2].x * TEXT_SCALE,
             y + (int)corners[q][2].y * TEXT_SCALE, INK);
}

static int text_width(char *line) { return stb_easy_font_width(line) * TEXT_SCALE; }

/* The font knows ASCII; of a character in UTF-8 one question mark is left. */
static char *plain_text(const char *text) {
    char *out = memory_new(strlen(text) + 1, 1), *end = out;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c >= 128 && c < 192) continue;
        *end++ = c >= 192 ? '?' : c < 32 || c == 127 ? ' ' : *text;
    }
    return out;
}

/* How much of the text fits into a line: up to the end of a word, or, of a longer word, as many characters as fit. */
static size_t line_length(const char *text, int width, char *line) {
    size_t best = 0, length = 0;
    while (text[length]) {
        length += strcspn(text + length + (length > 0), " ") + (length > 0);
        memcpy(line, text, length);
        line[length] = 0;
        if (text_width(line) > width) break;
        best = length;
    }
    if (best || !*text) return best;
    for (best = strcspn(text, " "); best > 1; best--) {
        line[best] = 0;
        if (text_width(line) <= width) break;
    }
    return best;
}

/* Lines of at most `width` pixels; draws them with `draws`, only counts them without. */
static int wrap_text(sheet *s, bool draws, int x, int y, int width, const char *text) {
    char *plain = plain_text(text), *line = memory_new(strlen(plain) + 1, 1);
    int lines = 0;
    for (const char *rest = plain; *rest; lines++) {
        size_t n = line_length(rest, width, line);
        memcpy(line, rest, n);
        line[n] = 0;
        if (draws) draw_line(s, x, y + lines * LINE, line);
        rest += n + strspn(rest + n, " ");
    }
    free(line);
    free(plain);
    return lines;
}

/* ---- the sheet ---- */

static int column_left(const sheet *s, int column) { return GAP + column * (s->cell_width + GAP); }

/* Captions, then rows, one below the other; returns the height. */
static int64_t place(sheet *s, const sheet_layout *l, bool draws) {
    int header = 0, across = s->width - 2 * GAP;
    for (int c = 0; c < l->columns; c++) {
        int lines = wrap_text(s, draws, column_left(s, c), GAP, s->cell_width, l->captions[c]);
        header = lines > header ? lines : header;
    }
    int64_t y = 2 * GAP + header * LINE;
    for (int r = 0; r < l->rows && y < SHEET_MOST_SIDE; r++) {
        y += (int64_t)wrap_text(s, draws, GAP, (int)y, across, l->labels[r]) * LINE;
        s->row_tops[r] = (int)y;
        y += s->cell_height + GAP;
    }
    return y;
}

bool sheet_create(sheet *s, const sheet_layout *l, error *err) {
    int factor = (CELL + l->width - 1) / l->width;
    int64_t width = GAP + (int64_t)l->columns * (l->width * factor + GAP);
    *s = (sheet){.cell_width = l->width * factor, .cell_height = l->height * factor};
    s->width = width < SHEET_MOST_SIDE ? (int)width : SHEET_MOST_SIDE;
    s->row_tops = memory_new((size_t)l->rows + 1, sizeof *s->row_tops);
    int64_t height = place(s, l, false);
    if (width < SHEET_MOST_SIDE && height < SHEET_MOST_SIDE) {
        s->height = (int)height;
        s->pixels = memory_try_aligned((size_t)s->width * (size_t)s->height * 3);
    }
    if (!s->pixels) {
        sheet_free(s);
        return error_set(err, "%d columns and %d rows of pictures of %dx%d are too much for one sheet (%lld by %lld pixels)", l->columns,
                         l->rows, l->width, l->height, (long long)width, (long long)height);
    }
    fill(s, 0, 0, s->width, s->height, 255);
    place(s, l, true);
    return true;
}

void sheet_free(sheet *s) {
    free(s->pixels);
    free(s->row_tops);
    *s = (sheet){0};
}

bool sheet_put(sheet *s, int row, int column, const image_rgb *picture, error *err) {
    size_t line = (size_t)s->cell_width * 3;
    float *scaled = memory_try_aligned(line * (size_t)s->cell_height * sizeof *scaled);
    image_area all = {0, 0, picture->width, picture->height};
    if (!scaled) return error_set(err, "not enough memory for a picture of the sheet");
    bool ok = image_scale(picture, all, false, scaled, s->cell_width, s->cell_height, err);
    for (int i = 0; ok && i < s->cell_height; i++) {
        uint8_t *out = s->pixels + ((size_t)(s->row_tops[row] + i) * (size_t)s->width + (size_t)column_left(s, column)) * 3;
        for (size_t j = 0; j < line; j++) {
            float value = scaled[(size_t)i * line + j] * 127.5F + 128;
            out[j] = value <= 0 ? 0 : value >= 255 ? 255 : (uint8_t)value;
        }
    }
    free(scaled);
    return ok;
}
