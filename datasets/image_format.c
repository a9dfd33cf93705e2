#include "datasets/image_format.h"

#include <string.h>
#include <zlib.h>

#define SAVE_AGAIN "save it again with an image editor, or remove it"

static uint32_t big16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }
static uint32_t big32(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }
static uint32_t little16(const uint8_t *p) { return (uint32_t)p[1] << 8 | p[0]; }
static uint32_t little32(const uint8_t *p) { return little16(p + 2) << 16 | little16(p); }

static bool cut_short(const char *name, error *err) { return error_set(err, "%s: is cut short; copy it again or remove it", name); }

/* PNG specification (ISO/IEC 15948): chunks of length, type, data, CRC-32. */
static bool read_png(const uint8_t *data, size_t size, const char *name, image_structure *out, error *err) {
    size_t at = 8;
    bool pixels = false;
    for (;;) {
        if (size - at < 12) return cut_short(name, err);
        uint32_t length = big32(data + at);
        const uint8_t *type = data + at + 4, *body = data + at + 8;
        if (length > size - at - 12) return cut_short(name, err);
        if (crc32(0, type, length + 4) != big32(body + length))
            return error_set(err, "%s: is damaged (a PNG checksum does not match); %s", name, SAVE_AGAIN);
        if (at == 8) {
            if (memcmp(type, "IHDR", 4) != 0 || length != 13) return error_set(err, "%s: is damaged (no PNG header); %s", name, SAVE_AGAIN);
            out->width = big32(body);
            out->height = big32(body + 4);
        }
        if (memcmp(type, "eXIf", 4) == 0) {
            out->exif = body;
            out->exif_size = length;
        }
        pixels = pixels || memcmp(type, "IDAT", 4) == 0;
        at += length + 12u;
        if (memcmp(type, "IEND", 4) == 0) return pixels || error_set(err, "%s: is a PNG without pixels; %s", name, SAVE_AGAIN);
    }
}

/* The next marker behind a scan's coded data: a byte of 255 that is followed by neither 0 nor a restart marker. */
static size_t skip_scan(const uint8_t *data, size_t size, size_t at) {
    while (at + 1 < size && !(data[at] == 0xFF && data[at + 1] != 0 && data[at + 1] != 0xFF && (data[at + 1] & 0xF8) != 0xD0)) at++;
    return at;
}

/* Huffman tables (T.81, B.2.4.2): 16 counts and as many codes as they add up to. stb_image 2.27 trusts the sum, so it is checked here. */
static bool check_huffman(const uint8_t *body, size_t size) {
    while (size > 0) {
        size_t codes = 0;
        if (size < 17) return false;
        for (int i = 1; i <= 16; i++) codes += body[i];
        if (codes > 256 || size < 17 + codes) return false;
        body += 17 + codes;
        size -= 17 + codes;
    }
    return true;
}

/* JPEG (ITU-T T.81, annex B): markers with lengths up to the end-of-image marker, which a cut file lacks. */
static bool read_jpeg(const uint8_t *data, size_t size, const char *name, image_structure *out, error *err) {
    bool scan = false;
    size_t at = 2;
    for (;;) {
        while (at + 1 < size && data[at] == 0xFF && data[at + 1] == 0xFF) at++;
        if (size - at < 2) return cut_short(name, err);
        if (data[at] != 0xFF) return error_set(err, "%s: is damaged (no JPEG marker at byte %zu); %s", name, at, SAVE_AGAIN);
        uint8_t marker = data[at + 1];
        at += 2;
        if (marker == 0xD9) {
            return (scan && out->width) || error_set(err, "%s: is a JPEG without pixels; %s", name, SAVE_AGAIN);
        }
        if (marker == 0x01 || (marker & 0xF8) == 0xD0) continue;
        if (size - at < 2) return cut_short(name, err);
        size_t length = big16(data + at);
        if (length < 2) return error_set(err, "%s: is damaged (a JPEG segment of no length); %s", name, SAVE_AGAIN);
        if (length > size - at) return cut_short(name, err);
        if (marker == 0xC4 && !check_huffman(data + at + 2, length - 2))
            return error_set(err, "%s: is damaged (JPEG code tables); %s", name, SAVE_AGAIN);
        if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC && length >= 8) {
            out->height = big16(data + at + 3);
            out->width = big16(data + at + 5);
        }
        if (marker == 0xE1 && length >= 8 && memcmp(data + at + 2, "Exif\0", 6) == 0 && !out->exif) {
            out->exif = data + at + 2;
            out->exif_size = length - 2;
        }
        at += length;
        if (marker == 0xDA) {
            scan = true;
            at = skip_scan(data, size, at);
        }
    }
}

/* WebP container: RIFF chunks; libwebp reads the size (image_decode.c), here only length and EXIF matter. */
static bool read_webp(const uint8_t *data, size_t size, const char *name, image_structure *out, error *err) {
    uint64_t end = (uint64_t)little32(data + 4) + 8;
    if (end > size) return cut_short(name, err);
    for (size_t at = 12; end - at >= 8;) {
        uint32_t length = little32(data + at + 4);
        if (length > end - at - 8) return cut_short(name, err);
        if (memcmp(data + at, "EXIF", 4) == 0) {
            out->exif = data + at + 8;
            out->exif_size = length;
        }
        if (memcmp(data + at, "ANIM", 4) == 0) return error_set(err, "%s: is an animation; save one frame of it as a picture", name);
        uint64_t next = (uint64_t)at + 8 + length + (length & 1);
        if (next > end) break;
        at = (size_t)next;
    }
    return true;
}

/* BMP: the uncompressed kinds must hold all their rows. */
static bool read_bmp(const uint8_t *data, size_t size, const char *name, image_structure *out, error *err) {
    if (size < 30) return cut_short(name, err);
    uint32_t offset = little32(data + 10), header = little32(data + 14);
    bool old = header == 12;
    out->width = old ? (int32_t)little16(data + 18) : (int32_t)little32(data + 18);
    out->height = old ? (int32_t)little16(data + 20) : (int32_t)little32(data + 22);
    if (out->height < 0) out->height = -out->height; /* rows from the top */
    uint32_t bits = little16(data + (old ? 24 : 28)), compression = old || size < 34 ? 0 : little32(data + 30);
    if (out->width <= 0 || out->width > INT32_MAX || out->height <= 0 || bits == 0 || bits > 32)
        return error_set(err, "%s: is damaged (BMP header); %s", name, SAVE_AGAIN);
    uint64_t row = ((uint64_t)out->width * bits + 31) / 32 * 4;
    if (compression != 1 && compression != 2 && (offset > size || row * (uint64_t)out->height > size - offset)) return cut_short(name, err);
    return true;
}

/* Formats of pictures that people have and this program does not read: the name helps more than "unknown". */
static const struct {
    const char *bytes;
    size_t offset, size;
    const char *name;
} FOREIGN[] = {
    {"GIF8", 0, 4, "a GIF"},
    {"II*\0", 0, 4, "a TIFF"},
    {"MM\0*", 0, 4, "a TIFF"},
    {"ftypavif", 4, 8, "an AVIF"},
    {"ftypheic", 4, 8, "a HEIC"},
    {"ftypheix", 4, 8, "a HEIC"},
    {"ftypmif1", 4, 8, "a HEIF"},
    {"\xFF\x0A", 0, 2, "a JPEG XL"},
    {"\0\0\0\x0CJXL ", 0, 8, "a JPEG XL"},
    {"8BPS", 0, 4, "a Photoshop file"},
    {"<svg", 0, 4, "an SVG drawing"},
    {"%PDF", 0, 4, "a PDF"},
};

bool image_structure_read(const uint8_t *data, size_t size, const char *name, image_structure *out, error *err) {
    *out = (image_structure){0};
    static const uint8_t png[8] = {0x89, 'P', 'N', 'G', 13, 10, 26, 10};
    if (size == 0) return error_set(err, "%s: is empty; copy it again or remove it", name);
    if (size >= 8 && memcmp(data, png, 8) == 0) {
        out->format = IMAGE_PNG;
        return read_png(data, size, name, out, err);
    }
    if (size >= 3 && data[0] == 0xFF && data[1] == 0xD8 && data[2] == 0xFF) {
        out->format = IMAGE_JPEG;
        return read_jpeg(data, size, name, out, err);
    }
    if (size >= 12 && memcmp(data, "RIFF", 4) == 0 && memcmp(data + 8, "WEBP", 4) == 0) {
        out->format = IMAGE_WEBP;
        return read_webp(data, size, name, out, err);
    }
    if (size >= 18 && data[0] == 'B' && data[1] == 'M') {
        out->format = IMAGE_BMP;
        return read_bmp(data, size, name, out, err);
    }
    for (size_t i = 0; i < sizeof FOREIGN / sizeof *FOREIGN; i++)
        if (size >= FOREIGN[i].offset + FOREIGN[i].size && memcmp(data + FOREIGN[i].offset, FOREIGN[i].bytes, FOREIGN[i].size) == 0)
            return error_set(err, "%s: is %s; only PNG, JPEG, WebP and BMP are read; convert it", name, FOREIGN[i].name);
    return error_set(err, "%s: is not a picture (PNG, JPEG, WebP or BMP); remove it or replace it", name);
}
