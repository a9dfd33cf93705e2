#include "cli/inspection.h"

#include "base/memory.h"
#include "lora/residual.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- lists ---- */

void inspection_list_add(inspection_list *list, const char *text) {
    list->item = memory_grow(list->item, (size_t)list->count + 1, sizeof *list->item);
    list->item[list->count++] = memory_string(text);
}

static void list_free(inspection_list *list) {
    for (int k = 0; k < list->count; k++) free(list->item[k]);
    free(list->item);
}

static void add_formatted(inspection_list *list, const char *format, va_list args) {
    char text[1024];
    vsnprintf(text, sizeof text, format, args);
    inspection_list_add(list, text);
}

void inspection_problem(inspection *i, const char *format, ...) {
    va_list args;
    va_start(args, format);
    add_formatted(&i->problems, format, args);
    va_end(args);
}

void inspection_note(inspection *i, const char *format, ...) {
    va_list args;
    va_start(args, format);
    add_formatted(&i->notes, format, args);
    va_end(args);
}

/* A problem of many modules is told once: how many, and the first of them. */
typedef struct finding {
    const char *what;
    const char *module;
    int count;
} finding;

typedef struct findings {
    finding item[64];
    int count;
} findings;

static void note(findings *f, const char *what, const char *module) {
    for (int i = 0; i < f->count; i++)
        if (!strcmp(f->item[i].what, what)) {
            f->item[i].count++;
            return;
        }
    if (f->count < (int)(sizeof f->item / sizeof *f->item)) f->item[f->count++] = (finding){what, module, 1};
}

static void count_value(inspection_count *counts, int *used, double value) {
    int i = 0;
    while (i < *used && counts[i].value != value) i++;
    if (i == INSPECTION_COUNTS) return;
    if (i == *used) counts[(*used)++] = (inspection_count){value, 0};
    counts[i].modules++;
}

static int by_value(const void *a, const void *b) {
    const inspection_count *x = a, *y = b;
    return (x->value > y->value) - (x->value < y->value);
}

/* ---- modules ---- */

static void look_at_norm(inspection *i, const adapter_kind *kind, const adapter_group *g, findings *f) {
    inspection_norm norm = inspection_module_norm(&i->file, kind, g);
    if (norm.fault) note(f, norm.fault, g->shown);
    if (norm.dead) inspection_list_add(&i->dead, g->shown);
    i->needing_base += norm.needs_base;
    inspection_block *block = norm.squares >= 0 || norm.relative >= 0 ? inspection_block_of(i, g) : NULL;
    i->untold += !block;
    if (!block) return;
    block->modules++;
    block->added += norm.squares >= 0;
    block->multiplied += norm.relative >= 0;
    block->squares += norm.squares > 0 ? norm.squares : 0;
    block->relative += norm.relative > 0 ? norm.relative : 0;
}

static bool is_setting(const char *part) { return !strcmp(part, "alpha") || !strcmp(part, "scale") || !strcmp(part, "on_input"); }

static bool kind_has(const adapter_kind *kind, const char *part) {
    for (const char *const *p = kind->parts; *p; p++)
        if (!strcmp(*p, part)) return true;
    return false;
}

static void look_at_tensors(inspection *i, const adapter_kind *kind, const adapter_group *g, findings *f) {
    for (int p = 0; p < g->count; p++) {
        const safetensors_tensor *t = g->parts[p].tensor;
        int k = 0;
        while (k < i->type_count && i->types[k] != t->type) k++;
        if (k == i->type_count && k < DTYPE_COUNT) i->types[i->type_count++] = t->type;
        if (safetensors_first_nonfinite(t->data, t->type, t->elements) < t->elements) inspection_list_add(&i->nonfinite, t->name);
        if (!is_setting(g->parts[p].name)) i->parameters += (int64_t)t->elements;
        if (kind && !kind_has(kind, g->parts[p].name) && !adapter_residual_part(kind, g->parts[p].name))
            note(f, "has a part that its kind does not have, and that is not applied", t->name);
    }
}

static void add_kind(const char **kinds, int *count, const char *name) {
    int at = 0;
    while (at < *count && strcmp(kinds[at], name) < 0) at++;
    if (at < *count && !strcmp(kinds[at], name)) return;
    memmove(kinds + at + 1, kinds + at, (size_t)(*count - at) * sizeof *kinds);
    kinds[at] = name;
    ++*count;
}

static void obstruct(inspection *i, loader program, const char *why) {
    i->loads_in[program] = false;
    if (!i->obstacles[program]) i->obstacles[program] = why;
}

static void obstruct_all(inspection *i, const char *why) {
    for (int program = 0; program < LOADER_COUNT; program++) obstruct(i, (loader)program, why);
}

static void look_at_module(inspection *i, const adapter_group *g, findings *f) {
    const adapter_kind *kind = adapter_kind_of(g);
    double alpha;
    int64_t rank = inspection_rank(kind, g);
    const adapter_part *magnitude = adapter_group_part(g, "dora_scale");
    i->modules++;
    if (g->part == CHECKPOINT_TEXT_ENCODER)
        i->text_modules++;
    else
        i->unet_modules++;
    inspection_count_target(i, g);
    i->dora |= magnitude != NULL;
    i->dora_on_output |= magnitude && (magnitude->tensor->rank < 2 || magnitude->tensor->dims[0] != 1);
    i->tucker |= adapter_group_part(g, "lora_mid.weight") || adapter_group_part(g, "hada_t1") || adapter_group_part(g, "lokr_t2");
    i->rank_stabilised |= g->path && json_is_true(json_object_get(i->file.config[g->part], "use_rslora"));
    if (rank > 0) count_value(i->ranks, &i->rank_count, (double)rank);
    if (inspection_alpha(g, &alpha)) count_value(i->alphas, &i->alpha_count, alpha);
    for (int program = 0; program < LOADER_COUNT; program++) {
        const char *obstacle = inspection_obstacle((loader)program, kind, g);
        if (!obstacle) continue;
        obstruct(i, (loader)program, obstacle);
        if (program == LOADER_WEBUI) note(f, obstacle, g->shown);
    }
    if (!inspection_module_known(g->module)) {
        note(f, "SD 1.x has no such module: it has no effect anywhere", g->shown);
        obstruct_all(i, "modules that SD 1.x does not have");
    }
    look_at_tensors(i, kind, g, f);
    look_at_norm(i, kind, g, f);
}

/* webui's form (bundle_emb.TOKEN.string_to_param.*) and OneTrainer's (bundle_emb.TOKEN.clip_l): [vectors, width] */
static bool add_embedding(inspection *i, const safetensors_tensor *t) {
    static const char prefix[] = "bundle_emb.";
    if (strncmp(t->name, prefix, sizeof prefix - 1)) return false;
    const char *token = t->name + sizeof prefix - 1;
    if (t->rank < 1 || t->rank > 2) return true;
    i->embeddings = memory_grow(i->embeddings, (size_t)i->embedding_count + 1, sizeof *i->embeddings);
    inspection_embedding *e = &i->embeddings[i->embedding_count++];
    *e = (inspection_embedding){.vectors = t->rank == 2 ? t->dims[0] : 1, .width = t->dims[t->rank - 1]};
    static const char *const endings[] = {".string_to_param.*", ".clip_l"};
    size_t length = strlen(token), first = strcspn(token, ".");
    for (int k = 0; k < 2; k++) {
        size_t n = strlen(endings[k]);
        if (length > n && !strcmp(token + length - n, endings[k])) first = length - n;
    }
    e->token = memory_format("%.*s", (int)first, token);
    return true;
}

static void look_at_others(inspection *i, findings *f) {
    for (int o = 0; o < i->file.other_count; o++) {
        const safetensors_tensor *t = i->file.others[o];
        bool embedding = add_embedding(i, t);
        if (!embedding) note(f, "belongs to no module: it has no effect", t->name);
        if (safetensors_first_nonfinite(t->data, t->type, t->elements) < t->elements) inspection_list_add(&i->nonfinite, t->name);
        for (int program = 0; program < LOADER_COUNT; program++)
            if (program != LOADER_WEBUI || !embedding)
                obstruct(i, (loader)program, embedding ? "bundled embeddings" : "tensors of no module");
    }
}

/* "6 modules (a, b, c, ...)" or "a". */
static const char *some_of(const inspection_list *list, const char *what, char *out, size_t size) {
    enum { NAMED = 3 };
    if (list->count == 1) {
        snprintf(out, size, "%s", list->item[0]);
        return out;
    }
    size_t used = (size_t)snprintf(out, size, "%d %s (", list->count, what);
    for (int k = 0; k < list->count && k < NAMED && used < size; k++)
        used += (size_t)snprintf(out + used, size - used, "%s%.120s", k ? ", " : "", list->item[k]);
    if (used < size) snprintf(out + used, size - used, "%s)", list->count > NAMED ? ", ..." : "");
    return out;
}

/* With clip skip N the last N - 1 layers of the text encoder have no gradient; trainers write their modules all the same. */
static bool never_trained(const inspection *i, const char *shown) {
    const char *skip = safetensors_metadata(&i->file.sources[0], "ss_clip_skip"), *layer = strstr(shown, "layers_");
    int last = -1, number;
    for (int b = 0; b < i->block_count; b++)
        if (sscanf(i->blocks[b].name, "text layer %d", &number) == 1 && number > last) last = number;
    return skip && layer && strstr(shown, "lora_te") && sscanf(layer, "layers_%d", &number) == 1 && number > last - (atoi(skip) - 1);
}

static void tell_dead(inspection *i) {
    inspection_list skipped = {0}, dead = {0};
    char text[512];
    for (int k = 0; k < i->dead.count; k++) inspection_list_add(never_trained(i, i->dead.item[k]) ? &skipped : &dead, i->dead.item[k]);
    if (dead.count && dead.count == i->modules)
        inspection_problem(i, "changes exactly nothing: every module's factors are zero");
    else if (dead.count)
        inspection_problem(i, "%s: %s exactly nothing", some_of(&dead, "modules", text, sizeof text),
                           dead.count == 1 ? "changes" : "change");
    if (skipped.count)
        inspection_note(i, "%s: no change, as the training's clip skip left them out", some_of(&skipped, "modules", text, sizeof text));
    list_free(&skipped);
    list_free(&dead);
}

static void tell(inspection *i, const findings *f) {
    char text[512];
    if (i->nonfinite.count)
        inspection_problem(i, "%s: NaN or infinity in it, the training that wrote it had broken down",
                           some_of(&i->nonfinite, "tensors", text, sizeof text));
    for (int k = 0; k < f->count; k++) {
        if (f->item[k].count == 1)
            inspection_problem(i, "%s: %s", f->item[k].module, f->item[k].what);
        else
            inspection_problem(i, "%d modules (%s, ...): %s", f->item[k].count, f->item[k].module, f->item[k].what);
    }
    tell_dead(i);
    for (int r = 0; r < i->file.repeat_count && r < 8; r++)
        inspection_problem(i,
                           "%s and %s are the same part of the same module under two names: programs take one or the other, and "
                           "vulora refuses the file",
                           i->file.repeats[r][0]->name, i->file.repeats[r][1]->name);
    if (i->file.repeat_count > 8) inspection_problem(i, "%d more tensors are there twice under two names", i->file.repeat_count - 8);
}

/* SD 2 has the same modules' names as SD 1.x: the width of the texts that cross attention reads tells it. */
static void check_width(inspection *i) {
    for (int g = 0; g < i->file.group_count; g++) {
        const adapter_part *p = adapter_group_part(&i->file.groups[g], "lora_down.weight");
        if (!p || p->tensor->rank < 2 || !strstr(i->file.groups[g].module, "_attn2_to_k")) continue;
        int64_t width = p->tensor->dims[1];
        if (width != 1024 && width != 2048) return;
        const char *model = width == 1024 ? "Stable Diffusion 2" : "SDXL";
        inspection_problem(i, "is an adapter for %s, not for SD 1.x: %s reads texts %lld wide", model, i->file.groups[g].shown,
                           (long long)width);
        obstruct_all(i, "made for another base model");
        return;
    }
}

static void look_at_modules(inspection *i) {
    const char *kinds[32];
    int kind_count = 0;
    findings f = {.count = 0};
    for (int program = 0; program < LOADER_COUNT; program++) i->loads_in[program] = true;
    for (int g = 0; g < i->file.group_count; g++) {
        const adapter_kind *kind = adapter_kind_of(&i->file.groups[g]);
        add_kind(kinds, &kind_count, kind ? kind->name : "unknown");
        look_at_module(i, &i->file.groups[g], &f);
    }
    look_at_others(i, &f);
    for (int k = 0; k < kind_count; k++)
        snprintf(i->kinds + strlen(i->kinds), sizeof i->kinds - strlen(i->kinds), "%s%s", k ? "+" : "", kinds[k]);
    check_width(i);
    if (i->file.repeat_count) obstruct_all(i, "the same module under two names");
    tell(i, &f);
    inspection_name_targets(i);
    inspection_sort_blocks(i);
    if (i->rank_count) qsort(i->ranks, (size_t)i->rank_count, sizeof *i->ranks, by_value);
    if (i->alpha_count) qsort(i->alphas, (size_t)i->alpha_count, sizeof *i->alphas, by_value);
}

/* ---- the file as such ---- */

bool inspection_open(inspection *i, const char *path, error *err) {
    *i = (inspection){.bytes = 0};
    if (!adapter_file_look(&i->file, path, err)) return false;
    if (i->file.group_count == 0) {
        adapter_file_close(&i->file);
        return error_set(err, "%s: is no adapter: none of its tensors belongs to a module of SD 1.x", path);
    }
    for (int s = 0; s < i->file.source_count; s++) i->bytes += i->file.sources[s].map.size;
    look_at_modules(i);
    if (i->file.source_count == 1 && !i->file.folder) {
        inspection_check_hashes(i);
        inspection_check_metadata(i);
    } else {
        static const loader files_only[] = {LOADER_WEBUI, LOADER_COMFYUI, LOADER_SDCPP};
        for (int k = 0; k < 3; k++) obstruct(i, files_only[k], "a folder");
        inspection_problem(i, "a folder: webui, ComfyUI and stable-diffusion.cpp load single files");
    }
    return true;
}

void inspection_close(inspection *i) {
    list_free(&i->problems);
    list_free(&i->notes);
    list_free(&i->dead);
    list_free(&i->nonfinite);
    for (int e = 0; e < i->embedding_count; e++) free(i->embeddings[e].token);
    free(i->embeddings);
    adapter_file_close(&i->file);
    *i = (inspection){.bytes = 0};
}

/* ---- several files ---- */

/* The name of a file in prompts: its own without folder and ending. */
static char *stem_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *stem = memory_string(slash ? slash + 1 : path), *dot = strrchr(stem, '.');
    if (dot) *dot = 0;
    return stem;
}

inspection_name *inspection_names_read(const char *const *paths, int count) {
    inspection_name *names = memory_new((size_t)count + 1, sizeof *names);
    for (int k = 0; k < count; k++) {
        safetensors st;
        error ignored;
        names[k] = (inspection_name){.path = paths[k], .stem = stem_of(paths[k])};
        if (file_is_directory(paths[k]) || !safetensors_open(&st, paths[k], &ignored)) continue;
        const char *stated = safetensors_metadata(&st, "ss_output_name");
        if (stated && *stated && strcmp(stated, "None")) names[k].stated = memory_string(stated);
        safetensors_close(&st);
    }
    return names;
}

void inspection_names_free(inspection_name *names, int count) {
    for (int k = 0; k < count; k++) {
        free(names[k].stem);
        free(names[k].stated);
    }
    free(names);
}

void inspection_find_clashes(inspection *i, int own, const inspection_name *names, int count) {
    const char *name = names[own].stated;
    for (int k = 0; name && k < count; k++) {
        bool same_file = !strcmp(names[k].path, names[own].path);
        if (!same_file && ((names[k].stated && !strcmp(names[k].stated, name)) || !strcmp(names[k].stem, name)))
            inspection_problem(i, "ss_output_name %.100s also means %s: webui finds both by their file names only", name, names[k].path);
    }
}
