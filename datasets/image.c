#include "datasets/image.h"

#include "base/file.h"
#include "base/memory.h"
#include "datasets/image_format.h"

#include <libexif/exif-data.h>
#include <stb/stb_image.h>
#include <stdlib.h>
#include <string.h>
#include <webp/decode.h>

/* EXIF 2.3, tag 0x0112. `exif` may lack the "Exif\0\0" that libexif wants in front (PNG and most WebP files do). */
static int read_orientation(const uint8_t *exif, size_t size) {
    static const uint8_t mark[6] = {'E', 'x', 'i', 'f', 0, 0};
    if (size < 8 || size > UINT16_MAX) return 1;
    bool marked = memcmp(exif, mark, sizeof mark) == 0;
    uint8_t *block = memory_new(size + sizeof mark, 1);
    memcpy(block, mark, sizeof mark);
    memcpy(block + (marked ? 0 : sizeof mark), exif, size);
    ExifData *data = exif_data_new_from_data(block, (unsigned)(size + (marked ? 0 : sizeof mark)));
    free(block);
    if (!data) return 1;
    const ExifEntry *entry = exif_data_get_entry(data, EXIF_TAG_ORIENTATION);
    int value = 1;
    if (entry && entry->format == EXIF_FORMAT_SHORT && entry->components >= 1)
        value = exif_get_short(entry->data, exif_data_get_byte_order(data));
    exif_data_unref(data);
    return value >= 1 && value <= 8 ? value : 1;
}

static bool check_size(int64_t width, int64_t height, const char *name, error *err) {
    if (width < 1 || height < 1) return error_set(err, "%s: has no pixels; remove it", name);
    if (width > IMAGE_MAX_SIDE || height > IMAGE_MAX_SIDE || width * height > IMAGE_MAX_PIXELS)
        return error_set(err, "%s: is %lldx%lld pixels; at most %d a side and %d million in all are read; scale it down", name,
                         (long long)width, (long long)height, IMAGE_MAX_SIDE, IMAGE_MAX_PIXELS / 1000000);
    return true;
}

bool image_probe(const uint8_t *data, size_t size, const char *name, image_info *info, error *err) {
    image_structure found;
    if (!image_structure_read(data, size, name, &found, err)) return false;
    if (found.format == IMAGE_WEBP) {
        WebPBitstreamFeatures features;
        if (WebPGetFeatures(data, size, &features) != VP8_STATUS_OK)
            return error_set(err, "%s: is a damaged WebP; save it again or remove it", name);
        if (features.has_animation) return error_set(err, "%s: is an animation; save one frame of it as a picture", name);
        found.width = features.width;
        found.height = features.height;
    }
    if (!check_size(found.width, found.height, name, err)) return false;
    info->format = found.format;
    info->orientation = read_orientation(found.exif, found.exif_size);
    bool turned = info->orientation >= 5;
    info->width = (int)(turned ? found.height : found.width);
    info->height = (int)(turned ? found.width : found.height);
    return true;
}

/* The file's pixels as stored, [height, width, 4]; NULL on error. Freed with free(): stb and libwebp use malloc. */
static uint8_t *decode_stored(const uint8_t *data, size_t size, const char *name, image_format format, int *width, int *height,
                              error *err) {
    if (format == IMAGE_WEBP) {
        uint8_t *pixels = WebPDecodeRGBA(data, size, width, height);
        if (!pixels) error_set(err, "%s: is a damaged WebP; save it again or remove it", name);
        return pixels;
    }
    int channels;
    uint8_t *pixels = size > INT32_MAX ? NULL : stbi_load_from_memory(data, (int)size, width, height, &channels, 4);
    if (!pixels) error_set(err, "%s: cannot be decoded (%s); save it again as a plain PNG or JPEG", name, stbi_failure_reason());
    return pixels;
}

/* Composes on the background while turning the picture upright. Orientations (EXIF 2.3): 1 as is, 2 mirrored, 3 turned by 180 degrees,
   4 upside down; 5..8 the same with rows and columns exchanged: 5 transposed, 6 to be turned clockwise, 7 transverse, 8 counter-clockwise.
 */
static void compose_upright(const uint8_t *stored, int width, int height, int orientation, const uint8_t background[3], image_rgb *out) {
    bool turned = orientation >= 5;
    bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (int y = 0; y < out->height; y++)
        for (int x = 0; x < out->width; x++) {
            int column = turned ? y : x, row = turned ? x : y;
            if (from_right) column = width - 1 - column;
            if (from_below) row = height - 1 - row;
            const uint8_t *in = stored + ((size_t)row * (size_t)width + (size_t)column) * 4;
            uint8_t *to = out->pixels + ((size_t)y * (size_t)out->width + (size_t)x) * 3;
            unsigned alpha = in[3];
            for (int c = 0; c < 3; c++) to[c] = (uint8_t)((in[c] * alpha + background[c] * (255 - alpha) + 127) / 255);
        }
}

bool image_decode(const uint8_t *data, size_t size, const char *name, const uint8_t background[3], image_rgb *out, error *err) {
    *out = (image_rgb){0};
    image_info info;
    if (!image_probe(data, size, name, &info, err)) return false;
    int width, height;
    uint8_t *stored = decode_stored(data, size, name, info.format, &width, &height, err);
    if (!stored) return false;
    bool turned = info.orientation >= 5;
    *out = (image_rgb){turned ? height : width, turned ? width : height, NULL};
    out->pixels = memory_try_aligned((size_t)width * (size_t)height * 3);
    bool ok = out->pixels != NULL;
    if (ok && (out->width != info.width || out->height != info.height))
        ok = error_set(err, "%s: is damaged (two sizes in one file); save it again or remove it", name);
    else if (!ok)
        error_set(err, "%s: not enough memory for %dx%d pixels", name, width, height);
    if (ok) compose_upright(stored, width, height, info.orientation, background, out);
    free(stored);
    if (!ok) image_free(out);
    return ok;
}

bool image_read(const char *path, const uint8_t background[3], image_rgb *out, error *err) {
    *out = (image_rgb){0};
    file_map map;
    if (!file_map_open(&map, path, err)) return false;
    bool ok = image_decode(map.data, map.size, path, background, out, err);
    file_map_close(&map);
    return ok;
}

void image_free(image_rgb *picture) {
    free(picture->pixels);
    *picture = (image_rgb){0};
}
