#include "datasets/latent_cache.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/sha256.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Part of every key: raised when decoding, scaling or this file's format changes. */
#define VERSION 1
#define MAGIC "VULORALATENT\0\0\0"

/* The file: this, mean, logvar, and the SHA-256 (hex) of all that. In the machine's own byte order, which `order` tells. */
typedef struct header {
    char magic[16];
    uint32_t order, version;
    int32_t channels, height, width, zero;
    char key[64];
} header;

void latent_cache_key(const dataset *ds, size_t image, bool flip, const char *vae, char key[65]) {
    const dataset_image *entry = &ds->images[image];
    bucket_size bucket = ds->buckets[entry->bucket];
    char *text = memory_format("latent %d\n%s\ncrop %d %d %d %d\nbucket %d %d\nflip %d\nbackground %d %d %d\nvae %s\n", VERSION,
                               entry->hash, entry->crop.x, entry->crop.y, entry->crop.width, entry->crop.height, bucket.width,
                               bucket.height, flip, ds->background[0], ds->background[1], ds->background[2], vae);
    sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, text, strlen(text));
    sha256_hex(&hash, key);
    free(text);
}

bool latent_cache_open(const char *folder, error *err) {
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        return error_set(err, "%s: cannot make the folder for cached latents: %s", folder, strerror(errno));
    if (!file_is_directory(folder)) return error_set(err, "%s: is not a folder; cached latents need one", folder);
    if (access(folder, W_OK | X_OK) != 0) return error_set(err, "%s: cannot write cached latents there: %s", folder, strerror(errno));
    return true;
}

static header make_header(const char key[65], int channels, int height, int width) {
    header head = {.magic = MAGIC, .order = 0x01020304, .version = VERSION, .channels = channels, .height = height, .width = width};
    memcpy(head.key, key, sizeof head.key);
    return head;
}

static char *entry_path(const char *folder, const char key[65]) { return memory_format("%s/%.64s.latent", folder, key); }

bool latent_cache_read(const char *folder, const char key[65], int channels, int height, int width, float *mean, float *logvar) {
    char *path = entry_path(folder, key);
    file_map map;
    bool opened = file_map_open(&map, path, NULL);
    free(path);
    if (!opened) return false;
    header head = make_header(key, channels, height, width);
    size_t bytes = (size_t)channels * (size_t)height * (size_t)width * sizeof *mean, body = sizeof head + 2 * bytes;
    bool ok = map.size == body + 64 && memcmp(map.data, &head, sizeof head) == 0;
    if (ok) {
        char digest[65];
        sha256 hash;
        sha256_init(&hash);
        sha256_update(&hash, map.data, body);
        sha256_hex(&hash, digest);
        ok = memcmp(digest, map.data + body, 64) == 0;
    }
    if (ok) {
        memcpy(mean, map.data + sizeof head, bytes);
        memcpy(logvar, map.data + sizeof head + bytes, bytes);
    }
    file_map_close(&map);
    return ok;
}

bool latent_cache_write(const char *folder, const char key[65], int channels, int height, int width, const float *mean, const float *logvar,
                        error *err) {
    header head = make_header(key, channels, height, width);
    size_t bytes = (size_t)channels * (size_t)height * (size_t)width * sizeof *mean;
    char digest[65], *path = entry_path(folder, key);
    sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, &head, sizeof head);
    sha256_update(&hash, mean, bytes);
    sha256_update(&hash, logvar, bytes);
    sha256_hex(&hash, digest);
    file_writer writer;
    bool ok = file_writer_open(&writer, path, err) && file_writer_write(&writer, &head, sizeof head, err) &&
              file_writer_write(&writer, mean, bytes, err) && file_writer_write(&writer, logvar, bytes, err) &&
              file_writer_write(&writer, digest, 64, err) && file_writer_commit(&writer, err);
    free(path);
    return ok;
}
