#include "pipeline/pipeline.h"

#include "base/memory.h"
#include "pipeline/words.h"
#include "unet/unet.h"
#include "vae/vae.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a recorded forward pass is for. */
typedef enum plan_kind { PLAN_TEXT, PLAN_TEXT_ALL, PLAN_UNET, PLAN_VAE_ENCODE, PLAN_VAE_DECODE, PLAN_KINDS } plan_kind;

static const checkpoint_part PART_OF[PLAN_KINDS] = {CHECKPOINT_TEXT_ENCODER, CHECKPOINT_TEXT_ENCODER, CHECKPOINT_UNET, CHECKPOINT_VAE,
                                                    CHECKPOINT_VAE};

typedef struct pipeline_plan {
    plan *plan; /* NULL: none */
    int key[4]; /* the shape it was made for */
    tensor *in[3], *out[2];
} pipeline_plan;

pipeline *pipeline_open(const char *model, const char *vae, const char *tokenizer_folder, device *d, error *err) {
    pipeline *p = memory_new(1, sizeof *p);
    p->device = d;
    if (!checkpoint_open(&p->model, model, vae, err)) {
        free(p);
        return NULL;
    }
    p->adapters = adapter_stack_create();
    p->plans = memory_new(PLAN_KINDS, sizeof *p->plans);
    const char *folder = tokenizer_folder ? tokenizer_folder : p->model.config.tokenizer;
    bool ok = text_encoder_get_sizes(&p->model, &p->text, err) && (p->modules = module_table_create(&p->model, err)) &&
              (p->tokenizer = folder ? tokenizer_open_folder(folder, err) : tokenizer_open_builtin(err));
    if (ok && p->text.positions != TOKENIZER_LENGTH)
        ok = error_set(err, "%s: the text encoder has %lld positions, Stable Diffusion 1.x has %d", model, (long long)p->text.positions,
                       TOKENIZER_LENGTH);
    if (ok && tokenizer_vocabulary(p->tokenizer) > p->text.vocabulary)
        ok =
            error_set(err, "%s: the tokenizer knows %d tokens, the text encoder only %lld; use --tokenizer with the one that belongs to it",
                      model, tokenizer_vocabulary(p->tokenizer), (long long)p->text.vocabulary);
    if (ok) return p;
    pipeline_close(p);
    return NULL;
}

static void drop_plan(pipeline_plan *slot) {
    plan_free(slot->plan);
    slot->plan = NULL;
}

static void drop_plans(pipeline *p, checkpoint_part part) {
    for (int kind = 0; kind < PLAN_KINDS; kind++)
        if (PART_OF[kind] == part) drop_plan(&p->plans[kind]);
}

void pipeline_use_arena(pipeline *p, shared_arena *arena) {
    for (int kind = 0; kind < PLAN_KINDS; kind++) drop_plan(&p->plans[kind]);
    p->arena = arena;
}

void pipeline_release(pipeline *p, checkpoint_part part) {
    drop_plans(p, part);
    weights_close(p->weights[part]);
    p->weights[part] = NULL;
}

void pipeline_adapters_changed(pipeline *p) {
    drop_plans(p, CHECKPOINT_UNET);
    drop_plans(p, CHECKPOINT_TEXT_ENCODER);
}

void pipeline_close(pipeline *p) {
    if (!p) return;
    for (int part = 0; part < CHECKPOINT_PARTS; part++) pipeline_release(p, (checkpoint_part)part);
    adapter_stack_free(p->adapters);
    if (p->tokenizer) tokenizer_close(p->tokenizer);
    if (p->modules) module_table_free(p->modules);
    checkpoint_close(&p->model);
    free(p->plans);
    free(p);
}

layer_scope pipeline_scope(pipeline *p, tape *t, checkpoint_part part) {
    if (!p->weights[part]) p->weights[part] = weights_open(&p->model, part, p->device);
    return (layer_scope){.tape = t, .weights = p->weights[part], .adapters = part == CHECKPOINT_VAE ? NULL : p->adapters};
}

/* ---- one function a kind: appends its forward pass for the shape in slot->key ---- */

static void record_text(pipeline *p, tape *t, pipeline_plan *slot) {
    layer_scope s = pipeline_scope(p, t, CHECKPOINT_TEXT_ENCODER);
    slot->in[0] = tape_input(t, "embedded tokens", DTYPE_COUNT, 3, (int64_t[]){slot->key[0], p->text.positions, p->text.width});
    slot->out[0] = text_encoder_forward(&s, slot->in[0], slot->key[1]);
}

static void record_text_all(pipeline *p, tape *t, pipeline_plan *slot) {
    layer_scope s = pipeline_scope(p, t, CHECKPOINT_TEXT_ENCODER);
    slot->in[0] = tape_input(t, "embedded tokens", DTYPE_COUNT, 3, (int64_t[]){slot->key[0], p->text.positions, p->text.width});
    slot->out[0] = text_encoder_forward_both(&s, slot->in[0], &slot->out[1]);
}

static void record_unet(pipeline *p, tape *t, pipeline_plan *slot) {
    layer_scope s = pipeline_scope(p, t, CHECKPOINT_UNET);
    int n = slot->key[0];
    slot->in[0] = tape_input(t, "sample", DTYPE_COUNT, 4, (int64_t[]){n, slot->key[1], slot->key[2], p->model.config.vae_latent_channels});
    slot->in[1] = tape_input(t, "timestep embedding", DTYPE_COUNT, 2, (int64_t[]){n, unet_time_channels(&p->model)});
    slot->in[2] = tape_input(t, "text states", DTYPE_COUNT, 3, (int64_t[]){n, slot->key[3], p->text.width});
    slot->out[0] = unet_forward(&s, slot->in[0], slot->in[1], slot->in[2]);
}

static void record_vae_encode(pipeline *p, tape *t, pipeline_plan *slot) {
    layer_scope s = pipeline_scope(p, t, CHECKPOINT_VAE);
    slot->in[0] = tape_input(t, "image", DTYPE_COUNT, 4, (int64_t[]){slot->key[0], slot->key[1], slot->key[2], 3});
    slot->out[0] = vae_encode(&s, slot->in[0]);
}

static void record_vae_decode(pipeline *p, tape *t, pipeline_plan *slot) {
    layer_scope s = pipeline_scope(p, t, CHECKPOINT_VAE);
    slot->in[0] = tape_input(t, "latents", DTYPE_COUNT, 4,
                             (int64_t[]){slot->key[0], slot->key[1], slot->key[2], p->model.config.vae_latent_channels});
    slot->out[0] = vae_decode(&s, slot->in[0]);
}

static void (*const RECORD[PLAN_KINDS])(pipeline *, tape *, pipeline_plan *) = {
    [PLAN_TEXT] = record_text,
    [PLAN_TEXT_ALL] = record_text_all,
    [PLAN_UNET] = record_unet,
    [PLAN_VAE_ENCODE] = record_vae_encode,
    [PLAN_VAE_DECODE] = record_vae_decode,
};

static tape *record_kind(pipeline *p, plan_kind kind, pipeline_plan *slot) {
    tape *t = tape_create(p->device);
    RECORD[kind](p, t, slot);
    tape_keep(slot->out[0]);
    tape_keep(slot->out[1]);
    return t;
}

/* The plan of that kind and shape, made when the last one had another shape. NULL on error. */
static pipeline_plan *prepare(pipeline *p, plan_kind kind, const int key[4], error *err) {
    pipeline_plan *slot = &p->plans[kind];
    if (slot->plan && memcmp(slot->key, key, sizeof slot->key) == 0) return slot;
    drop_plan(slot);
    *slot = (pipeline_plan){0};
    memcpy(slot->key, key, sizeof slot->key);
    tape *t = record_kind(p, kind, slot);
    plan_size size;
    bool lent = p->arena && plan_measure(t, &size, NULL) && size.arena <= arena_bytes(p->arena);
    slot->plan = plan_create_in(t, lent ? p->arena : NULL, err);
    return slot->plan ? slot : NULL;
}

static bool measure(pipeline *p, plan_kind kind, const int key[4], plan_size *size, error *err) {
    pipeline_plan slot = {0};
    memcpy(slot.key, key, sizeof slot.key);
    tape *t = record_kind(p, kind, &slot);
    bool ok = plan_measure(t, size, err);
    tape_free(t);
    return ok;
}

bool pipeline_measure_encode_text(pipeline *p, int n, plan_size *size, error *err) {
    return measure(p, PLAN_TEXT, (int[4]){n, 1}, size, err);
}

bool pipeline_measure_predict(pipeline *p, int n, int h, int w, int tokens, plan_size *size, error *err) {
    return measure(p, PLAN_UNET, (int[4]){n, h, w, tokens}, size, err);
}

bool pipeline_measure_vae_encode(pipeline *p, int n, int height, int width, plan_size *size, error *err) {
    return measure(p, PLAN_VAE_ENCODE, (int[4]){n, height, width}, size, err);
}

bool pipeline_measure_vae_decode(pipeline *p, int n, int h, int w, plan_size *size, error *err) {
    return measure(p, PLAN_VAE_DECODE, (int[4]){n, h, w}, size, err);
}

/* ---- host side ---- */

void pipeline_channels_last(const float *in, int n, int c, int64_t pixels, float *out) {
    for (int i = 0; i < n; i++)
        for (int64_t px = 0; px < pixels; px++)
            for (int j = 0; j < c; j++) out[(i * pixels + px) * c + j] = in[(i * c + j) * pixels + px];
}

void pipeline_channels_first(const float *in, int n, int c, int64_t pixels, float *out) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < c; j++)
            for (int64_t px = 0; px < pixels; px++) out[(i * c + j) * pixels + px] = in[(i * pixels + px) * c + j];
}

static bool write_image(pipeline *p, tensor *t, const float *values, error *err) {
    float *turned = memory_new((size_t)tensor_count(t), sizeof *turned);
    pipeline_channels_last(values, (int)t->dim[0], (int)t->dim[3], t->dim[1] * t->dim[2], turned);
    bool ok = tensor_write(p->device, t, turned, err);
    free(turned);
    return ok;
}

static bool read_image(pipeline *p, const tensor *t, float *values, error *err) {
    float *turned = memory_new((size_t)tensor_count(t), sizeof *turned);
    bool ok = tensor_read(p->device, t, turned, err);
    if (ok) pipeline_channels_first(turned, (int)t->dim[0], (int)t->dim[3], t->dim[1] * t->dim[2], values);
    free(turned);
    return ok;
}

static bool write_tokens(pipeline *p, tensor *t, const int32_t *ids, int n, error *err) {
    float *embedded = memory_new((size_t)tensor_count(t), sizeof *embedded);
    int64_t count;
    float *words = pipeline_word_vectors(p, &count);
    bool ok = text_encoder_embed_more(&p->model, ids, n, words, count, embedded, err) && tensor_write(p->device, t, embedded, err);
    free(words);
    free(embedded);
    return ok;
}

bool pipeline_encode_text(pipeline *p, const int32_t *ids, int n, int clip_skip, float *out, error *err) {
    pipeline_plan *slot = prepare(p, PLAN_TEXT, (int[4]){n, clip_skip}, err);
    return slot && write_tokens(p, slot->in[0], ids, n, err) && plan_run(slot->plan, err) && tensor_read(p->device, slot->out[0], out, err);
}

bool pipeline_encode_text_all(pipeline *p, const int32_t *ids, int n, float *last, float *penultimate, float *pooled, error *err) {
    pipeline_plan *slot = prepare(p, PLAN_TEXT_ALL, (int[4]){n}, err);
    if (!slot || !write_tokens(p, slot->in[0], ids, n, err) || !plan_run(slot->plan, err)) return false;
    if (!tensor_read(p->device, slot->out[0], last, err) || !tensor_read(p->device, slot->out[1], penultimate, err)) return false;
    int64_t tokens = p->text.positions, width = p->text.width;
    for (int i = 0; i < n; i++) {
        int64_t end = 0;
        for (int64_t k = 1; k < tokens; k++)
            if (ids[i * tokens + k] > ids[i * tokens + end]) end = k;
        memcpy(pooled + i * width, last + (i * tokens + end) * width, (size_t)width * sizeof *pooled);
    }
    return true;
}

bool pipeline_predict(pipeline *p, const float *sample, int n, int h, int w, const float *timesteps, const float *context, int tokens,
                      float *out, error *err) {
    pipeline_plan *slot = prepare(p, PLAN_UNET, (int[4]){n, h, w, tokens}, err);
    if (!slot) return false;
    float *time = memory_new((size_t)tensor_count(slot->in[1]), sizeof *time);
    unet_embed_timesteps(timesteps, n, tensor_columns(slot->in[1]), time);
    bool ok = tensor_write(p->device, slot->in[1], time, err) && tensor_write(p->device, slot->in[2], context, err) &&
              write_image(p, slot->in[0], sample, err) && plan_run(slot->plan, err) && read_image(p, slot->out[0], out, err);
    free(time);
    return ok;
}

bool pipeline_vae_encode(pipeline *p, const float *image, int n, int height, int width, float *mean, float *logvar, error *err) {
    pipeline_plan *slot = prepare(p, PLAN_VAE_ENCODE, (int[4]){n, height, width}, err);
    if (!slot || !write_image(p, slot->in[0], image, err) || !plan_run(slot->plan, err)) return false;
    const tensor *out = slot->out[0];
    int64_t each = out->dim[3] / 2 * out->dim[1] * out->dim[2];
    float *both = memory_new((size_t)tensor_count(out), sizeof *both);
    bool ok = read_image(p, out, both, err);
    for (int i = 0; ok && i < n; i++) {
        memcpy(mean + i * each, both + 2 * i * each, (size_t)each * sizeof *mean);
        for (int64_t k = 0; k < each; k++) logvar[i * each + k] = fminf(fmaxf(both[(2 * i + 1) * each + k], -30.0f), 20.0f);
    }
    free(both);
    return ok;
}

bool pipeline_vae_decode(pipeline *p, const float *latents, int n, int h, int w, float *image, error *err) {
    pipeline_plan *slot = prepare(p, PLAN_VAE_DECODE, (int[4]){n, h, w}, err);
    return slot && write_image(p, slot->in[0], latents, err) && plan_run(slot->plan, err) && read_image(p, slot->out[0], image, err);
}

void pipeline_count(const pipeline *p, checkpoint_part part, gpu_counts *sum) {
    for (int kind = 0; kind < PLAN_KINDS; kind++)
        if (PART_OF[kind] == part && p->plans[kind].plan) plan_count(p->plans[kind].plan, sum);
}

void pipeline_profile(const pipeline *p, checkpoint_part part,
                      void (*report)(void *user, const char *op, int records, double seconds, double flops), void *user) {
    for (int kind = 0; kind < PLAN_KINDS; kind++)
        if (PART_OF[kind] == part && p->plans[kind].plan) plan_profile(p->plans[kind].plan, report, user);
}
