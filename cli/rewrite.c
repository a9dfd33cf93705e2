#include "cli/rewrite.h"

#include "base/file.h"
#include "base/memory.h"
#include "cli/session.h"
#include "cli/terminal.h"

#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

static bool read_ranks(const options *o, convert_options *out, error *err) {
    out->rank = (rank_choice){.most = o->rank, .conv_most = o->conv_rank};
    if (o->dynamic && !rank_rule_find(o->dynamic, &out->rank.rule)) return error_set(err, "--dynamic: unknown method %s", o->dynamic);
    if (o->dynamic && !options_given(o, "dynamic-param"))
        return error_set(err, "--dynamic %s: --dynamic-param is missing, %s for example", o->dynamic,
                         out->rank.rule == RANK_RATIO ? "10" : "0.9");
    if (!o->dynamic && options_given(o, "dynamic-param")) return error_set(err, "--dynamic-param goes with --dynamic METHOD");
    if (!o->dynamic && o->conv_rank && !o->rank) return error_set(err, "--conv-rank goes with --rank N, the rank of all other modules");
    out->rank.parameter = o->dynamic ? o->dynamic_param : 0;
    if (out->rank.rule == RANK_RATIO && out->rank.parameter < 1)
        return error_set(err, "--dynamic-param: of sv_ratio it is 1 or more; singular values above the largest / X are kept");
    if (out->rank.rule > RANK_RATIO && out->rank.parameter > 1)
        return error_set(err, "--dynamic-param: of %s it is a share, at most 1", o->dynamic);
    if (out->kind == TARGET_FULL && (o->rank || o->dynamic)) return error_set(err, "--rank: the full difference has none");
    return true;
}

bool rewrite_options(const options *o, convert_options *out, error *err) {
    *out = (convert_options){.type = DTYPE_COUNT, .cut_rank = o->cut_rank, .threads = (int)o->threads};
    if (o->kind) out->kind = !strcmp(o->kind, "full") ? TARGET_FULL : TARGET_LORA;
    if (o->dtype) out->type = !strcmp(o->dtype, "fp32") ? DTYPE_F32 : !strcmp(o->dtype, "bf16") ? DTYPE_BF16 : DTYPE_F16;
    if (!o->output) return error_set(err, "--output is missing: name the adapter to write");
    if (!spell_format_find(o->format, &out->format)) return error_set(err, "--format: unknown format %s", o->format);
    const char *dot = strrchr(o->output, '.');
    bool file = dot && !strcmp(dot, ".safetensors");
    if (out->format != SPELL_PEFT && !file)
        return error_set(err, "--output: %s does not end in .safetensors; adapters are written in that format", o->output);
    if (out->format == SPELL_PEFT && file) return error_set(err, "--output: %s: with --format peft it is the name of a folder", o->output);
    if (out->cut_rank && (o->kind || o->rank || o->dynamic)) return error_set(err, "--cut-rank stands alone: it cuts what a DyLoRA holds");
    return read_ranks(o, out, err);
}

/* Of a folder to be made: its parent is what must be there. */
static bool check_folder(const char *path, error *err) {
    if (file_is_directory(path)) {
        char *inside = memory_format("%s/adapter_config.json", path);
        bool ok = file_check_output(inside, "--output", err);
        free(inside);
        return ok;
    }
    if (file_exists(path)) return error_set(err, "--output: %s is a file; with --format peft it is a folder", path);
    char *trimmed = memory_string(path);
    size_t n = strlen(trimmed);
    while (n > 1 && trimmed[n - 1] == '/') trimmed[--n] = 0;
    bool ok = file_check_output(trimmed, "--output", err);
    free(trimmed);
    return ok;
}

bool rewrite_prepare(const options *o, convert_options *c, char **model, error *err) {
    *model = NULL;
    if (o->threads) omp_set_num_threads((int)o->threads);
    if (!(c->format == SPELL_PEFT ? check_folder(o->output, err) : file_check_output(o->output, "--output", err))) return false;
    if (!o->model) return true;
    *model = session_find_model(o->model, err);
    c->model = *model;
    return *model != NULL;
}

/* ---- Talk ---- */

void rewrite_progress(void *user, int64_t done, int64_t total) {
    progress *p = user;
    if (done == 1) progress_begin(p, "module", 0, total);
    if (done < total) progress_update(p, done, NULL);
}

enum { NAMES_SHOWN = 400 };

static void say_group(const convert_report *r, report_group group) {
    int n = r->groups[group].count;
    size_t room = 256;
    if (n == 0) return;
    for (int i = 0; i < n; i++) room += strlen(r->groups[group].names[i]) + 2;
    char *text = memory_new(room, 1);
    for (int i = 0; i < n && i < NAMES_SHOWN; i++) {
        if (i) strcat(text, ", ");
        strcat(text, r->groups[group].names[i]);
    }
    terminal_warn("%d modules: %s: %s", n, report_group_text(group), text);
    free(text);
}

static void say_losses(const convert_report *r) {
    for (int i = 0; i < r->loss_count; i++) {
        const recast_loss *l = &r->losses[i].loss;
        if (l->before)
            terminal_detail("  %s: rank %" PRId64 " of %" PRId64 ", error %.3g", r->losses[i].flat, l->rank, l->before, l->error);
        else
            terminal_detail("  %s: rank %" PRId64 ", error %.3g", r->losses[i].flat, l->rank, l->error);
    }
    if (r->loss_count)
        terminal_say("%d modules were cut; what is missing is %.4g of the whole change (norm of the difference / norm)", r->loss_count,
                     report_error(r));
}

void rewrite_say(const options *o, const convert_report *r) {
    char kinds[256] = "";
    for (int i = 0; i < REPORT_KINDS && r->kinds[i]; i++)
        snprintf(kinds + strlen(kinds), sizeof kinds - strlen(kinds), "%s%s", i ? ", " : "", r->kinds[i]);
    terminal_say("%s: %d modules (%s)", o->output, r->modules, kinds);
    say_losses(r);
    if (r->mixed_alphas)
        terminal_say("its alphas differ, which diffusers (0.42) does not read from such a file; for diffusers write --format diffusers");
    for (int g = 0; g < REPORT_GROUPS; g++) say_group(r, (report_group)g);
}
