#include "formats/checkpoint_names.h"

#include <stdio.h>
#include <string.h>

typedef struct renaming {
    const char *from, *to;
} renaming;

static const renaming UNET_TOP[] = {
    {"input_blocks.0.0.", "conv_in."},
    {"time_embed.0.", "time_embedding.linear_1."},
    {"time_embed.2.", "time_embedding.linear_2."},
    {"out.0.", "conv_norm_out."},
    {"out.2.", "conv_out."},
};

static const renaming UNET_RESNET[] = {
    {"in_layers.0.", "norm1."},  {"in_layers.2.", "conv1."},  {"emb_layers.1.", "time_emb_proj."},
    {"out_layers.0.", "norm2."}, {"out_layers.3.", "conv2."}, {"skip_connection.", "conv_shortcut."},
};

static const char *const UNET_DIFFUSERS[] = {
    "conv_in.",  "time_embedding.",  "down_blocks.",   "mid_block.",     "up_blocks.",        "conv_norm_out.",
    "conv_out.", "class_embedding.", "add_embedding.", "add_time_proj.", "encoder_hid_proj.",
};

static const renaming VAE_RESNET[] = {
    {"norm1.", "norm1."}, {"conv1.", "conv1."}, {"norm2.", "norm2."}, {"conv2.", "conv2."}, {"nin_shortcut.", "conv_shortcut."},
};

/* LDM's names, diffusers' before 0.18 and diffusers' of today. */
static const renaming VAE_ATTENTION[] = {
    {"norm.", "group_norm."},
    {"q.", "to_q."},
    {"k.", "to_k."},
    {"v.", "to_v."},
    {"proj_out.", "to_out.0."},
    {"query.", "to_q."},
    {"key.", "to_k."},
    {"value.", "to_v."},
    {"proj_attn.", "to_out.0."},
    {"group_norm.", "group_norm."},
    {"to_q.", "to_q."},
    {"to_k.", "to_k."},
    {"to_v.", "to_v."},
    {"to_out.0.", "to_out.0."},
};

/* Names within `encoder.` and `decoder.`. */
static const renaming VAE_HALF[] = {
    {"conv_in.", "conv_in."},
    {"conv_out.", "conv_out."},
    {"norm_out.", "conv_norm_out."},
    {"conv_norm_out.", "conv_norm_out."},
};

static const char *const TEXT_TOP[] = {"embeddings.token_embedding.", "embeddings.position_embedding.", "encoder.layers.",
                                       "final_layer_norm."};

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* ---- Reading a name from left to right ---- */

static bool take(const char **p, const char *text) {
    size_t n = strlen(text);
    if (strncmp(*p, text, n) != 0) return false;
    *p += n;
    return true;
}

/* "12." */
static bool take_number(const char **p, unsigned *number) {
    const char *s = *p;
    unsigned n = 0;
    while (*s >= '0' && *s <= '9' && n < 1000) n = n * 10 + (unsigned)(*s++ - '0');
    if (s == *p || *s != '.') return false;
    *number = n;
    *p = s + 1;
    return true;
}

static bool write_name(char *out, size_t size, const char *prefix, const char *module, const char *rest) {
    int n = snprintf(out, size, "%s%s%s", prefix, module, rest);
    return n > 0 && (size_t)n < size;
}

/* prefix + the name with its beginning replaced by the table. */
static bool rename_by(const renaming *table, size_t count, const char *name, const char *prefix, char *out, size_t size) {
    for (size_t i = 0; i < count; i++) {
        const char *rest = name;
        if (take(&rest, table[i].from)) return write_name(out, size, prefix, table[i].to, rest);
    }
    return false;
}

static bool begins_with_one_of(const char *const *table, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strncmp(name, table[i], strlen(table[i])) == 0) return true;
    return false;
}

/* ---- U-Net ---- */

/* LDM numbers resnets, attentions and samplers in one row of blocks: a level is three of them (two resnets and a downsampler on the
   way down, three resnets on the way up); within a block 0 is the resnet, 1 the attention, the last the upsampler. */
static bool unet_block_name(const char *name, char *out, size_t size) {
    const char *p = name;
    char prefix[64];
    unsigned n, sub;
    if (take(&p, "input_blocks.") && take_number(&p, &n) && take_number(&p, &sub) && n > 0) {
        unsigned level = (n - 1) / 3, j = (n - 1) % 3;
        snprintf(prefix, sizeof prefix, "down_blocks.%u.", level);
        if (j == 2) return sub == 0 && take(&p, "op.") && write_name(out, size, prefix, "downsamplers.0.conv.", p);
        snprintf(prefix, sizeof prefix, "down_blocks.%u.%s.%u.", level, sub ? "attentions" : "resnets", j);
    } else if (p = name, take(&p, "output_blocks.") && take_number(&p, &n) && take_number(&p, &sub)) {
        snprintf(prefix, sizeof prefix, "up_blocks.%u.", n / 3);
        if (sub > 0 && n % 3 == 2 && take(&p, "conv.")) return write_name(out, size, prefix, "upsamplers.0.conv.", p);
        snprintf(prefix, sizeof prefix, "up_blocks.%u.%s.%u.", n / 3, sub ? "attentions" : "resnets", n % 3);
    } else if (p = name, take(&p, "middle_block.") && take_number(&p, &n) && n < 3) {
        sub = n == 1;
        snprintf(prefix, sizeof prefix, "mid_block.%s.%u.", sub ? "attentions" : "resnets", n / 2);
    } else {
        return false;
    }
    if (sub == 0) return rename_by(UNET_RESNET, LENGTH(UNET_RESNET), p, prefix, out, size);
    return sub == 1 && write_name(out, size, prefix, "", p);
}

bool checkpoint_unet_name(const char *name, char *out, size_t size) {
    if (rename_by(UNET_TOP, LENGTH(UNET_TOP), name, "", out, size)) return true;
    if (unet_block_name(name, out, size)) return true;
    return begins_with_one_of(UNET_DIFFUSERS, LENGTH(UNET_DIFFUSERS), name) && write_name(out, size, "", "", name);
}

/* ---- VAE ---- */

int checkpoint_vae_level(const char *name) {
    unsigned level;
    return take(&name, "decoder.up.") && take_number(&name, &level) ? (int)level : -1;
}

/* `p` is behind `encoder.` or `decoder.`; half is that word. LDM's and diffusers' spelling of the levels. */
static bool vae_level_name(const char *p, const char *half, unsigned levels, char *out, size_t size) {
    char prefix[96];
    unsigned level, j;
    bool up = false, ldm = take(&p, "down.") || (up = take(&p, "up."));
    if (ldm) {
        if (!take_number(&p, &level) || (up && level >= levels)) return false;
        unsigned index = up ? levels - 1 - level : level;
        const char *blocks = up ? "up_blocks" : "down_blocks";
        snprintf(prefix, sizeof prefix, "%s.%s.%u.", half, blocks, index);
        if (take(&p, up ? "upsample.conv." : "downsample.conv."))
            return write_name(out, size, prefix, up ? "upsamplers.0.conv." : "downsamplers.0.conv.", p);
        if (!take(&p, "block.") || !take_number(&p, &j)) return false;
        snprintf(prefix, sizeof prefix, "%s.%s.%u.resnets.%u.", half, blocks, index, j);
        return rename_by(VAE_RESNET, LENGTH(VAE_RESNET), p, prefix, out, size);
    }
    snprintf(prefix, sizeof prefix, "%s.", half);
    return (strncmp(p, "down_blocks.", 12) == 0 || strncmp(p, "up_blocks.", 10) == 0) && write_name(out, size, prefix, "", p);
}

static bool vae_mid_name(const char *p, const char *half, char *out, size_t size) {
    char prefix[96];
    unsigned j;
    if (take(&p, "mid_block.attentions.0.") || take(&p, "mid.attn_1.")) {
        snprintf(prefix, sizeof prefix, "%s.mid_block.attentions.0.", half);
        return rename_by(VAE_ATTENTION, LENGTH(VAE_ATTENTION), p, prefix, out, size);
    }
    if (take(&p, "mid.block_")) {
        if (!take_number(&p, &j) || j < 1) return false;
        snprintf(prefix, sizeof prefix, "%s.mid_block.resnets.%u.", half, j - 1);
        return rename_by(VAE_RESNET, LENGTH(VAE_RESNET), p, prefix, out, size);
    }
    snprintf(prefix, sizeof prefix, "%s.", half);
    return strncmp(p, "mid_block.", 10) == 0 && write_name(out, size, prefix, "", p);
}

bool checkpoint_vae_name(const char *name, unsigned levels, char *out, size_t size) {
    const char *p = name, *half = NULL;
    if (take(&p, "encoder."))
        half = "encoder";
    else if (take(&p, "decoder."))
        half = "decoder";
    if (half) {
        char prefix[16];
        snprintf(prefix, sizeof prefix, "%s.", half);
        return vae_level_name(p, half, levels, out, size) || vae_mid_name(p, half, out, size) ||
               rename_by(VAE_HALF, LENGTH(VAE_HALF), p, prefix, out, size);
    }
    bool quant = strncmp(name, "quant_conv.", 11) == 0 || strncmp(name, "post_quant_conv.", 16) == 0;
    return quant && write_name(out, size, "", "", name);
}

bool checkpoint_vae_is_attention_matrix(const char *name) {
    const char *at = strstr(name, ".attentions.");
    size_t n = strlen(name);
    return at && n > 7 && strcmp(name + n - 7, ".weight") == 0 && strstr(at, ".to_");
}

/* ---- Text encoder ---- */

bool checkpoint_text_name(const char *name, char *out, size_t size) {
    take(&name, "text_model.");
    return begins_with_one_of(TEXT_TOP, LENGTH(TEXT_TOP), name) && write_name(out, size, "text_model.", "", name);
}
