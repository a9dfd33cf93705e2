/* One PNG out of many pictures of one size, in labelled rows. The demo shows with it what an adapter changes.

   contact_sheet OUTPUT.png COLUMNS CAPTION... {LABEL PICTURE...}...
   COLUMNS captions, then for every row a label and COLUMNS pictures. */
#include "base/memory.h"
#include "datasets/sheet.h"
#include "formats/png_text.h"

#include <stdio.h>
#include <stdlib.h>

enum { MOST_COLUMNS = 64 };

/* argv: captions, then the rows. The first picture says how large all are. */
static bool draw(const char *output, int columns, int rows, char **argv, error *err) {
    static const uint8_t white[3] = {255, 255, 255};
    char **row = argv + columns;
    const char **labels = memory_new((size_t)rows, sizeof *labels);
    sheet s = {0};
    bool ok = true;
    for (int r = 0; r < rows; r++) labels[r] = row[r * (columns + 1)];
    for (int i = 0; ok && i < rows * columns; i++) {
        int r = i / columns, c = i % columns;
        image_rgb picture = {0};
        ok = image_read(row[r * (columns + 1) + 1 + c], white, &picture, err);
        if (ok && !s.pixels) {
            sheet_layout layout = {columns, rows, (const char *const *)argv, labels, picture.width, picture.height};
            ok = sheet_create(&s, &layout, err);
        }
        ok = ok && sheet_put(&s, r, c, &picture, err);
        image_free(&picture);
    }
    ok = ok && png_write(output, s.pixels, s.width, s.height, 3, NULL, 0, err);
    sheet_free(&s);
    free(labels);
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
    if (draw(argv[1], columns, cells / (columns + 1), argv + 3, &err)) return 0;
    fprintf(stderr, "contact_sheet: %s\n", err.text);
    return 1;
}
