/* vulora grid: the same prompts and seeds over several adapters and strengths, on one labelled sheet. Every adapter stands alone; a row is
   an adapter at one strength, a column a prompt with one seed. */
#include "base/file.h"
#include "base/memory.h"
#include "cli/commands.h"
#include "cli/draw_options.h"
#include "cli/infotext.h"
#include "cli/terminal.h"
#include "datasets/sheet.h"
#include "formats/png_text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_STRENGTHS = 64 };

/* An adapter at one strength; none: the bare model. */
typedef struct grid_row {
    int lora; /* of --lora; -1: none */
    double strength;
} grid_row;

typedef struct grid {
    const options *options;
    session session;
    draw_settings settings;
    uint64_t seed;
    adapter_spec *specs; /* [loras] */
    int spec_count;
    double strengths[MOST_STRENGTHS];
    int strength_count;
    grid_row *rows;
    int row_count, columns;
    char **labels, **captions;
    sheet sheet;
    progress progress;
    atomic_bool cancel;
    int64_t steps_done;
} grid;

/* ---- before any work ---- */

static bool check_options(const options *o, error *err) {
    if (!o->model)
        return error_set(err, "--model is missing: name a Stable Diffusion 1.5 checkpoint (.safetensors), a diffusers folder, or demo");
    if (!o->prompts.count) return error_set(err, "--prompt is missing: say what to draw; each one is a column");
    if (!o->loras.count) return error_set(err, "--lora is missing: name an adapter; each one is a row for every strength");
    if (!o->output) return error_set(err, "--output is missing: name the sheet to write, sheet.png for example");
    const char *dot = strrchr(o->output, '.');
    return (dot && !strcmp(dot, ".png")) || error_set(err, "--output: %s does not end in .png; pictures are written as PNG", o->output);
}

static bool read_strengths(grid *g, error *err) {
    char *text = memory_string(g->options->strengths), *rest = NULL;
    bool ok = true;
    for (char *item = strtok_r(text, ",", &rest); ok && item; item = strtok_r(NULL, ",", &rest)) {
        ok = g->strength_count < MOST_STRENGTHS || error_set(err, "--strengths: more than %d are too many for one sheet", MOST_STRENGTHS);
        ok = ok && option_read_real("--strengths", item, -100, 100, &g->strengths[g->strength_count++], err);
    }
    free(text);
    return ok && (g->strength_count || error_set(err, "--strengths: is empty; 0.5,1 for example"));
}

static bool read_adapters(grid *g, error *err) {
    const options_list *loras = &g->options->loras;
    g->specs = memory_new((size_t)loras->count, sizeof *g->specs);
    for (; g->spec_count < loras->count; g->spec_count++)
        if (!adapter_spec_parse(loras->item[g->spec_count], &g->specs[g->spec_count], err)) return false;
    for (int i = 0; i < g->spec_count; i++)
        if (!file_exists(g->specs[i].path)) return error_set(err, "--lora: %s: there is no such file", g->specs[i].path);
    return true;
}

/* ---- the sheet's plan ---- */

static void add_row(grid *g, int lora, double strength) {
    g->rows = memory_grow(g->rows, (size_t)g->row_count + 1, sizeof *g->rows);
    g->labels = memory_grow(g->labels, (size_t)g->row_count + 1, sizeof *g->labels);
    char *stem = lora < 0 ? NULL : infotext_stem(g->specs[lora].path);
    double weight = lora < 0 ? 0 : (double)g->specs[lora].unet_weight * strength;
    g->labels[g->row_count] = lora < 0 ? memory_string("without adapter") : memory_format("%s at %g", stem, weight);
    g->rows[g->row_count++] = (grid_row){lora, strength};
    free(stem);
}

static bool plan_sheet(grid *g, error *err) {
    const options *o = g->options;
    if (o->bare) add_row(g, -1, 0);
    for (int a = 0; a < g->spec_count; a++)
        for (int s = 0; s < g->strength_count; s++) add_row(g, a, g->strengths[s]);
    g->columns = o->prompts.count * (int)o->batch;
    g->captions = memory_new((size_t)g->columns, sizeof *g->captions);
    for (int c = 0; c < g->columns; c++)
        g->captions[c] = memory_format("%s (seed %llu)", o->prompts.item[c / (int)o->batch],
                                       (unsigned long long)(g->seed + (uint64_t)(c % (int)o->batch)));
    sheet_layout layout = {.columns = g->columns,
                           .rows = g->row_count,
                           .captions = (const char *const *)g->captions,
                           .labels = (const char *const *)g->labels,
                           .width = g->settings.width,
                           .height = g->settings.height};
    return sheet_create(&g->sheet, &layout, err);
}

/* ---- drawing ---- */

static void on_step(void *user, int i, int steps, const float *sample) {
    grid *g = user;
    (void)i, (void)steps, (void)sample;
    progress_update(&g->progress, ++g->steps_done, NULL);
    if (interrupt_requested()) atomic_store(&g->cancel, true);
}

static denoise_status draw_cell(grid *g, int row, int column, const draw_prompts *prompts, error *err) {
    draw_watch watch = {.progress = on_step, .user = g, .cancel = &g->cancel};
    image_rgb picture = {g->settings.width, g->settings.height, NULL};
    uint64_t seed = g->seed + (uint64_t)(column % (int)g->options->batch);
    denoise_status status = draw_picture(g->session.pipeline, &g->settings, prompts, seed, &watch, &picture.pixels, err);
    if (status == DENOISE_DONE && !sheet_put(&g->sheet, row, column, &picture, err)) status = DENOISE_FAILED;
    image_free(&picture);
    return status;
}

static bool encode(grid *g, int prompt, draw_prompts *prompts, error *err) {
    const options *o = g->options;
    draw_memory memory;
    pipeline *p = g->session.pipeline;
    bool ok = draw_prompts_encode(p, &g->settings, o->prompts.item[prompt], o->negative, prompts, err);
    pipeline_release(p, CHECKPOINT_TEXT_ENCODER);
    if (ok && prompts->positive.parsed.lora_count)
        return error_set(err, "prompt: names <lora:%s>; the adapters of a grid are given with --lora",
                         prompts->positive.parsed.loras[0].name);
    return ok && draw_fit_memory(p, &g->settings, prompts, true, &memory, err);
}

static denoise_status draw_row(grid *g, int row, error *err) {
    denoise_status status = DENOISE_DONE;
    int batch = (int)g->options->batch;
    for (int prompt = 0; status == DENOISE_DONE && prompt < g->options->prompts.count; prompt++) {
        draw_prompts prompts;
        if (!encode(g, prompt, &prompts, err)) status = DENOISE_FAILED;
        for (int b = 0; status == DENOISE_DONE && b < batch; b++) status = draw_cell(g, row, prompt * batch + b, &prompts, err);
        draw_prompts_free(&prompts);
    }
    return status;
}

/* Rows of one adapter stand together: it is loaded once. */
static denoise_status draw_rows(grid *g, error *err) {
    denoise_status status = DENOISE_DONE;
    adapter_stack *stack = g->session.pipeline->adapters;
    adapter *loaded = NULL;
    for (int r = 0; status == DENOISE_DONE && r < g->row_count; r++) {
        const grid_row *row = &g->rows[r];
        if (loaded && g->rows[r - 1].lora != row->lora) {
            adapter_stack_remove(stack, loaded);
            loaded = NULL;
        }
        if (row->lora >= 0) {
            adapter_spec spec = g->specs[row->lora];
            spec.unet_weight *= (float)row->strength, spec.text_weight *= (float)row->strength;
            if (loaded)
                adapter_stack_set_weights(stack, loaded, spec.unet_weight, spec.text_weight);
            else
                loaded = session_add_adapter(&g->session, &spec, false, err);
            if (!loaded) return DENOISE_FAILED;
        }
        pipeline_adapters_changed(g->session.pipeline);
        status = draw_row(g, r, err);
    }
    return status;
}

/* ---- the command ---- */

static bool prepare(grid *g, error *err) {
    const options *o = g->options;
    return file_check_output(o->output, "--output", err) && read_adapters(g, err) && session_open_device(&g->session, o, err) &&
           session_open_model(&g->session, o, err) && draw_options_read(o, &g->session, &g->settings, &g->seed, err) && plan_sheet(g, err);
}

/* How the first column's pictures were made, as webui's own grids say of their first picture. */
static bool write_sheet(const grid *g, error *err) {
    infotext info = {.prompt = g->options->prompts.item[0],
                     .negative = g->options->negative,
                     .settings = &g->settings,
                     .seed = g->seed,
                     .model = g->options->model};
    char *stem = strcmp(info.model, "demo") ? infotext_stem(info.model) : memory_string("demo");
    info.model = stem;
    char *text = infotext_make(&info);
    bool ok = png_write(g->options->output, g->sheet.pixels, g->sheet.width, g->sheet.height, 3, &(png_text){"parameters", text}, 1, err);
    if (ok)
        terminal_say("%s: %d rows of %d pictures, %dx%d", g->options->output, g->row_count, g->columns, g->sheet.width, g->sheet.height);
    free(text);
    free(stem);
    return ok;
}

static void grid_free(grid *g) {
    for (int i = 0; i < g->spec_count; i++) free(g->specs[i].path);
    for (int r = 0; r < g->row_count; r++) free(g->labels[r]);
    for (int c = 0; g->captions && c < g->columns; c++) free(g->captions[c]);
    free(g->specs);
    free(g->rows);
    free(g->labels);
    free(g->captions);
    sheet_free(&g->sheet);
    session_close(&g->session);
}

int cmd_grid(const options *o) {
    error err = {""};
    grid g = {.options = o};
    if (!check_options(o, &err) || !read_strengths(&g, &err)) return terminal_refuse(&err);
    denoise_status status = prepare(&g, &err) ? DENOISE_DONE : DENOISE_FAILED;
    interrupt_catch();
    if (status == DENOISE_DONE) {
        progress_begin(&g.progress, "step", 0, (int64_t)g.row_count * g.columns * g.settings.steps);
        progress_update(&g.progress, 0, NULL);
        status = draw_rows(&g, &err);
        progress_end(&g.progress);
    }
    if (status == DENOISE_DONE && !write_sheet(&g, &err)) status = DENOISE_FAILED;
    grid_free(&g);
    if (status == DENOISE_FAILED) return terminal_fail(&err);
    if (status == DENOISE_CANCELLED) terminal_say("stopped; no sheet was written");
    return status == DENOISE_CANCELLED ? EXIT_INTERRUPTED : EXIT_DONE;
}
