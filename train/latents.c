/* Pictures to posteriors, each once: from the cache when it has them. */
#include "base/memory.h"
#include "base/sha256.h"
#include "datasets/latent_cache.h"
#include "train/internal.h"

#include <math.h>
#include <stdlib.h>

/* What identifies the encoder: every byte of its weights, and the precision it runs in. */
static void hash_vae(const pipeline *p, char out[65]) {
    const checkpoint_table *vae = &p->model.parts[CHECKPOINT_VAE];
    sha256 hash;
    sha256_init(&hash);
    for (size_t i = 0; i < vae->count; i++) sha256_update(&hash, vae->tensors[i].data, vae->tensors[i].bytes);
    const char *precision = dtype_name(p->device->activation);
    sha256_update(&hash, precision, 4);
    sha256_hex(&hash, out);
}

static bool all_finite(const float *values, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(values[i])) return false;
    return true;
}

static bool encode(trainer *t, size_t index, bool flip, posterior *out, error *err) {
    const dataset_image *image = &t->data->images[index];
    bucket_size size = t->data->buckets[image->bucket];
    size_t count = (size_t)size.width * (size_t)size.height, latent = count / 64 * (size_t)t->pipeline->model.config.vae_latent_channels;
    float *pixels = memory_try_aligned(count * 3 * sizeof *pixels), *planes = memory_try_aligned(count * 3 * sizeof *planes);
    bool ok = pixels && planes ? dataset_load(t->data, index, flip, pixels, err)
                               : error_set(err, "%s: not enough memory to decode it", image->path);
    if (ok) {
        pipeline_channels_first(pixels, 1, 3, (int64_t)count, planes);
        ok = pipeline_vae_encode(t->pipeline, planes, 1, size.height, size.width, out->mean, out->logvar, err);
    }
    if (ok && !(all_finite(out->mean, latent) && all_finite(out->logvar, latent)))
        ok = error_set(err, "%s: the VAE encodes it to values that are not finite; use --precision fp32 or another --vae", image->path);
    free(pixels);
    free(planes);
    return ok;
}

bool train_encode_pictures(trainer *t, const train_events *events, error *err) {
    const char *folder = t->options.cache_folder;
    if (folder && !latent_cache_open(folder, err)) return false;
    char vae[65], key[65];
    if (folder) hash_vae(t->pipeline, vae);
    int channels = t->pipeline->model.config.vae_latent_channels, flips = t->data->flip ? 2 : 1;
    size_t all = t->data->count * (size_t)flips, done = 0;
    bool ok = true;
    for (int flip = 0; flip < flips; flip++) {
        t->latents[flip] = memory_new(t->data->count, sizeof(posterior));
        for (size_t i = 0; ok && i < t->data->count; i++) {
            bucket_size size = t->data->buckets[t->data->images[i].bucket];
            int h = size.height / 8, w = size.width / 8;
            posterior *out = &t->latents[flip][i];
            out->mean = memory_new((size_t)(channels * h * w), sizeof(float));
            out->logvar = memory_new((size_t)(channels * h * w), sizeof(float));
            if (folder) latent_cache_key(t->data, i, flip != 0, vae, key);
            if (!folder || !latent_cache_read(folder, key, channels, h, w, out->mean, out->logvar)) {
                ok = encode(t, i, flip != 0, out, err);
                if (ok && folder) ok = latent_cache_write(folder, key, channels, h, w, out->mean, out->logvar, err);
            }
            done++;
            if (events->encoded) events->encoded(events->user, done, all);
            if (ok && events->stop && events->stop(events->user)) return true;
        }
    }
    pipeline_release(t->pipeline, CHECKPOINT_VAE);
    return ok;
}
