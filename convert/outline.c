#include "convert/outline.h"

#include "base/memory.h"
#include "lora/kind.h"
#include "lycoris/kinds.h"

#include <stdlib.h>
#include <string.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* ---- Names ---- */

/* Words of diffusers' paths that have a "_" in them; everything else ends at the next one. */
static const char *const WORDS[] = {
    "down_blocks",   "up_blocks",      "mid_block",     "transformer_blocks", "proj_in",  "proj_out", "to_q",          "to_k",
    "to_v",          "to_out",         "conv_in",       "conv_out",           "linear_1", "linear_2", "conv_shortcut", "group_norm",
    "time_emb_proj", "time_embedding", "conv_norm_out", "text_model",         "q_proj",   "k_proj",   "self_attn",     "v_proj",
    "out_proj",      "layer_norm1",    "layer_norm2",   "final_layer_norm"};

static size_t word_length(const char *text) {
    size_t best = strcspn(text, "_");
    for (size_t i = 0; i < LENGTH(WORDS); i++) {
        size_t n = strlen(WORDS[i]);
        if (n > best && strncmp(text, WORDS[i], n) == 0 && (text[n] == '_' || text[n] == 0)) best = n;
    }
    return best;
}

char *outline_path(const char *flat) {
    bool unet = strncmp(flat, "lora_unet_", 10) == 0;
    char *path = memory_string(flat + (unet ? 10 : strlen("lora_te_")));
    for (char *p = path; *p;) {
        p += word_length(p);
        if (*p) *p++ = '.';
    }
    return path;
}

static bool ends_with(const char *text, const char *ending) {
    size_t n = strlen(text), m = strlen(ending);
    return n >= m && strcmp(text + n - m, ending) == 0;
}

static bool any_ending(const char *path, const char *const *endings, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (ends_with(path, endings[i])) return true;
    return false;
}

static bool is_large_convolution(const char *path) {
    static const char *const endings[] = {"conv1", "conv2", ".conv", "conv_in", "conv_out"};
    return any_ending(path, endings, LENGTH(endings));
}

static bool is_small_convolution(const char *path) {
    static const char *const endings[] = {"conv_shortcut", "proj_in", "proj_out"};
    return any_ending(path, endings, LENGTH(endings));
}

static bool has_bias(checkpoint_part part, const char *path) {
    static const char *const endings[] = {".to_q", ".to_k", ".to_v"};
    return part != CHECKPOINT_UNET || !any_ending(path, endings, LENGTH(endings));
}

/* ---- Sizes ---- */

static int64_t size_of(const adapter_group *g, const char *part, int dimension) {
    const adapter_part *p = adapter_group_part(g, part);
    return p && p->tensor->rank > dimension ? p->tensor->dims[dimension] : 0;
}

static int64_t elements_of(const adapter_group *g, const char *part) {
    const adapter_part *p = adapter_group_part(g, part);
    return p ? (int64_t)p->tensor->elements : 0;
}

static const char *first_of(const adapter_group *g, const char *a, const char *b) { return adapter_group_part(g, a) ? a : b; }

static void lora_sizes(const adapter_group *g, module_info *m) {
    const char *kernel = first_of(g, "lora_mid.weight", "lora_down.weight");
    m->out = size_of(g, "lora_up.weight", 0);
    m->in = size_of(g, "lora_down.weight", 1);
    if (size_of(g, kernel, 2) > 1) m->kernel = (int)size_of(g, kernel, 2);
    if (size_of(g, kernel, 2) == 1) m->kernel = 1;
}

static void loha_sizes(const adapter_group *g, module_info *m) {
    bool tucker = adapter_group_part(g, "hada_t1") != NULL;
    if (tucker) m->kernel = (int)size_of(g, "hada_t1", 2);
    m->out = size_of(g, "hada_w1_a", tucker ? 1 : 0);
    m->in = size_of(g, "hada_w1_b", 1) / (tucker ? 1 : m->kernel * m->kernel);
}

static void lokr_sizes(const adapter_group *g, module_info *m) {
    bool tucker = adapter_group_part(g, "lokr_t2") != NULL, whole = adapter_group_part(g, "lokr_w2") != NULL;
    if (tucker) m->kernel = (int)size_of(g, "lokr_t2", 2);
    if (whole) m->kernel = size_of(g, "lokr_w2", 2) > 1 ? (int)size_of(g, "lokr_w2", 2) : 1;
    int64_t out = whole ? size_of(g, "lokr_w2", 0) : size_of(g, "lokr_w2_a", tucker ? 1 : 0);
    int64_t in = whole ? size_of(g, "lokr_w2", 1) : size_of(g, "lokr_w2_b", 1) / (tucker ? 1 : m->kernel * m->kernel);
    m->out = out * size_of(g, first_of(g, "lokr_w1", "lokr_w1_a"), 0);
    m->in = in * size_of(g, first_of(g, "lokr_w1", "lokr_w1_b"), 1);
}

static void full_sizes(const adapter_group *g, module_info *m) {
    bool diff = adapter_group_part(g, "diff") != NULL;
    m->out = diff ? size_of(g, "diff", 0) : elements_of(g, "diff_b");
    m->in = diff ? size_of(g, "diff", 1) : 1;
    if (diff) m->kernel = size_of(g, "diff", 2) > 1 ? (int)size_of(g, "diff", 2) : 1;
}

/* Ranks are below widths: that tells the current naming from the older one. */
static void glora_sizes(const adapter_group *g, module_info *m) {
    bool current = size_of(g, "a1.weight", 0) > size_of(g, "a1.weight", 1);
    const char *down = current ? "b2.weight" : "b1.weight";
    m->in = size_of(g, "a1.weight", current ? 0 : 1);
    m->out = size_of(g, current ? "b1.weight" : "b2.weight", 0);
    m->kernel = size_of(g, down, 2) > 1 ? (int)size_of(g, down, 2) : 1;
}

static void one_side(module_info *m, int64_t size) { m->out = m->in = size; }

static void ia3_sizes(const adapter_group *g, module_info *m) { one_side(m, elements_of(g, first_of(g, "weight", "ia3_l"))); }

static void oft_sizes(const adapter_group *g, module_info *m) {
    const char *blocks = first_of(g, "oft_blocks", "oft_diag");
    one_side(m, size_of(g, blocks, 0) * size_of(g, blocks, 1));
}

static void boft_sizes(const adapter_group *g, module_info *m) { one_side(m, size_of(g, "oft_blocks", 1) * size_of(g, "oft_blocks", 2)); }

static void norm_sizes(const adapter_group *g, module_info *m) {
    m->out = elements_of(g, first_of(g, "w_norm", "b_norm"));
    m->in = 1;
    m->kernel = 0;
    m->convolution = false;
}

static const struct {
    const adapter_kind *kind;
    void (*sizes)(const adapter_group *g, module_info *m);
} SIZES[] = {{&adapter_kind_lora, lora_sizes},   {&adapter_kind_loha, loha_sizes}, {&adapter_kind_lokr, lokr_sizes},
             {&adapter_kind_ia3, ia3_sizes},     {&adapter_kind_full, full_sizes}, {&adapter_kind_norm, norm_sizes},
             {&adapter_kind_glora, glora_sizes}, {&adapter_kind_oft, oft_sizes},   {&adapter_kind_boft, boft_sizes}};

module_table *outline_create(const adapter_file *file) {
    module_table *table = memory_new(1, sizeof *table);
    table->modules = memory_new((size_t)file->group_count + 1, sizeof *table->modules);
    for (int i = 0; i < file->group_count; i++) {
        const adapter_group *g = &file->groups[i];
        const adapter_kind *kind = adapter_kind_of(g);
        if (!kind) continue;
        module_info *m = &table->modules[table->count++];
        *m = (module_info){.part = g->part, .name = outline_path(g->module), .flat = memory_string(g->module)};
        m->kernel = is_large_convolution(m->name) ? 3 : 1;
        m->convolution = m->kernel == 3 || (g->part == CHECKPOINT_UNET && is_small_convolution(m->name));
        m->bias = has_bias(g->part, m->name);
        for (size_t k = 0; k < LENGTH(SIZES); k++)
            if (SIZES[k].kind == kind) SIZES[k].sizes(g, m);
        m->convolution = m->convolution || m->kernel > 1;
    }
    return table;
}
