/* vulora generate: pictures from a prompt, with a stack of adapters. */
#include "base/file.h"
#include "base/memory.h"
#include "cli/commands.h"
#include "cli/draw_options.h"
#include "cli/infotext.h"
#include "cli/lora_folder.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "formats/png_text.h"

#include <stdlib.h>
#include <string.h>

typedef struct generation {
    const options *options;
    session session;
    draw_settings settings;
    draw_prompts prompts;
    infotext_lora *loras;
    int lora_count;
    uint64_t seed;
    char model_hash[11], *model_name;
    progress progress;
    atomic_bool cancel;
    int64_t steps_done;
} generation;

/* ---- before any work ---- */

/* out.png, out-2.png, out-3.png; freed by the caller. */
static char *output_path(const options *o, int64_t index) {
    const char *dot = strrchr(o->output, '.');
    return index == 0 ? memory_string(o->output)
                      : memory_format("%.*s-%lld%s", (int)(dot - o->output), o->output, (long long)index + 1, dot);
}

static bool check_options(const options *o, error *err) {
    if (!o->model)
        return error_set(err, "--model is missing: name a Stable Diffusion 1.5 checkpoint (.safetensors), a diffusers folder, or demo");
    if (!o->prompt) return error_set(err, "--prompt is missing: say what to draw");
    if (!o->output) return error_set(err, "--output is missing: name the picture to write, out.png for example");
    const char *dot = strrchr(o->output, '.');
    if (!dot || strcmp(dot, ".png") != 0)
        return error_set(err, "--output: %s does not end in .png; pictures are written as PNG", o->output);
    if (o->lora_dir && !file_is_directory(o->lora_dir)) return error_set(err, "--lora-dir: %s is not a folder", o->lora_dir);
    return true;
}

static bool check_places(const options *o, error *err) {
    bool ok = true;
    for (int64_t i = 0; ok && i < o->batch; i++) {
        char *path = output_path(o, i);
        ok = file_check_output(path, "--output", err);
        free(path);
    }
    return ok;
}

/* ---- adapters ---- */

static void note_lora(generation *g, const adapter_spec *spec, bool in_prompt) {
    g->loras = memory_grow(g->loras, (size_t)g->lora_count + 1, sizeof *g->loras);
    infotext_lora *l = &g->loras[g->lora_count++];
    *l = (infotext_lora){
        .name = infotext_stem(spec->path), .unet_weight = spec->unet_weight, .text_weight = spec->text_weight, .in_prompt = in_prompt};
    if (spec->blocks.given) block_weights_text(&spec->blocks, l->blocks);
    infotext_lora_hash(spec->path, l->hash);
}

static bool note_option_loras(generation *g, error *err) {
    for (int i = 0; i < g->options->loras.count; i++) {
        adapter_spec spec;
        if (!adapter_spec_parse(g->options->loras.item[i], &spec, err)) return false;
        note_lora(g, &spec, false);
        free(spec.path);
    }
    return true;
}

/* The adapters that the prompt names go on top of those of --lora. */
static bool add_prompt_loras(generation *g, error *err) {
    prompt_plan parsed;
    if (!prompt_parse(&parsed, g->options->prompt, g->settings.steps, false, err)) return error_prefix(err, "prompt");
    bool ok = true;
    for (int i = 0; ok && i < parsed.lora_count; i++) {
        const prompt_lora *l = &parsed.loras[i];
        adapter_spec spec = {.unet_weight = l->unet_weight, .text_weight = l->te_weight};
        ok = !l->blocks || block_weights_parse(&spec.blocks, l->blocks, err) || error_prefix(err, "prompt: <lora:%s>", l->name);
        spec.path = ok ? lora_folder_find(g->options->lora_dir, l->name, err) : NULL;
        ok = spec.path && session_add_adapter(&g->session, &spec, false, err);
        if (ok) note_lora(g, &spec, true);
        free(spec.path);
    }
    prompt_free(&parsed);
    return ok;
}

/* ---- drawing ---- */

static void on_step(void *user, int i, int steps, const float *sample) {
    generation *g = user;
    (void)i, (void)steps, (void)sample;
    progress_update(&g->progress, ++g->steps_done, NULL);
    if (interrupt_requested()) atomic_store(&g->cancel, true);
}

static void on_decoding(void *user) {
    generation *g = user;
    progress_update(&g->progress, g->steps_done, "decoding");
}

static bool write_picture(generation *g, const char *path, uint64_t seed, const uint8_t *rgb, error *err) {
    infotext info = {.prompt = g->options->prompt,
                     .negative = g->options->negative,
                     .settings = &g->settings,
                     .seed = seed,
                     .model = g->model_name,
                     .loras = g->loras,
                     .lora_count = g->lora_count};
    memcpy(info.model_hash, g->model_hash, sizeof info.model_hash);
    char *text = infotext_make(&info);
    bool ok = png_write(path, rgb, g->settings.width, g->settings.height, 3, &(png_text){"parameters", text}, 1, err);
    free(text);
    return ok;
}

static denoise_status draw_one(generation *g, int64_t index, error *err) {
    uint8_t *rgb = NULL;
    uint64_t seed = g->seed + (uint64_t)index;
    draw_watch watch = {.progress = on_step, .decoding = on_decoding, .user = g, .cancel = &g->cancel};
    denoise_status status = draw_picture(g->session.pipeline, &g->settings, &g->prompts, seed, &watch, &rgb, err);
    char *path = output_path(g->options, index);
    if (status == DENOISE_DONE && !write_picture(g, path, seed, rgb, err)) status = DENOISE_FAILED;
    if (status == DENOISE_DONE) terminal_say("%s: %dx%d, seed %llu", path, g->settings.width, g->settings.height, (unsigned long long)seed);
    free(path);
    free(rgb);
    return status;
}

static bool fit_memory(generation *g, bool more_follow, error *err) {
    draw_settings *s = &g->settings;
    draw_memory m;
    if (!draw_fit_memory(g->session.pipeline, s, &g->prompts, more_follow, &m, err)) return false;
    if (!m.easily)
        terminal_warn("note: this takes more memory than is free now; other programs will be driven out of it, or drawing will be slow");
    if (s->one_by_one) terminal_say("note: memory is short, so every step runs once with and once without the prompt; that takes longer");
    return true;
}

static bool prepare(generation *g, error *err) {
    const options *o = g->options;
    if (!note_option_loras(g, err) || !session_open(&g->session, o, err) ||
        !draw_options_read(o, &g->session, &g->settings, &g->seed, err) || !add_prompt_loras(g, err))
        return false;
    g->model_name = strcmp(o->model, "demo") ? infotext_stem(o->model) : memory_string("demo");
    infotext_model_hash(g->session.model_path, g->model_hash);
    bool ok = draw_prompts_encode(g->session.pipeline, &g->settings, o->prompt, o->negative, &g->prompts, err);
    pipeline_release(g->session.pipeline, CHECKPOINT_TEXT_ENCODER);
    return ok && fit_memory(g, o->batch > 1, err);
}

int cmd_generate(const options *o) {
    error err = {""};
    generation g = {.options = o};
    if (!check_options(o, &err)) return terminal_refuse(&err);
    if (!check_places(o, &err)) return terminal_fail(&err);
    denoise_status status = prepare(&g, &err) ? DENOISE_DONE : DENOISE_FAILED;
    interrupt_catch();
    if (status == DENOISE_DONE) {
        progress_begin(&g.progress, "step", 0, o->batch * o->steps);
        progress_update(&g.progress, 0, NULL);
    }
    for (int64_t i = 0; status == DENOISE_DONE && i < o->batch; i++) {
        g.settings.keep_models &= i + 1 < o->batch;
        status = draw_one(&g, i, &err);
    }
    progress_end(&g.progress);
    draw_prompts_free(&g.prompts);
    session_close(&g.session);
    for (int i = 0; i < g.lora_count; i++) free(g.loras[i].name);
    free(g.loras);
    free(g.model_name);
    if (status == DENOISE_FAILED) return terminal_fail(&err);
    if (status == DENOISE_CANCELLED) terminal_say("stopped; the pictures finished before are kept");
    return status == DENOISE_CANCELLED ? EXIT_INTERRUPTED : EXIT_DONE;
}
