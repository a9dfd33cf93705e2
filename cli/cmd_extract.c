/* vulora extract: the difference of two models as a LoRA. */
#include "base/file.h"
#include "base/memory.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "convert/extract.h"

#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { LOSSES_SHOWN = 24 };

typedef struct extracting {
    checkpoint base, tuned;
    char *base_path, *tuned_path;
    progress progress;
} extracting;

static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool check_usage(const options *o, error *err) {
    if (!o->model) return error_set(err, "--model is missing: name the model that --tuned was made from");
    if (!o->tuned) return error_set(err, "--tuned is missing: name the model whose difference from --model becomes a LoRA");
    if (!options_given(o, "rank") && !options_given(o, "energy"))
        return error_set(err, "--rank is missing: 32 or 64 for what was trained as a LoRA, 128 for a whole model; or --energy 0.9");
    if (!o->output) return error_set(err, "--output is missing: name the LoRA to write, style.safetensors for example");
    const char *dot = strrchr(o->output, '.');
    if (!dot || strcmp(dot, ".safetensors"))
        return error_set(err, "--output: %s does not end in .safetensors; adapters are written in that format", o->output);
    if (same_file(o->output, o->model) || same_file(o->output, o->tuned))
        return error_set(err, "--output: %s is one of the models; it would be lost", o->output);
    return true;
}

/* ---- talk ---- */

static void show_progress(void *user, int64_t done, int64_t total) {
    progress *p = user;
    if (done == 1) progress_begin(p, "module", 0, total);
    progress_update(p, done, NULL);
}

static void say_losses(const extract_report *r) {
    double squares[CHECKPOINT_PARTS] = {0};
    int shown = terminal_verbose() ? r->loss_count : LOSSES_SHOWN;
    if (r->loss_count == 0 && r->vae_tensors == 0) return;
    for (int i = 0; i < r->loss_count; i++) squares[r->losses[i].part] += r->losses[i].norm * r->losses[i].norm;
    if (r->loss_count)
        terminal_say(
            "not in the LoRA, which holds matrices only: %d norms, biases and embeddings that differ (U-Net %.3g, text encoder %.3g, "
            "as norm of the difference):",
            r->loss_count, sqrt(squares[CHECKPOINT_UNET]), sqrt(squares[CHECKPOINT_TEXT_ENCODER]));
    for (int i = 0; i < r->loss_count && i < shown; i++) {
        const extract_loss *l = &r->losses[i];
        char share[32] = "where the model has zeros";
        if (isfinite(l->share)) snprintf(share, sizeof share, "%.3g %% of it", 100 * l->share);
        terminal_say("  %s %s: %.3g, %s", checkpoint_part_name(l->part), l->name, l->norm, share);
    }
    if (r->loss_count > shown) terminal_say("  and %d more, smaller (--verbose names them)", r->loss_count - shown);
    if (r->vae_tensors)
        terminal_say("not in the LoRA: the VAE, where %d tensors differ; give the tuned one to generate as --vae", r->vae_tensors);
}

static void say_result(const options *o, const extract_report *r) {
    char ranks[64];
    if (r->least_rank == r->most_rank)
        snprintf(ranks, sizeof ranks, "rank %" PRId64, r->most_rank);
    else
        snprintf(ranks, sizeof ranks, "ranks %" PRId64 " to %" PRId64, r->least_rank, r->most_rank);
    terminal_say("%s: %s, %d modules (U-Net %d, text encoder %d), %.4g %% of their squared difference%s", o->output, ranks,
                 r->modules[CHECKPOINT_UNET] + r->modules[CHECKPOINT_TEXT_ENCODER], r->modules[CHECKPOINT_UNET],
                 r->modules[CHECKPOINT_TEXT_ENCODER], 100 * r->held, options_given(o, "clamp-quantile") ? " before clamping" : "");
    if (r->text_encoder_left_out)
        terminal_say("the text encoder differs by no more than --min-diff and was left out");
    else if (r->modules[CHECKPOINT_TEXT_ENCODER] == 0)
        terminal_say("the text encoder does not differ");
    if (r->equal) terminal_detail("%d modules do not differ", r->equal);
    say_losses(r);
}

/* ---- work ---- */

static dtype save_type(const char *name) { return !strcmp(name, "fp32") ? DTYPE_F32 : !strcmp(name, "bf16") ? DTYPE_BF16 : DTYPE_F16; }

static bool extract(extracting *x, const options *o, error *err) {
    extract_options e = {.rank = o->rank,
                         .conv_rank = o->conv_rank,
                         .energy = options_given(o, "energy") ? o->energy : 0,
                         .clamp = options_given(o, "clamp-quantile") ? o->clamp_quantile : 0,
                         .least = o->min_diff,
                         .type = save_type(o->save_precision),
                         .progress = show_progress,
                         .user = &x->progress};
    extract_report report;
    x->base_path = session_find_model(o->model, err);
    x->tuned_path = x->base_path ? session_find_model(o->tuned, err) : NULL;
    if (!x->tuned_path || !checkpoint_open(&x->base, x->base_path, NULL, err)) return false;
    bool ok = checkpoint_open(&x->tuned, x->tuned_path, NULL, err);
    if (ok) {
        double start = terminal_clock();
        char seconds[24];
        ok = extract_lora(&x->base, &x->tuned, o->output, &e, &report, err);
        progress_end(&x->progress);
        if (ok) {
            say_result(o, &report);
            terminal_detail("time: %s", terminal_duration(terminal_clock() - start, seconds));
            extract_report_free(&report);
        }
        checkpoint_close(&x->tuned);
    }
    checkpoint_close(&x->base);
    return ok;
}

int cmd_extract(const options *o) {
    error err = {""};
    extracting x = {0};
    if (o->threads) omp_set_num_threads((int)o->threads);
    if (!check_usage(o, &err)) return terminal_refuse(&err);
    bool ok = file_check_output(o->output, "--output", &err) && extract(&x, o, &err);
    free(x.base_path);
    free(x.tuned_path);
    return ok ? EXIT_DONE : terminal_fail(&err);
}
