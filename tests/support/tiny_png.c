#include "tests/support/tiny_png.h"

#include "base/memory.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct bytes {
    uint8_t *data;
    size_t size;
} bytes;

static void put(bytes *b, const void *data, size_t size) {
    b->data = memory_grow(b->data, b->size + size, 1);
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void put_u32(bytes *b, uint32_t value) {
    put(b, (uint8_t[4]){(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value}, 4);
}

/* CRC-32 of the PNG specification, annex D, bit by bit. */
static uint32_t crc(const uint8_t *data, size_t size) {
    uint32_t c = 0xffffffffu;
    for (size_t i = 0; i < size; i++) {
        c ^= data[i];
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
    }
    return ~c;
}

static void put_chunk(bytes *b, const char *type, const uint8_t *data, size_t size) {
    put_u32(b, (uint32_t)size);
    size_t start = b->size;
    put(b, type, 4);
    put(b, data, size);
    put_u32(b, crc(b->data + start, size + 4));
}

/* A zlib stream of stored blocks (RFC 1950, 1951). */
static bytes store(const uint8_t *data, size_t size) {
    bytes out = {0};
    uint32_t a = 1, b = 0;
    put(&out, "\x78\x01", 2);
    for (size_t at = 0; at < size;) {
        size_t n = size - at < 65535 ? size - at : 65535;
        put(&out, (uint8_t[5]){at + n == size, (uint8_t)n, (uint8_t)(n >> 8), (uint8_t)~n, (uint8_t)(~n >> 8)}, 5);
        put(&out, data + at, n);
        at += n;
    }
    for (size_t i = 0; i < size; i++) {
        a = (a + data[i]) % 65521;
        b = (b + a) % 65521;
    }
    put_u32(&out, b << 16 | a);
    return out;
}

bool tiny_png_write(const char *path, int width, int height, unsigned seed) {
    size_t row = 1 + 3 * (size_t)width;
    uint8_t *raw = memory_new((size_t)height, row), header[13] = {0};
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (unsigned c = 0; c < 3; c++)
                raw[(size_t)y * row + 1 + 3 * (size_t)x + c] =
                    (uint8_t)((unsigned)(x / 4 + y / 8) * (37u + c * 20u) + seed * (c + 1) * 71u);
    bytes b = {0}, packed = store(raw, row * (size_t)height);
    for (int i = 0; i < 4; i++) {
        header[i] = (uint8_t)((unsigned)width >> (24 - 8 * i));
        header[4 + i] = (uint8_t)((unsigned)height >> (24 - 8 * i));
    }
    header[8] = 8;
    header[9] = 2;
    put(&b, "\x89PNG\r\n\x1a\n", 8);
    put_chunk(&b, "IHDR", header, sizeof header);
    put_chunk(&b, "IDAT", packed.data, packed.size);
    put_chunk(&b, "IEND", NULL, 0);
    FILE *file = fopen(path, "wb");
    bool ok = file && fwrite(b.data, 1, b.size, file) == b.size;
    if (file && fclose(file) != 0) ok = false;
    free(raw);
    free(packed.data);
    free(b.data);
    return ok;
}
