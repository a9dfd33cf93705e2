#include "cli/draw_options.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t fresh_seed(void) {
    uint32_t seed = 0;
    FILE *file = fopen("/dev/urandom", "rb");
    if (!file || fread(&seed, sizeof seed, 1, file) != 1) seed = (uint32_t)time(NULL) * 2654435761u ^ (uint32_t)getpid();
    if (file) fclose(file);
    return seed;
}

bool draw_options_read(const options *o, const session *s, draw_settings *out, uint64_t *seed, error *err) {
    options_size native = session_native_size(s);
    *out = (draw_settings){.width = o->width ? (int)o->width : native.width,
                           .height = o->height ? (int)o->height : native.height,
                           .steps = (int)o->steps,
                           .clip_skip = (int)o->clip_skip,
                           .cfg = (float)o->cfg};
    out->sampler = sampler_kind_find(o->sampler, err);
    if (!out->sampler || !random_source_find(&out->source, o->noise, err)) return false;
    *seed = o->seed < 0 ? fresh_seed() : (uint64_t)o->seed;
    /* webui's "Automatic" is Karras for the samplers whose authors recommend it; of ours that is DPM++ 2M. */
    const char *spacing = strcmp(o->schedule, "auto")                           ? o->schedule
                          : out->sampler == sampler_kind_find("dpmpp-2m", NULL) ? "karras"
                                                                                : "default";
    return sigma_spacing_find(&out->spacing, spacing, err);
}
