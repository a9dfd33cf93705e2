#include "formats/png_text.h"

#include "base/file.h"
#include "base/memory.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/* zlib packs tighter than stb's own compressor. */
static unsigned char *compress_for_stb(unsigned char *data, int size, int *out_size, int quality) {
    uLongf bound = compressBound((uLong)size);
    unsigned char *out = malloc(bound);
    (void)quality;
    if (out && (bound > INT_MAX || compress2(out, &bound, data, (uLong)size, 6) != Z_OK)) {
        free(out);
        out = NULL;
    }
    *out_size = out ? (int)bound : 0;
    return out;
}

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBIW_ZLIB_COMPRESS compress_for_stb
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#endif
#include <stb/stb_image_write.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

static const uint8_t SIGNATURE[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
enum { HEADER_END = 8 + 25 }; /* signature and IHDR: where text chunks go */
#define TEXT_MAX ((size_t)64 << 20)
#define KEY_MAX 79

/* ---- Bytes ---- */

typedef struct buffer {
    uint8_t *data;
    size_t size, room;
} buffer;

static void buffer_add(buffer *b, const void *data, size_t size) {
    if (b->size + size > b->room) {
        b->room = (b->size + size) * 2;
        b->data = memory_grow(b->data, b->room, 1);
    }
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void buffer_add_u32(buffer *b, uint32_t value) {
    buffer_add(b, (uint8_t[4]){(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value}, 4);
}

static uint32_t read_u32(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }

static uint32_t chunk_crc(const uint8_t *type_and_data, size_t size) { return (uint32_t)crc32_z(0, type_and_data, size); }

static void buffer_add_chunk(buffer *b, const char *type, const buffer *body) {
    buffer_add_u32(b, (uint32_t)body->size);
    size_t start = b->size;
    buffer_add(b, type, 4);
    buffer_add(b, body->data, body->size);
    buffer_add_u32(b, chunk_crc(b->data + start, b->size - start));
}

/* ---- Latin-1 and UTF-8 ---- */

/* Length of the UTF-8 character at s and its code point; 0 where the bytes are not UTF-8 (overlong and surrogates included). */
static size_t utf8_read(const unsigned char *s, uint32_t *code) {
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xf0 && s[0] < 0xf8 ? 4 : s[0] >= 0xe0 ? 3 : s[0] >= 0xc0 ? 2 : 0;
    if (n == 0 || s[0] >= 0xf8) return 0;
    *code = n == 1 ? s[0] : s[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        *code = *code << 6 | (s[i] & 0x3f);
    }
    return *code < smallest[n] || (*code >= 0xd800 && *code < 0xe000) || *code > 0x10ffff ? 0 : n;
}

static bool utf8_valid(const char *text, bool *latin1) {
    *latin1 = true;
    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        uint32_t code;
        size_t n = utf8_read(s, &code);
        if (n == 0) return false;
        if (code > 0xff) *latin1 = false;
        s += n;
    }
    return true;
}

static void add_latin1(buffer *b, const char *text) {
    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        uint32_t code = 0;
        s += utf8_read(s, &code);
        buffer_add(b, &(uint8_t){(uint8_t)code}, 1);
    }
}

static char *latin1_to_utf8(const uint8_t *data, size_t size) {
    char *out = memory_new(2 * size + 1, 1), *p = out;
    for (size_t i = 0; i < size && data[i]; i++) {
        if (data[i] >= 0x80) *p++ = (char)(0xc0 | data[i] >> 6);
        *p++ = (char)(data[i] < 0x80 ? data[i] : 0x80 | (data[i] & 0x3f));
    }
    return out;
}

/* ---- Writing ---- */

static bool key_valid(const char *key) {
    size_t n = strlen(key);
    if (n < 1 || n > KEY_MAX || key[0] == ' ' || key[n - 1] == ' ') return false;
    for (size_t i = 0; i < n; i++)
        if (key[i] < 32 || key[i] > 126) return false;
    return true;
}

static bool text_add(buffer *b, const png_text *text, error *err) {
    bool latin1;
    if (!key_valid(text->key)) return error_set(err, "PNG text \"%.100s\": the key must be 1 to 79 printable ASCII characters", text->key);
    if (!utf8_valid(text->value, &latin1)) return error_set(err, "PNG text %s: is not valid UTF-8", text->key);
    size_t size = strlen(text->value);
    if (size > TEXT_MAX) return error_set(err, "PNG text %s: is too long (%zu bytes)", text->key, size);
    buffer body = {0};
    buffer_add(&body, text->key, strlen(text->key) + 1);
    if (latin1) {
        add_latin1(&body, text->value);
    } else {
        buffer_add(&body, "\0\0\0\0", 4); /* not compressed, method 0, no language, no translated key */
        buffer_add(&body, text->value, size);
    }
    buffer_add_chunk(b, latin1 ? "tEXt" : "iTXt", &body);
    free(body.data);
    return true;
}

uint8_t *png_encode(const uint8_t *pixels, int width, int height, int channels, const png_text *texts, size_t text_count, size_t *size,
                    error *err) {
    buffer chunks = {0};
    uint8_t *out = NULL, *png = NULL;
    int length = 0;
    for (size_t i = 0; i < text_count; i++)
        if (!text_add(&chunks, &texts[i], err)) goto done;
    bool usable = width > 0 && height > 0 && (channels == 1 || channels == 3 || channels == 4);
    if (!usable || (int64_t)width * channels + 1 > INT_MAX / 2 / height) {
        error_set(err, "a PNG cannot be made of %dx%d pixels with %d channels", width, height, channels);
        goto done;
    }
    png = stbi_write_png_to_mem(pixels, width * channels, width, height, channels, &length);
    if (png && length > HEADER_END) out = malloc((size_t)length + chunks.size);
    if (!out) {
        error_set(err, "not enough memory for a PNG of %dx%d pixels", width, height);
        goto done;
    }
    memcpy(out, png, HEADER_END);
    if (chunks.size) memcpy(out + HEADER_END, chunks.data, chunks.size);
    memcpy(out + HEADER_END + chunks.size, png + HEADER_END, (size_t)length - HEADER_END);
    *size = (size_t)length + chunks.size;
done:
    free(png);
    free(chunks.data);
    return out;
}

bool png_write(const char *path, const uint8_t *pixels, int width, int height, int channels, const png_text *texts, size_t text_count,
               error *err) {
    size_t size = 0;
    uint8_t *data = png_encode(pixels, width, height, channels, texts, text_count, &size, err);
    if (!data) return error_prefix(err, "%s", path);
    bool ok = file_write_all(path, data, size, err);
    free(data);
    return ok;
}

/* ---- Reading ---- */

/* Unpacks a zlib stream to a text (freed by the caller), NULL where it is damaged or too long. */
static char *inflate_text(const uint8_t *data, size_t size, size_t *out_size) {
    z_stream z = {0};
    if (size > UINT_MAX || inflateInit(&z) != Z_OK) return NULL;
    uint8_t block[4096];
    buffer out = {0};
    z.next_in = (Bytef *)(uintptr_t)data;
    z.avail_in = (uInt)size;
    int state = Z_OK;
    while (state == Z_OK && out.size <= TEXT_MAX) {
        z.next_out = block;
        z.avail_out = sizeof block;
        state = inflate(&z, Z_NO_FLUSH);
        if (state == Z_OK || state == Z_STREAM_END) buffer_add(&out, block, sizeof block - z.avail_out);
    }
    inflateEnd(&z);
    *out_size = out.size;
    buffer_add(&out, "", 1);
    if (state == Z_STREAM_END) return (char *)out.data;
    free(out.data);
    return NULL;
}

static void texts_add(png_texts *texts, char *key, char *value) {
    texts->items = memory_grow(texts->items, texts->count + 1, sizeof *texts->items);
    texts->items[texts->count].key = key;
    texts->items[texts->count++].value = value;
}

/* The zero byte at or after `at`, or NULL. */
static const uint8_t *zero_from(const uint8_t *at, const uint8_t *end) { return at < end ? memchr(at, 0, (size_t)(end - at)) : NULL; }

static char *copy_text(const void *data, size_t size) {
    char *text = memory_new(size + 1, 1);
    if (size) memcpy(text, data, size);
    return text;
}

/* Value of an iTXt chunk; p is behind the key. UTF-8, compressed or not. */
static char *international_value(const uint8_t *p, const uint8_t *end) {
    if (end - p < 2) return NULL;
    bool packed = p[0] != 0;
    const uint8_t *language = zero_from(p + 2, end), *translated = language ? zero_from(language + 1, end) : NULL;
    if (!translated) return NULL;
    size_t size = (size_t)(end - translated - 1);
    if (packed) return inflate_text(translated + 1, size, &size);
    return copy_text(translated + 1, size);
}

/* Adds the text of one chunk, false where it is damaged. Other chunks are none of our business. */
static bool texts_add_chunk(png_texts *texts, const uint8_t *type, const uint8_t *data, size_t size) {
    bool plain = memcmp(type, "tEXt", 4) == 0, packed = memcmp(type, "zTXt", 4) == 0, international = memcmp(type, "iTXt", 4) == 0;
    if (!plain && !packed && !international) return true;
    const uint8_t *end = data + size, *zero = zero_from(data, end);
    if (!zero || zero == data) return false;
    const uint8_t *p = zero + 1;
    char *value = NULL;
    if (plain) {
        value = latin1_to_utf8(p, (size_t)(end - p));
    } else if (international) {
        value = international_value(p, end);
    } else if (p < end && *p == 0) {
        size_t n = 0;
        char *latin1 = inflate_text(p + 1, (size_t)(end - p) - 1, &n);
        if (latin1) value = latin1_to_utf8((const uint8_t *)latin1, n);
        free(latin1);
    }
    if (value) texts_add(texts, latin1_to_utf8(data, (size_t)(zero - data)), value);
    return value != NULL;
}

bool png_texts_parse(png_texts *texts, const uint8_t *data, size_t size, const char *name, error *err) {
    *texts = (png_texts){0};
    if (size < sizeof SIGNATURE || memcmp(data, SIGNATURE, sizeof SIGNATURE) != 0) return error_set(err, "%s: is not a PNG picture", name);
    for (size_t at = sizeof SIGNATURE;;) {
        bool whole = size - at >= 12 && read_u32(data + at) <= size - at - 12;
        if (!whole) {
            png_texts_free(texts);
            return error_set(err, "%s: is truncated", name);
        }
        size_t length = read_u32(data + at);
        const uint8_t *type = data + at + 4;
        bool sound = read_u32(type + 4 + length) == chunk_crc(type, 4 + length);
        if (!sound || !texts_add_chunk(texts, type, type + 4, length)) {
            png_texts_free(texts);
            return error_set(err, "%s: is damaged (at byte %zu)", name, at);
        }
        if (memcmp(type, "IEND", 4) == 0) return true;
        at += 12 + length;
    }
}

bool png_texts_read(png_texts *texts, const char *path, error *err) {
    file_map map;
    *texts = (png_texts){0};
    if (!file_map_open(&map, path, err)) return false;
    bool ok = png_texts_parse(texts, map.data, map.size, path, err);
    file_map_close(&map);
    return ok;
}

const char *png_texts_find(const png_texts *texts, const char *key) {
    for (size_t i = 0; i < texts->count; i++)
        if (strcmp(texts->items[i].key, key) == 0) return texts->items[i].value;
    return NULL;
}

void png_texts_free(png_texts *texts) {
    for (size_t i = 0; i < texts->count; i++) {
        free(texts->items[i].key);
        free(texts->items[i].value);
    }
    free(texts->items);
    *texts = (png_texts){0};
}
