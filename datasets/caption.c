#include "datasets/caption.h"

#include "base/file.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define CAPTION_LIMIT ((size_t)1 << 20)

static bool is_space(int32_t code) {
    if ((code >= 9 && code <= 13) || (code >= 0x1C && code <= 0x20) || code == 0x85) return true;
    utf8proc_category_t category = utf8proc_category(code);
    return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

/* Offset of the first byte that is no UTF-8 or zero, or `size`. */
static size_t check_text(const char *text, size_t size) {
    size_t at = 0;
    while (at < size) {
        utf8proc_int32_t code;
        utf8proc_ssize_t step = utf8proc_iterate((const uint8_t *)text + at, (utf8proc_ssize_t)(size - at), &code);
        if (step < 1 || code == 0) break;
        at += (size_t)step;
    }
    return at;
}

/* Moves both ends of valid UTF-8 text inwards over white space. */
static void trim(const char **start, const char **end) {
    utf8proc_int32_t code;
    const char *kept = *start;
    bool leading = true;
    for (const char *at = *start; at < *end;) {
        utf8proc_ssize_t step = utf8proc_iterate((const uint8_t *)at, *end - at, &code);
        if (step < 1) step = 1;
        if (!is_space(code)) {
            leading = false;
            kept = at + step;
        } else if (leading) {
            *start = at + step;
        }
        at += step;
    }
    *end = leading ? *start : kept;
}

static char *copy_range(const char *start, const char *end) {
    char *text = memory_new((size_t)(end - start) + 1, 1);
    memcpy(text, start, (size_t)(end - start));
    return text;
}

char *caption_trim(const char *text, const char *what, error *err) {
    size_t size = strlen(text), bad = check_text(text, size);
    if (bad < size) {
        error_set(err, "%s: is not valid UTF-8 at byte %zu", what, bad);
        return NULL;
    }
    const char *start = text, *end = text + size;
    trim(&start, &end);
    return copy_range(start, end);
}

char *caption_read(const char *path, bool *more, error *err) {
    size_t size;
    char *text = file_read_text(path, CAPTION_LIMIT, &size, err), *caption = NULL;
    if (!text) return NULL;
    bool utf16 = size >= 2 && (memcmp(text, "\xFF\xFE", 2) == 0 || memcmp(text, "\xFE\xFF", 2) == 0);
    size_t bad = check_text(text, size);
    if (bad < size) {
        error_set(err, "%s: is not valid UTF-8 at byte %zu%s; save it as UTF-8", path, bad, utf16 ? " (it is UTF-16)" : "");
    } else {
        const char *start = text + (size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0), *end = text + size;
        trim(&start, &end);
        const char *line = start;
        while (line < end && *line != '\n' && *line != '\r') line++;
        *more = line < end;
        trim(&start, &line);
        caption = copy_range(start, line);
    }
    free(text);
    return caption;
}
