/* Encoded pictures kept on disk. An entry is found by a key over everything that shapes it, so that a changed picture, setting or VAE
   never meets an old entry; an entry that is damaged, cut short or foreign counts as missing and is made anew. Entries appear whole or
   not at all: a crash half-way loses at most the one being written. */
#ifndef VULORA_DATASETS_LATENT_CACHE_H
#define VULORA_DATASETS_LATENT_CACHE_H

#include "base/error.h"
#include "datasets/dataset.h"

#include <stdbool.h>

/* The key of a dataset's picture, mirrored or not, as encoded by a VAE: 64 hex digits. `vae` identifies its weights and the precision
   they were used in (a hash, for example). */
void latent_cache_key(const dataset *ds, size_t image, bool flip, const char *vae, char key[65]);

/* Makes the folder if it is missing; checks that files can be written there. */
bool latent_cache_open(const char *folder, error *err);

/* mean, logvar: [channels, height, width], before the scaling factor. False: there is no such entry, or no sound one. */
bool latent_cache_read(const char *folder, const char key[65], int channels, int height, int width, float *mean, float *logvar);
bool latent_cache_write(const char *folder, const char key[65], int channels, int height, int width, const float *mean, const float *logvar,
                        error *err);

#endif
