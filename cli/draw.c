#include "cli/draw.h"

#include "base/bytes.h"
#include "base/memory.h"
#include "pipeline/words.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- prompts ---- */

static bool encode_stage(pipeline *p, const draw_settings *s, const char *text, float **states, int *tokens, error *err) {
    /* The whole prompt was tokenized before, so its pieces are valid UTF-8. */
    prompt_tokenizer tokens_of = {.encode = pipeline_encode_words,
                                  .user = p,
                                  .start_id = tokenizer_start(p->tokenizer),
                                  .end_id = tokenizer_end(p->tokenizer),
                                  .together = pipeline_word_length};
    prompt_fragments fragments;
    prompt_chunks chunks;
    if (!prompt_fragments_parse(&fragments, text, err)) return false;
    prompt_chunks_build(&chunks, &fragments, &tokens_of);
    prompt_fragments_free(&fragments);
    size_t width = (size_t)p->text.width, chunk = (size_t)PROMPT_CHUNK * width;
    *states = memory_new((size_t)chunks.count * chunk, sizeof **states);
    *tokens = chunks.count * PROMPT_CHUNK;
    bool ok = true;
    /* Chunk by chunk: one recorded text encoder serves prompts of every length. */
    for (int i = 0; ok && i < chunks.count; i++) {
        float *out = *states + (size_t)i * chunk;
        ok = pipeline_encode_text(p, chunks.ids + (size_t)i * PROMPT_CHUNK, 1, s->clip_skip, out, err);
        if (ok) prompt_emphasize(out, chunks.weights + (size_t)i * PROMPT_CHUNK, width);
    }
    prompt_chunks_free(&chunks);
    return ok;
}

static bool encode_prompt(pipeline *p, const draw_settings *s, const char *text, bool negative, draw_prompt *out, error *err) {
    int32_t *ids = NULL;
    size_t count;
    bool valid = tokenizer_encode(p->tokenizer, text, strlen(text), &ids, &count, err);
    free(ids);
    if (!valid || !prompt_parse(&out->parsed, text, s->steps, negative, err))
        return error_prefix(err, negative ? "negative prompt" : "prompt");
    out->states = memory_new((size_t)out->parsed.stage_count, sizeof *out->states);
    out->tokens = memory_new((size_t)out->parsed.stage_count, sizeof *out->tokens);
    for (int i = 0; i < out->parsed.stage_count; i++)
        if (!encode_stage(p, s, out->parsed.stages[i].text, &out->states[i], &out->tokens[i], err)) return false;
    return true;
}

bool draw_prompts_encode(pipeline *p, const draw_settings *s, const char *positive, const char *negative, draw_prompts *out, error *err) {
    *out = (draw_prompts){.positive = {.states = NULL}};
    return encode_prompt(p, s, positive, false, &out->positive, err) &&
           (s->cfg == 1 || encode_prompt(p, s, negative, true, &out->negative, err));
}

static void free_prompt(draw_prompt *d) {
    for (int i = 0; d->states && i < d->parsed.stage_count; i++) free(d->states[i]);
    free(d->states);
    free(d->tokens);
    prompt_free(&d->parsed);
    *d = (draw_prompt){.states = NULL};
}

void draw_prompts_free(draw_prompts *prompts) {
    free_prompt(&prompts->positive);
    free_prompt(&prompts->negative);
}

/* ---- memory ---- */

static int most_tokens(const draw_prompt *d) {
    int most = 0;
    for (int i = 0; i < d->parsed.stage_count; i++)
        if (d->tokens[i] > most) most = d->tokens[i];
    return most;
}

/* Bytes of a plan with weights that are not loaded yet, and of the drivers and the program around it. */
static uint64_t with_margin(size_t bytes) { return (uint64_t)((double)bytes * 1.05); }

bool draw_measure(pipeline *p, const draw_settings *s, const draw_prompts *prompts, draw_memory *memory, error *err) {
    plan_size unet, vae;
    int h = s->height / 8, w = s->width / 8, with = most_tokens(&prompts->positive);
    int without = s->cfg == 1 ? with : most_tokens(&prompts->negative);
    bool both = s->cfg != 1 && !s->one_by_one && with == without;
    if (!pipeline_measure_predict(p, both ? 2 : 1, h, w, with > without ? with : without, &unet, err) ||
        !pipeline_measure_vae_decode(p, 1, h, w, &vae, err))
        return false;
    device_room room = device_get_room(p->device);
    uint64_t denoising = with_margin(unet.missing + unet.arena), decoding = with_margin(vae.missing + vae.arena);
    uint64_t larger = denoising > decoding ? denoising : decoding;
    *memory = (draw_memory){unet.constants + unet.arena, vae.constants + vae.arena, .fits = larger <= room.most};
    memory->easily = larger <= room.free;
    memory->together = denoising + decoding <= room.free;
    return true;
}

static size_t larger_of(const draw_memory *m) { return m->denoising > m->decoding ? m->denoising : m->decoding; }

static bool refuse(pipeline *p, const draw_settings *s, const draw_prompts *prompts, const draw_memory *m, error *err) {
    char need[24], has[24], less[24];
    bytes_text(with_margin(larger_of(m)), need);
    bytes_text(device_get_room(p->device).most + p->device->live_bytes, has);
    const char *what = m->decoding > m->denoising ? "decoding" : "denoising";
    for (int eighths = 7; eighths > 0; eighths--) {
        draw_settings smaller = *s;
        draw_memory other;
        smaller.width = s->width * eighths / 64 * 8;
        smaller.height = s->height * eighths / 64 * 8;
        if (smaller.width < 64 || smaller.height < 64 || !draw_measure(p, &smaller, prompts, &other, err) || !other.fits) continue;
        return error_set(err, "%s a picture of %dx%d needs %s of memory, %s has %s for it; --width %d --height %d would fit (%s)", what,
                         s->width, s->height, need, p->device->name, has, smaller.width, smaller.height,
                         bytes_text(with_margin(larger_of(&other)), less));
    }
    return error_set(err, "%s a picture of %dx%d needs %s of memory, %s has %s for it, and nothing smaller fits%s", what, s->width,
                     s->height, need, p->device->name, has, p->device->gpu ? "; --device cpu uses the machine's own memory" : "");
}

bool draw_fit_memory(pipeline *p, draw_settings *s, const draw_prompts *prompts, bool more_follow, draw_memory *memory, error *err) {
    if (!draw_measure(p, s, prompts, memory, err)) return false;
    if (!memory->easily && s->cfg != 1 && memory->denoising > memory->decoding) {
        s->one_by_one = true;
        if (!draw_measure(p, s, prompts, memory, err)) return false;
    }
    /* The processor's memory is everybody's, and loading is quick there. */
    s->keep_models = more_follow && p->device->gpu && memory->together;
    return memory->fits || refuse(p, s, prompts, memory, err);
}

/* ---- denoising ---- */

typedef struct painter {
    pipeline *pipeline;
    const draw_prompts *prompts;
    bool one_by_one;
    int h, w;
    float *sample, *context, *both; /* room for two of each, for one run with and without the prompt */
} painter;

static bool predict(void *user, int i, const float *sample, float timestep, float *cond, float *uncond, error *err) {
    painter *d = user;
    const draw_prompt *with = &d->prompts->positive, *without = &d->prompts->negative;
    pipeline *p = d->pipeline;
    size_t count = 4 * (size_t)d->h * (size_t)d->w;
    const float times[2] = {timestep, timestep};
    int a = prompt_stage_at(&with->parsed, i);
    if (!uncond) return pipeline_predict(p, sample, 1, d->h, d->w, times, with->states[a], with->tokens[a], cond, err);
    int b = prompt_stage_at(&without->parsed, i);
    /* Prompts of different length run one by one, as in webui: padding would change the picture. */
    if (d->one_by_one || with->tokens[a] != without->tokens[b])
        return pipeline_predict(p, sample, 1, d->h, d->w, times, with->states[a], with->tokens[a], cond, err) &&
               pipeline_predict(p, sample, 1, d->h, d->w, times, without->states[b], without->tokens[b], uncond, err);
    size_t states = (size_t)with->tokens[a] * (size_t)p->text.width;
    d->context = memory_grow(d->context, 2 * states, sizeof *d->context);
    memcpy(d->context, with->states[a], states * sizeof *d->context);
    memcpy(d->context + states, without->states[b], states * sizeof *d->context);
    memcpy(d->sample, sample, count * sizeof *sample);
    memcpy(d->sample + count, sample, count * sizeof *sample);
    if (!pipeline_predict(p, d->sample, 2, d->h, d->w, times, d->context, with->tokens[a], d->both, err)) return false;
    memcpy(cond, d->both, count * sizeof *cond);
    memcpy(uncond, d->both + count, count * sizeof *uncond);
    return true;
}

static bool decode(pipeline *p, const draw_settings *s, float *latents, uint8_t **rgb, error *err) {
    size_t count = 4 * (size_t)(s->width / 8) * (size_t)(s->height / 8), pixels = (size_t)s->width * (size_t)s->height;
    float *image = memory_new(3 * pixels, sizeof *image);
    for (size_t i = 0; i < count; i++) latents[i] /= p->model.config.vae_scaling_factor;
    bool ok = pipeline_vae_decode(p, latents, 1, s->height / 8, s->width / 8, image, err);
    for (size_t i = 0; ok && i < 3 * pixels; i++)
        if (!isfinite(image[i])) ok = error_set(err, "the VAE's output is not finite; use --precision fp32");
    if (ok) {
        *rgb = memory_new(pixels, 3);
        for (size_t i = 0; i < pixels; i++)
            for (size_t c = 0; c < 3; c++) (*rgb)[3 * i + c] = (uint8_t)lrintf(255 * fminf(fmaxf(image[c * pixels + i] / 2 + 0.5f, 0), 1));
    }
    free(image);
    if (!s->keep_models) pipeline_release(p, CHECKPOINT_VAE);
    return ok;
}

denoise_status draw_picture(pipeline *p, const draw_settings *s, const draw_prompts *prompts, uint64_t seed, const draw_watch *watch,
                            uint8_t **rgb, error *err) {
    static const draw_watch nobody = {0};
    if (!watch) watch = &nobody;
    *rgb = NULL;
    noise_schedule schedule;
    sampler_state sampler;
    random_noise noise;
    painter d = {.pipeline = p, .prompts = prompts, .one_by_one = s->one_by_one, .h = s->height / 8, .w = s->width / 8};
    size_t count = 4 * (size_t)d.h * (size_t)d.w;
    noise_schedule_init(&schedule);
    if (!sampler_create(&sampler, &schedule, s->sampler, s->spacing, s->steps, count, err)) return DENOISE_FAILED;
    float *sample = memory_new(count, sizeof *sample);
    d.sample = memory_new(2 * count, sizeof *sample);
    d.both = memory_new(2 * count, sizeof *sample);
    random_noise_init(&noise, s->source, seed);
    random_noise_fill(&noise, sample, count);
    denoise_start(&sampler, sample, sample);
    denoise_options run = {.predict = predict,
                           .predict_user = &d,
                           .progress = watch->progress,
                           .progress_user = watch->user,
                           .cancel = watch->cancel,
                           .cfg = s->cfg,
                           .images = 1,
                           .noise = &noise};
    denoise_status status = denoise_run(&sampler, &run, sample, err);
    if (!s->keep_models) pipeline_release(p, CHECKPOINT_UNET);
    if (status == DENOISE_DONE && watch->decoding) watch->decoding(watch->user);
    if (status == DENOISE_DONE && !decode(p, s, sample, rgb, err)) status = DENOISE_FAILED;
    sampler_destroy(&sampler);
    free(d.context);
    free(d.sample);
    free(d.both);
    free(sample);
    return status;
}
