/* Which modules an adapter changes: classes of modules, the sets that trainers aim at, blocks (formats.md 2.2 and 2.4). */
#include "cli/inspection.h"

#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool inspection_module_known(const char *flat) {
    static const char *const pattern =
        "^lora_(unet_((down_blocks_[0-3]|mid_block|up_blocks_[0-3])_(resnets_[0-2]_(conv1|conv2|time_emb_proj|conv_shortcut|norm1|norm2)|"
        "attentions_[0-2]_(proj_in|proj_out|norm|transformer_blocks_0_(attn[12]_to_(q|k|v|out_0)|ff_net_(0_proj|2)|norm[123]))|"
        "(down|up)samplers_0_conv)|conv_in|conv_out|conv_norm_out|time_embedding_linear_[12])|"
        "te_text_model_(encoder_layers_[0-9]+_(self_attn_(q|k|v|out)_proj|mlp_fc[12]|layer_norm[12])|final_layer_norm))$";
    regex_t regex;
    if (regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB) != 0) return true;
    bool known = regexec(&regex, flat, 0, NULL, 0) == 0;
    regfree(&regex);
    return known;
}

/* ---- classes ---- */

enum { QUERIES, KEYS, FF_IN, FF_OUT, PROJECTIONS, CONVOLUTIONS, TIMES, SHORTCUTS, SAMPLERS, ENDS, TIME_EMBEDDING, NORMS, OTHERS };

/* endings: of flat names, separated by blanks. unet, text: how many SD 1.5 has. Rows of one title stand together. */
static const struct {
    const char *title, *endings;
    int unet, text;
} CLASSES[INSPECTION_CLASSES] = {
    [QUERIES] = {"attention", "_to_q _to_out_0 _q_proj _out_proj", 64, 24},
    [KEYS] = {"attention", "_to_k _to_v _k_proj _v_proj", 64, 24},
    [FF_IN] = {"feed-forward", "_ff_net_0_proj _mlp_fc1", 16, 12},
    [FF_OUT] = {"feed-forward", "_ff_net_2 _mlp_fc2", 16, 12},
    [PROJECTIONS] = {"projections", "_proj_in _proj_out", 32, 0},
    [CONVOLUTIONS] = {"3x3 convolutions", "_conv1 _conv2", 44, 0},
    [TIMES] = {"time projections", "_time_emb_proj", 22, 0},
    [SHORTCUTS] = {"shortcuts", "_conv_shortcut", 14, 0},
    [SAMPLERS] = {"down- and upsamplers", "samplers_0_conv", 6, 0},
    [ENDS] = {"conv_in and conv_out", "_conv_in _conv_out", 2, 0},
    [TIME_EMBEDDING] = {"time embedding", "_time_embedding_linear_1 _time_embedding_linear_2", 2, 0},
    [NORMS] = {"norms", "_norm _norm1 _norm2 _norm3 _layer_norm1 _layer_norm2 _norm_out _final_layer_norm", 108, 24},
    [OTHERS] = {"others", "", 0, 0},
};

const char *inspection_class_title(int index) { return CLASSES[index].title; }

static bool has_ending(const char *name, const char *endings) {
    size_t n = strlen(name);
    while (*endings) {
        size_t m = strcspn(endings, " ");
        if (n >= m && !strncmp(name + n - m, endings, m)) return true;
        endings += m + (endings[m] == ' ');
    }
    return false;
}

void inspection_count_target(inspection *i, const adapter_group *g) {
    inspection_targets *targets = g->part == CHECKPOINT_TEXT_ENCODER ? &i->text : &i->unet;
    int class = 0;
    while (class < OTHERS && !has_ending(g->module, CLASSES[class].endings)) class ++;
    if (!inspection_module_known(g->module)) class = OTHERS;
    targets->classes[class]++;
    targets->modules++;
}

/* ---- sets ---- */

#define SET(class) (1u << (class))
#define ATTENTION (SET(QUERIES) | SET(KEYS))
#define TRANSFORMERS (ATTENTION | SET(FF_IN) | SET(FF_OUT) | SET(PROJECTIONS))
#define RESNETS (SET(CONVOLUTIONS) | SET(TIMES) | SET(SHORTCUTS))

/* What a trainer is told to get them; the first set that holds all classes of the file is named. */
static const struct {
    const char *name;
    unsigned classes;
} SETS[] = {
    {"norms", SET(NORMS)},
    {"ia3", SET(KEYS) | SET(FF_OUT)},
    {"attn", ATTENTION},
    {"attn-mlp", TRANSFORMERS},
    {"attn-mlp, time embedding", TRANSFORMERS | SET(TIME_EMBEDDING)},
    {"convblock-only", RESNETS | SET(SAMPLERS) | SET(ENDS)},
    {"full-lin", TRANSFORMERS | SET(TIMES) | SET(SHORTCUTS) | SET(TIME_EMBEDDING)},
    {"attn-mlp and resnets", TRANSFORMERS | RESNETS | SET(SAMPLERS)},
    {"full", TRANSFORMERS | RESNETS | SET(SAMPLERS) | SET(ENDS) | SET(TIME_EMBEDDING)},
};

static int class_size(int class, bool text) { return text ? CLASSES[class].text : CLASSES[class].unet; }

static void name_set(inspection_targets *t, bool text) {
    unsigned classes = 0;
    for (int c = 0; c < INSPECTION_CLASSES; c++)
        if (t->classes[c]) classes |= SET(c);
    bool norms = classes & SET(NORMS) && classes != SET(NORMS);
    if (norms) classes &= ~SET(NORMS);
    for (size_t s = 0; s < sizeof SETS / sizeof *SETS && classes; s++) {
        if (classes & ~SETS[s].classes) continue;
        snprintf(t->set, sizeof t->set, "%s%s", SETS[s].name, norms ? " and norms" : "");
        for (int c = 0; c < INSPECTION_CLASSES; c++)
            if (SETS[s].classes & SET(c) || (norms && c == NORMS)) t->set_size += class_size(c, text);
        return;
    }
}

void inspection_name_targets(inspection *i) {
    name_set(&i->unet, false);
    name_set(&i->text, true);
}

/* ---- blocks ---- */

/* Name, place in the network, and the name that merging programs use (formats.md 2.2: the original layout's numbers). */
static void describe_block(const adapter_group *g, inspection_block *b) {
    static const char *const kinds[] = {"resnets", "attentions", "downsamplers", "upsamplers"};
    const char *name = g->module, *path = strncmp(name, "lora_unet_", 10) ? name : name + 10;
    int i = 0, j = 0, used = 0;
    char kind[16] = "";
    if (sscanf(name, "lora_te_text_model_encoder_layers_%d_", &i) == 1) {
        snprintf(b->name, sizeof b->name, "text layer %d", i);
        snprintf(b->merging, sizeof b->merging, "BASE");
        b->place = i;
    } else if (sscanf(path, "%*[a-z]_blocks_%d_%15[a-z]_%d%n", &i, kind, &j, &used) == 3 && used) {
        bool down = *path == 'd';
        int number = down ? 1 + 3 * i + (strcmp(kind, "downsamplers") ? j : 2) : 3 * i + (strcmp(kind, "upsamplers") ? j : 2);
        snprintf(b->name, sizeof b->name, "%.*s", used, path);
        snprintf(b->merging, sizeof b->merging, "%s%02d", down ? "IN" : "OUT", number & 63);
        b->place = (down ? 1000 : 3000) + 10 * number;
    } else if (sscanf(path, "mid_block_%15[a-z]_%d%n", kind, &j, &used) == 2 && used) {
        snprintf(b->name, sizeof b->name, "%.*s", used, path);
        snprintf(b->merging, sizeof b->merging, "M00");
        b->place = 2000 + 10 * (strcmp(kind, "attentions") ? 2 * j : 1);
    } else {
        bool last = !strncmp(path, "conv_out", 8) || !strncmp(path, "conv_norm_out", 13), time = !strncmp(path, "time_embedding", 14);
        snprintf(b->name, sizeof b->name, "%s", time ? "time_embedding" : path);
        snprintf(b->merging, sizeof b->merging, "%s", strncmp(path, "conv_in", 7) ? "" : "IN00");
        b->place = last ? 4000 : time ? 501 : 500;
    }
    for (int k = 0; k < 4; k++)
        if (!strcmp(kind, kinds[k]) && b->place < 4000) b->place += *path == 'm' ? 0 : k;
}

inspection_block *inspection_block_of(inspection *i, const adapter_group *g) {
    inspection_block fresh = {.modules = 0};
    describe_block(g, &fresh);
    for (int b = 0; b < i->block_count; b++)
        if (!strcmp(i->blocks[b].name, fresh.name)) return &i->blocks[b];
    if (i->block_count == INSPECTION_BLOCKS) return NULL;
    i->blocks[i->block_count] = fresh;
    return &i->blocks[i->block_count++];
}

static int by_place(const void *a, const void *b) {
    const inspection_block *x = a, *y = b;
    return x->place != y->place ? (x->place > y->place) - (x->place < y->place) : strcmp(x->name, y->name);
}

void inspection_sort_blocks(inspection *i) {
    if (i->block_count) qsort(i->blocks, (size_t)i->block_count, sizeof *i->blocks, by_place);
}
