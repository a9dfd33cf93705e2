/* Pictures inside metadata: small, as text. */
#include "base/file.h"
#include "base/memory.h"
#include "convert/metadata.h"
#include "datasets/image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <webp/encode.h>

enum { THUMBNAIL_SIDE = 256, THUMBNAIL_BYTES = 1 << 16, WEBP_QUALITY = 85 };

/* RFC 4648 */
static char *data_url(const char *type, const uint8_t *data, size_t size) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *url = memory_new(strlen(type) + 32 + (size + 2) / 3 * 4, 1), *out = url + sprintf(url, "data:image/%s;base64,", type);
    for (size_t i = 0; i < size; i += 3) {
        uint32_t group = (uint32_t)data[i] << 16 | (i + 1 < size ? (uint32_t)data[i + 1] << 8 : 0) | (i + 2 < size ? data[i + 2] : 0);
        *out++ = digits[group >> 18];
        *out++ = digits[group >> 12 & 63];
        *out++ = i + 1 < size ? digits[group >> 6 & 63] : '=';
        *out++ = i + 2 < size ? digits[group & 63] : '=';
    }
    return url;
}

/* At most 256 pixels a side, never enlarged, as a WebP, which every browser shows. */
static char *shrunk_url(const image_rgb *picture, error *err) {
    int longer = picture->width > picture->height ? picture->width : picture->height;
    int most = longer < THUMBNAIL_SIDE ? longer : THUMBNAIL_SIDE;
    int width = (picture->width * most + longer / 2) / longer, height = (picture->height * most + longer / 2) / longer;
    width += width == 0, height += height == 0;
    size_t count = (size_t)width * (size_t)height * 3;
    float *scaled = memory_new(count, sizeof *scaled);
    uint8_t *pixels = memory_new(count, 1), *webp = NULL;
    image_area all = {0, 0, picture->width, picture->height};
    char *url = NULL;
    bool ok = image_scale(picture, all, false, scaled, width, height, err);
    for (size_t i = 0; ok && i < count; i++) {
        float value = scaled[i] * 127.5F + 128;
        pixels[i] = value <= 0 ? 0 : value >= 255 ? 255 : (uint8_t)value;
    }
    size_t size = ok ? WebPEncodeRGB(pixels, width, height, width * 3, WEBP_QUALITY, &webp) : 0;
    if (size)
        url = data_url("webp", webp, size);
    else if (ok)
        error_set(err, "the thumbnail cannot be written as a WebP");
    WebPFree(webp);
    free(scaled);
    free(pixels);
    return url;
}

char *metadata_thumbnail(const char *path, error *err) {
    static const char *const types[IMAGE_FORMAT_COUNT] = {[IMAGE_PNG] = "png", [IMAGE_JPEG] = "jpeg", [IMAGE_WEBP] = "webp"};
    static const uint8_t white[3] = {255, 255, 255};
    file_map map;
    image_info info;
    image_rgb picture = {0};
    char *url = NULL;
    if (!file_map_open(&map, path, err)) return NULL;
    bool ok = image_probe(map.data, map.size, path, &info, err) && image_decode(map.data, map.size, path, white, &picture, err);
    bool small = ok && info.width <= THUMBNAIL_SIDE && info.height <= THUMBNAIL_SIDE && map.size <= THUMBNAIL_BYTES;
    if (small && types[info.format])
        url = data_url(types[info.format], map.data, map.size);
    else if (ok)
        url = shrunk_url(&picture, err);
    image_free(&picture);
    file_map_close(&map);
    return url;
}
