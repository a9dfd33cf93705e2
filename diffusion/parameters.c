#include "diffusion/parameters.h"

#include "base/memory.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- writing --- */

typedef struct buffer {
    char *text;
    size_t length, capacity;
} buffer;

static void add(buffer *b, const char *text, size_t length) {
    if (b->length + length + 1 > b->capacity) {
        b->capacity = 2 * (b->length + length + 1);
        b->text = memory_grow(b->text, b->capacity, 1);
    }
    if (length) memcpy(b->text + b->length, text, length);
    b->length += length;
    b->text[b->length] = 0;
}

static void add_text(buffer *b, const char *text) { add(b, text, strlen(text)); }

static void add_format(buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add_format(buffer *b, const char *format, ...) {
    char text[64];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    add_text(b, text);
}

/* A JSON string, bytes beyond ASCII as they are. */
static void add_json(buffer *b, const char *text) {
    static const char escaped[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    add_text(b, "\"");
    for (; *text; text++) {
        const char *known = strchr(escaped, *text);
        if (known)
            add_format(b, "\\%c", letters[known - escaped]);
        else if ((unsigned char)*text < 32)
            add_format(b, "\\u%04x", (unsigned)*text);
        else
            add(b, text, 1);
    }
    add_text(b, "\"");
}

/* ", Key: value", the value quoted where a reader would otherwise split it. */
static void add_setting(buffer *b, const char *key, const char *value) {
    if (!value || !*value) return;
    add_text(b, ", ");
    add_text(b, key);
    add_text(b, ": ");
    if (strpbrk(value, ",\n:"))
        add_json(b, value);
    else
        add_text(b, value);
}

/* The shortest decimal number that is this float. */
static void format_float(char out[32], float value) {
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(out, 32, "%.*g", digits, (double)value);
        if (strtof(out, NULL) == value) return;
    }
}

/* "name: hash, name: hash", names without the characters that part them. */
static void add_loras(buffer *b, const parameters_values *p) {
    buffer list = {0};
    for (int i = 0; i < p->lora_count; i++) {
        if (!p->loras[i].hash || !*p->loras[i].hash) continue;
        if (list.length) add_text(&list, ", ");
        for (const char *c = p->loras[i].name; *c; c++) {
            if (*c != ':' && *c != ',') add(&list, c, 1);
        }
        add_text(&list, ": ");
        add_text(&list, p->loras[i].hash);
    }
    add_setting(b, "Lora hashes", list.text);
    free(list.text);
}

char *parameters_format(const parameters_values *p) {
    buffer b = {0};
    char number[32];
    add_text(&b, p->prompt);
    if (p->negative && *p->negative) {
        add_text(&b, "\nNegative prompt: ");
        add_text(&b, p->negative);
    }
    add_format(&b, "%sSteps: %d", b.length ? "\n" : "", p->steps);
    add_setting(&b, "Sampler", p->sampler);
    add_setting(&b, "Schedule type", p->schedule_type);
    format_float(number, p->cfg);
    add_setting(&b, "CFG scale", number);
    add_format(&b, ", Seed: %" PRIu64, p->seed);
    add_format(&b, ", Size: %dx%d", p->width, p->height);
    add_setting(&b, "Model hash", p->model_hash);
    add_setting(&b, "Model", p->model);
    if (p->clip_skip > 1) add_format(&b, ", Clip skip: %d", p->clip_skip);
    if (p->cpu_noise) add_setting(&b, "RNG", "CPU");
    add_loras(&b, p);
    add_setting(&b, "Version", p->version);
    return b.text;
}

/* --- reading --- */

/* The end of a quoted value that starts at text, behind its closing quote; NULL if it has none or is empty. */
static const char *quoted_end(const char *text, const char *end) {
    const char *at = text + 1;
    for (; at < end && *at != '"'; at++) {
        if (*at == '\\' && ++at == end) return NULL;
    }
    return at < end && at > text + 1 ? at + 1 : NULL;
}

static char *copy_range(const char *from, const char *to) {
    char *text = memory_new((size_t)(to - from) + 1, 1);
    memcpy(text, from, (size_t)(to - from));
    return text;
}

static void add_utf8(buffer *b, unsigned code) {
    char bytes[4];
    size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = length; i-- > 1; code >>= 6) bytes[i] = (char)(0x80 | (code & 0x3F));
    bytes[0] = (char)(lead[length] | code);
    add(b, bytes, length);
}

/* Four hex digits at text, or false. */
static bool read_hex(const char *text, const char *end, unsigned *code) {
    char digits[5] = "";
    for (int i = 0; i < 4; i++) {
        if (text + i >= end || !isxdigit((unsigned char)text[i])) return false;
        digits[i] = text[i];
    }
    *code = (unsigned)strtoul(digits, NULL, 16);
    return true;
}

/* \uXXXX at text (behind the u), and the second half of a surrogate pair. Returns how many characters it took, 0 if it is none. */
static size_t add_unicode(buffer *b, const char *text, const char *end) {
    unsigned code, low;
    if (!read_hex(text, end, &code) || code == 0) return 0;
    bool pair = code >= 0xD800 && code < 0xDC00 && text + 6 <= end && text[4] == '\\' && text[5] == 'u' && read_hex(text + 6, end, &low) &&
                low >= 0xDC00 && low < 0xE000;
    if (!pair && code >= 0xD800 && code < 0xE000) code = 0xFFFD; /* half a pair */
    add_utf8(b, pair ? 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00) : code);
    return pair ? 10 : 4;
}

/* The text of a JSON string with its quotes; what is no JSON stays as it is. */
static char *unquote(const char *from, const char *to) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    buffer b = {0};
    add_text(&b, "");
    for (const char *at = from + 1; at < to - 1; at++) {
        const char *known = at[0] == '\\' ? strchr(letters, at[1]) : NULL;
        size_t taken = at[0] == '\\' && at[1] == 'u' ? add_unicode(&b, at + 2, to - 1) : 0;
        if (*at != '\\') {
            add(&b, at, 1);
        } else if (taken) {
            at += 1 + taken;
        } else if (known && *known) {
            add(&b, &meanings[known - letters], 1);
            at++;
        } else {
            free(b.text);
            return copy_range(from, to);
        }
    }
    return b.text;
}

static bool is_key(char c) { return isalnum((unsigned char)c) || strchr("_ -/", c) || (unsigned char)c >= 128; }

/* One "Key: value" at `at`; returns what is behind it and its comma, or NULL. key and value may be NULL (only looking). */
static const char *read_setting(const char *at, const char *end, char **key, char **value) {
    while (at < end && isspace((unsigned char)*at)) at++;
    const char *key_end = at;
    while (key_end < end && *key_end && is_key(*key_end)) key_end++;
    if (key_end - at < 2 || key_end == end || *key_end != ':' || strchr(" -/", *at)) return NULL;
    const char *from = key_end + 1;
    while (from < end && isspace((unsigned char)*from)) from++;
    const char *to = from < end && *from == '"' ? quoted_end(from, end) : NULL;
    bool quoted = to && (to == end || *to == ',');
    if (!quoted) {
        to = memchr(from, ',', (size_t)(end - from));
        if (!to) to = end;
    }
    if (key) *key = copy_range(at, key_end);
    if (value) *value = quoted ? unquote(from, to) : copy_range(from, to);
    return to < end ? to + 1 : end;
}

static int count_settings(const char *at, const char *end) {
    int count = 0;
    while (at < end) {
        const char *next = read_setting(at, end, NULL, NULL);
        if (next) count++;
        at = next ? next : at + 1;
    }
    return count;
}

static void read_settings(parameters_text *out, const char *at, const char *end) {
    while (at < end) {
        parameters_setting setting;
        const char *next = read_setting(at, end, &setting.key, &setting.value);
        if (next) {
            out->settings = memory_grow(out->settings, (size_t)out->setting_count + 1, sizeof *out->settings);
            out->settings[out->setting_count++] = setting;
        }
        at = next ? next : at + 1;
    }
}

static void add_line(buffer *b, const char *from, const char *to) {
    if (b->length) add_text(b, "\n");
    add(b, from, (size_t)(to - from));
}

static void read_prompts(parameters_text *out, const char *at, const char *end) {
    static const char mark[] = "Negative prompt:";
    buffer prompt = {0}, negative = {0}, *into = &prompt;
    add_text(&prompt, "");
    add_text(&negative, "");
    while (at < end) {
        const char *stop = memchr(at, '\n', (size_t)(end - at)), *from = at, *to;
        if (!stop) stop = end;
        to = stop;
        while (from < to && isspace((unsigned char)*from)) from++;
        if ((size_t)(to - from) >= sizeof mark - 1 && memcmp(from, mark, sizeof mark - 1) == 0) {
            into = &negative;
            from += sizeof mark - 1;
        }
        while (from < to && isspace((unsigned char)*from)) from++;
        while (to > from && isspace((unsigned char)to[-1])) to--;
        add_line(into, from, to);
        at = stop + 1;
    }
    out->prompt = prompt.text;
    out->negative = negative.text;
}

void parameters_parse(parameters_text *out, const char *text) {
    memset(out, 0, sizeof *out);
    while (isspace((unsigned char)*text)) text++;
    const char *end = text + strlen(text), *line;
    while (end > text && isspace((unsigned char)end[-1])) end--;
    for (line = end; line > text && line[-1] != '\n'; line--) {
    }
    bool settings = count_settings(line, end) >= 3;
    read_prompts(out, text, settings ? line : end);
    if (settings) read_settings(out, line, end);
}

void parameters_free(parameters_text *text) {
    for (int i = 0; i < text->setting_count; i++) {
        free(text->settings[i].key);
        free(text->settings[i].value);
    }
    free(text->settings);
    free(text->prompt);
    free(text->negative);
    memset(text, 0, sizeof *text);
}

const char *parameters_value(const parameters_text *text, const char *key) {
    for (int i = 0; i < text->setting_count; i++) {
        if (strcmp(text->settings[i].key, key) == 0) return text->settings[i].value;
    }
    return NULL;
}
