/* probe: noise schedule, denoising loop, tokenizer. */
#include "base/file.h"
#include "base/memory.h"
#include "cli/probe.h"
#include "cli/terminal.h"
#include "diffusion/denoise.h"

#include <stdlib.h>
#include <string.h>

static bool make_sampler(const options *o, const noise_schedule *schedule, size_t count, sampler_state *out, error *err) {
    sigma_spacing spacing;
    const sampler_kind *kind = sampler_kind_find(o->sampler, err);
    return kind && sigma_spacing_find(&spacing, o->schedule, err) &&
           sampler_create(out, schedule, kind, spacing, (int)o->steps, count, err);
}

bool probe_schedule(probe *p, error *err) {
    sampler_state s;
    noise_schedule *schedule = probe_own(p, memory_new(1, sizeof *schedule));
    noise_schedule_init(schedule);
    if (!make_sampler(p->options, schedule, 1, &s, err)) return false;
    int64_t all[1] = {SCHEDULE_TIMESTEPS}, steps[1] = {s.steps}, sigmas[1] = {s.steps + 1};
    float *timesteps = probe_new(p, s.steps, 1, 1, 1, err), *levels = probe_new(p, s.steps + 1, 1, 1, 1, err);
    if (timesteps && levels) {
        memcpy(timesteps, s.timesteps, (size_t)s.steps * sizeof *timesteps);
        memcpy(levels, s.sigmas, (size_t)(s.steps + 1) * sizeof *levels);
    }
    sampler_destroy(&s);
    return timesteps && levels && probe_result(p, "alphas_cumprod", 1, all, schedule->alphas_cumprod, err) &&
           probe_result(p, "timesteps", 1, steps, timesteps, err) && probe_result(p, "sigmas", 1, sigmas, levels, err);
}

/* ---- denoise ---- */

typedef struct guidance {
    pipeline *pipeline;
    int n, h, w;
    int tokens[2];
    const float *states[2]; /* with the prompt, with the negative prompt: [n, tokens, width] */
    float *timesteps;       /* [n] */
} guidance;

static bool predict(void *user, int i, const float *sample, float timestep, float *cond, float *uncond, error *err) {
    guidance *g = user;
    (void)i;
    for (int k = 0; k < g->n; k++) g->timesteps[k] = timestep;
    return pipeline_predict(g->pipeline, sample, g->n, g->h, g->w, g->timesteps, g->states[0], g->tokens[0], cond, err) &&
           (!uncond || pipeline_predict(g->pipeline, sample, g->n, g->h, g->w, g->timesteps, g->states[1], g->tokens[1], uncond, err));
}

/* States of one prompt go for all n images. */
static bool read_states(probe *p, const char *name, int64_t n, int64_t width, int *tokens, const float **out, error *err) {
    const safetensors_tensor *t = safetensors_find(&p->in, name);
    int64_t dims[3] = {t && t->rank == 3 && t->dims[0] == 1 ? 1 : n, -1, width};
    float *states;
    if (!probe_read(p, name, "[n, t, d]", 3, dims, &states, err)) return false;
    *tokens = (int)dims[1];
    *out = states;
    if (dims[0] == n) return true;
    size_t each = (size_t)(dims[1] * dims[2]);
    float *repeated = probe_new(p, n, dims[1], dims[2], 1, err);
    for (int64_t k = 0; repeated && k < n; k++) memcpy(repeated + (size_t)k * each, states, each * sizeof *states);
    *out = repeated;
    return repeated != NULL;
}

bool probe_denoise(probe *p, error *err) {
    const options *o = p->options;
    pipeline *pl = p->session.pipeline;
    int64_t shape[4] = {-1, pl->model.config.vae_latent_channels, -1, -1};
    float *noise;
    guidance g = {.pipeline = pl};
    if (!probe_read(p, "noise", "[n, 4, h, w]", 4, shape, &noise, err)) return false;
    g.n = (int)shape[0];
    g.h = (int)shape[2];
    g.w = (int)shape[3];
    if (!read_states(p, "encoder_hidden_states", shape[0], pl->text.width, &g.tokens[0], &g.states[0], err)) return false;
    if (o->cfg != 1 && !read_states(p, "uncond_hidden_states", shape[0], pl->text.width, &g.tokens[1], &g.states[1], err)) return false;
    noise_schedule *schedule = probe_own(p, memory_new(1, sizeof *schedule));
    random_noise *fresh = probe_own(p, memory_new((size_t)g.n, sizeof *fresh));
    g.timesteps = probe_own(p, memory_new((size_t)g.n, sizeof *g.timesteps));
    float *sample = probe_new(p, shape[0], shape[1], shape[2], shape[3], err);
    random_source source;
    sampler_state s;
    noise_schedule_init(schedule);
    if (!sample || !random_source_find(&source, o->noise, err) ||
        !make_sampler(o, schedule, (size_t)(shape[0] * shape[1] * shape[2] * shape[3]), &s, err))
        return false;
    for (int k = 0; k < g.n; k++) random_noise_init(&fresh[k], source, (uint64_t)(o->seed + k));
    denoise_options settings = {.predict = predict, .predict_user = &g, .cfg = (float)o->cfg, .images = g.n, .noise = fresh};
    denoise_start(&s, sample, noise);
    bool ok = denoise_run(&s, &settings, sample, err) == DENOISE_DONE && probe_result(p, "latents", 4, shape, sample, err);
    sampler_destroy(&s);
    return ok;
}

/* ---- tokenizer ---- */

static tokenizer *open_tokenizer(const options *o, error *err) {
    if (o->tokenizer) return tokenizer_open_folder(o->tokenizer, err);
    if (!o->model) return tokenizer_open_builtin(err);
    char *path = session_find_model(o->model, err);
    checkpoint model;
    if (!path || !checkpoint_open(&model, path, NULL, err)) {
        free(path);
        return NULL;
    }
    tokenizer *tok = model.config.tokenizer ? tokenizer_open_folder(model.config.tokenizer, err) : tokenizer_open_builtin(err);
    checkpoint_close(&model);
    free(path);
    return tok;
}

static bool print_ids(const tokenizer *tok, const char *text, size_t size, error *err) {
    int32_t ids[TOKENIZER_LENGTH];
    if (!tokenizer_encode_77(tok, text, size, ids, NULL, err)) return false;
    for (int i = 0; i < TOKENIZER_LENGTH; i++) printf("%s%d", i ? ", " : "[", ids[i]);
    puts("]");
    return true;
}

/* Every line that ends in \n is a prompt, an empty one too; what stands behind the last \n is one when there is anything. */
bool probe_tokenizer(probe *p, error *err) {
    const size_t limit = (size_t)1 << 30;
    size_t size = 0;
    char *text = file_read_text(p->options->input, limit, &size, err);
    tokenizer *tok = text ? open_tokenizer(p->options, err) : NULL;
    bool ok = tok != NULL;
    for (size_t at = 0, line = 1; ok && at < size; line++) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t length = end ? (size_t)(end - (text + at)) : size - at;
        ok = print_ids(tok, text + at, length, err) || error_prefix(err, "%s: line %zu", p->options->input, line);
        at += length + 1;
    }
    if (tok) tokenizer_close(tok);
    free(text);
    return ok;
}
