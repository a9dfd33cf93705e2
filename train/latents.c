/* Pictures to posteriors, each once: from the cache when it has them. */
#include "base/memory.h"
#include "base/sha256.h"
#include "datasets/latent_cache.h"
#include "train/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* What identifies the encoder: every byte of its weights, and the precision it runs in. */
static void hash_vae(const pipeline *p, char out[65]) {
    const checkpoint_table *vae = &p->model.parts[CHECKPOINT_VAE];
    sha256 hash;
    sha256_init(&hash);
    for (size_t i = 0; i < vae->count; i++) {
        sha256_update(&hash, vae->tensors[i].data, vae->tensors[i].bytes);
        checkpoint_forget(&p->model, &vae->tensors[i]);
    }
    const char *precision = p->device->bf16 ? "BF16" : dtype_name(p->device->activation);
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

/* A cache that cannot be written is a loss of time only. */
static void note_cache(const train_events *events, const error *why) {
    if (!events->note) return;
    char text[sizeof why->text + 80];
    snprintf(text, sizeof text, "encoded pictures are not kept for the next run: %s", why->text);
    events->note(events->user, text);
}

/* cache: the folder, set to NULL once it fails. */
static bool fetch(trainer *t, size_t index, bool flip, const char *vae, const char **cache, const train_events *events, error *err) {
    bucket_size size = t->data->buckets[t->data->images[index].bucket];
    int channels = t->pipeline->model.config.vae_latent_channels, h = size.height / 8, w = size.width / 8;
    posterior *out = &t->latents[flip][index];
    out->mean = memory_new((size_t)(channels * h * w), sizeof(float));
    out->logvar = memory_new((size_t)(channels * h * w), sizeof(float));
    char key[65];
    if (*cache) {
        latent_cache_key(t->data, index, flip, vae, key);
        if (latent_cache_read(*cache, key, channels, h, w, out->mean, out->logvar)) return true;
    }
    if (!encode(t, index, flip, out, err)) return false;
    error why;
    if (*cache && !latent_cache_write(*cache, key, channels, h, w, out->mean, out->logvar, &why)) {
        note_cache(events, &why);
        *cache = NULL;
    }
    return true;
}

bool train_encode_pictures(trainer *t, const train_events *events, bool *stopped, error *err) {
    const char *cache = t->options.cache_folder;
    if (cache && !latent_cache_open(cache, err)) return false;
    char vae[65] = "";
    if (cache) hash_vae(t->pipeline, vae);
    size_t flips = t->data->flip ? 2 : 1, all = t->data->count * flips;
    for (size_t flip = 0; flip < flips; flip++) t->latents[flip] = memory_new(t->data->count, sizeof(posterior));
    for (size_t done = 0; done < all; done++) {
        *stopped = events->stop && events->stop(events->user);
        if (*stopped) return true;
        if (!fetch(t, done % t->data->count, done >= t->data->count, vae, &cache, events, err)) return false;
        if (events->encoded) events->encoded(events->user, done + 1, all);
    }
    pipeline_release(t->pipeline, CHECKPOINT_VAE);
    return true;
}
