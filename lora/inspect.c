#include "lora/inspect.h"

#include "base/memory.h"
#include "base/sha256.h"
#include "lora/kind.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROBLEMS_MAX = 64 };

static void problem(adapter_info *info, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void problem(adapter_info *info, const char *format, ...) {
    if (info->problem_count > PROBLEMS_MAX) return;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (info->problem_count == PROBLEMS_MAX) snprintf(text, sizeof text, "and more problems of this sort");
    for (int i = 0; i < info->problem_count; i++)
        if (strcmp(info->problems[i], text) == 0) return;
    info->problems = memory_grow(info->problems, (size_t)info->problem_count + 1, sizeof *info->problems);
    info->problems[info->problem_count++] = memory_string(text);
}

/* ---- Ranks ---- */

/* Where each kind keeps its rank: the first dimension of the first of these parts that is there. */
static const struct {
    const char *kind, *part;
} RANK_PARTS[] = {{"lora", "lora_down.weight"}, {"loha", "hada_w1_b"}, {"lokr", "lokr_w2_b"}, {"lokr", "lokr_w1_b"}};

static void count_rank(adapter_info *info, const adapter_kind *kind, const adapter_group *g) {
    const adapter_part *part = NULL;
    for (size_t i = 0; !part && i < sizeof RANK_PARTS / sizeof *RANK_PARTS; i++)
        if (strcmp(RANK_PARTS[i].kind, kind->name) == 0) part = adapter_group_part(g, RANK_PARTS[i].part);
    if (!part || part->tensor->rank < 1) return;
    int64_t rank = part->tensor->dims[0];
    int at = 0;
    while (at < info->rank_count && info->ranks[at].rank < rank) at++;
    if (at == info->rank_count || info->ranks[at].rank != rank) {
        info->ranks = memory_grow(info->ranks, (size_t)info->rank_count + 1, sizeof *info->ranks);
        memmove(&info->ranks[at + 1], &info->ranks[at], (size_t)(info->rank_count - at) * sizeof *info->ranks);
        info->ranks[at] = (adapter_rank_count){.rank = rank};
        info->rank_count++;
    }
    info->ranks[at].modules++;
}

/* ---- Who loads it (formats.md 8) ---- */

typedef struct loads {
    bool webui, comfyui, diffusers, sd_cpp;
} loads;

static const struct {
    const char *kind;
    loads in;
} KIND_LOADS[] = {
    {"lora", {true, true, true, true}},     {"loha", {true, true, false, true}}, {"lokr", {true, true, false, true}},
    {"ia3", {true, false, false, false}},   {"full", {true, true, false, true}}, {"norm", {true, true, false, false}},
    {"glora", {false, true, false, false}}, {"oft", {true, true, false, false}}, {"boft", {true, true, false, false}},
};

static loads kind_loads(const adapter_kind *kind) {
    for (size_t i = 0; i < sizeof KIND_LOADS / sizeof *KIND_LOADS; i++)
        if (strcmp(KIND_LOADS[i].kind, kind->name) == 0) return KIND_LOADS[i].in;
    return (loads){0};
}

static loads both(loads a, loads b) {
    return (loads){a.webui && b.webui, a.comfyui && b.comfyui, a.diffusers && b.diffusers, a.sd_cpp && b.sd_cpp};
}

/* webui always takes dora_scale for the norms of input columns, [1, in]. */
static loads dora_loads(adapter_info *info, const adapter_group *g) {
    const safetensors_tensor *t = adapter_group_part(g, "dora_scale")->tensor;
    bool input_axis = t->rank >= 2 && t->dims[0] == 1;
    if (!input_axis) problem(info, "output-axis DoRA (%s): webui and ComfyUI get this wrong", g->shown);
    return (loads){input_axis, input_axis, t->rank == 1, false};
}

static loads style_loads(adapter_info *info, const adapter_group *g) {
    bool text = g->part == CHECKPOINT_TEXT_ENCODER;
    switch (g->style) {
    case ADAPTER_KOHYA:
    case ADAPTER_KOHYA_TE1:
    case ADAPTER_LDM: return (loads){true, true, true, true};
    case ADAPTER_OFT_UNET:
        problem(info, "names begin with oft_unet_: webui finds those only in the original (input_blocks) spelling");
        return (loads){false, false, false, false};
    case ADAPTER_DOTTED:
    case ADAPTER_PROCESSOR: break;
    }
    problem(info, "diffusers' or PEFT's names: webui does not know them");
    return (loads){false, text || g->style == ADAPTER_PROCESSOR, true, true};
}

static loads group_loads(adapter_info *info, const adapter_kind *kind, const adapter_group *g) {
    loads in = both(kind_loads(kind), style_loads(info, g));
    if (adapter_group_part(g, "dora_scale")) in = both(in, dora_loads(info, g));
    if (adapter_group_part(g, "lora_mid.weight")) in.diffusers = false;
    if (adapter_group_part(g, "lokr_t2")) in.sd_cpp = false;
    if (!kind_loads(kind).webui) problem(info, "%s: webui does not load this kind as it is", kind->title);
    return in;
}

/* ---- One module ---- */

static void check_values(adapter_info *info, const adapter_group *g) {
    for (int i = 0; i < g->count; i++) {
        const safetensors_tensor *t = g->parts[i].tensor;
        if (t->elements && safetensors_first_nonfinite(t->data, t->type, t->elements) < t->elements)
            problem(info, "tensor %s has NaN or infinity in it: programs draw black pictures with it", t->name);
        if (strcmp(g->parts[i].name, "alpha") != 0) info->parameters += (int64_t)t->elements;
    }
}

static void check_parts(adapter_info *info, const adapter_kind *kind, const adapter_group *g) {
    for (int i = 0; i < g->count; i++) {
        bool known = false;
        for (const char *const *p = kind->parts; *p; p++) known = known || strcmp(*p, g->parts[i].name) == 0;
        if (!known) problem(info, "module %s: %s is no part of a %s known here", g->shown, g->parts[i].name, kind->title);
    }
    if (kind == &adapter_kind_lora) {
        bool down = adapter_group_part(g, "lora_down.weight") != NULL, up = adapter_group_part(g, "lora_up.weight") != NULL;
        if (!down || !up) problem(info, "module %s: lora_%s.weight is missing", g->shown, down ? "up" : "down");
    }
    double alpha = 0;
    bool present;
    error err = {0};
    if (!adapter_group_scalar(g, "alpha", &alpha, &present, &err)) {
        problem(info, "%s", err.text);
    } else if (present) {
        info->alpha_min = fmin(info->alpha_min, alpha);
        info->alpha_max = fmax(info->alpha_max, alpha);
        bool constraint = strcmp(kind->name, "oft") == 0 || strcmp(kind->name, "boft") == 0;
        if (alpha == 0 && !constraint) problem(info, "module %s: alpha is 0: no effect in webui, alpha = rank in trainers", g->shown);
    }
}

static void inspect_group(adapter_info *info, const adapter_group *g, bool found[], loads *in) {
    info->modules++;
    if (g->part == CHECKPOINT_UNET)
        info->unet_modules++;
    else
        info->text_modules++;
    check_values(info, g);
    const adapter_kind *kind = adapter_kind_of(g);
    if (!kind) {
        char parts[256];
        adapter_group_text(g, parts, sizeof parts);
        problem(info, "module %s: an unknown set of parts (%s); webui refuses the whole file", g->shown, parts);
        *in = (loads){0};
        return;
    }
    for (int k = 0; adapter_kinds()[k]; k++) found[k] = found[k] || adapter_kinds()[k] == kind;
    info->dora = info->dora || adapter_group_part(g, "dora_scale");
    count_rank(info, kind, g);
    check_parts(info, kind, g);
    *in = both(*in, group_loads(info, kind, g));
}

/* ---- The file ---- */

static int name_order(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static void join_kinds(adapter_info *info, const bool found[]) {
    const char *names[32];
    size_t count = 0, used = 0;
    for (int k = 0; adapter_kinds()[k] && count < 32; k++)
        if (found[k]) names[count++] = adapter_kinds()[k]->name;
    snprintf(info->kinds, sizeof info->kinds, "unknown");
    qsort(names, count, sizeof *names, name_order);
    for (size_t i = 0; i < count && used < sizeof info->kinds; i++)
        used += (size_t)snprintf(info->kinds + used, sizeof info->kinds - used, "%s%s", i ? "+" : "", names[i]);
}

/* sshs_model_hash is trusted by webui, so a wrong one is a problem. LyCORIS' own, "0x...", is made in another way. */
static void check_hash(adapter_info *info, const adapter_file *file) {
    const safetensors *st = &file->sources[0];
    sha256 hash;
    sha256_init(&hash);
    sha256_update(&hash, st->map.data + st->data_start, st->map.size - st->data_start);
    sha256_hex(&hash, info->model_hash);
    const char *stated = safetensors_metadata(st, "sshs_model_hash");
    if (stated && strncmp(stated, "0x", 2) != 0 && strcmp(stated, info->model_hash) != 0)
        problem(info, "sshs_model_hash in the metadata is not the hash of the tensors: the file was changed without it");
}

bool adapter_inspect(const char *path, adapter_info *info, error *err) {
    *info = (adapter_info){.alpha_min = NAN, .alpha_max = NAN};
    adapter_file file;
    if (!adapter_file_open(&file, path, err)) return false;
    bool found[64] = {false};
    loads in = {file.group_count > 0, file.group_count > 0, file.group_count > 0, file.group_count > 0};
    for (int i = 0; i < file.group_count; i++) inspect_group(info, &file.groups[i], found, &in);
    for (int i = 0; i < file.other_count; i++) {
        problem(info, "tensor %s belongs to no module known here", file.others[i]->name);
        in.diffusers = false; /* leftover keys raise there */
    }
    if (file.folder)
        in = (loads){false, false, in.diffusers, false};
    else
        check_hash(info, &file);
    if (info->problem_count == 0 && !in.webui) problem(info, "webui does not load it as it is");
    info->webui = in.webui;
    info->comfyui = in.comfyui;
    info->diffusers = in.diffusers;
    info->sd_cpp = in.sd_cpp;
    join_kinds(info, found);
    adapter_file_close(&file);
    return true;
}

void adapter_info_free(adapter_info *info) {
    free(info->ranks);
    for (int i = 0; i < info->problem_count; i++) free(info->problems[i]);
    free(info->problems);
    *info = (adapter_info){0};
}
