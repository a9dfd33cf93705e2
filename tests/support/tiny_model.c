#include "tests/support/tiny_model.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/random.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* What a tensor's values look like. Weights have variance 0.7 / fan-in, so activations stay finite in fp16. */
typedef enum tiny_kind { TINY_WEIGHT, TINY_BIAS, TINY_SCALE, TINY_EMBEDDING, TINY_POSITIONS, TINY_ALPHAS, TINY_ONE } tiny_kind;

typedef struct tiny_tensor {
    char name[128];
    int rank;
    int64_t dim[4];
    tiny_kind kind;
} tiny_tensor;

typedef struct tiny_list {
    tiny_tensor *tensor;
    size_t count;
    tiny_model_shape shape;
} tiny_list;

static void add(tiny_list *list, tiny_kind kind, int rank, const int64_t dim[4], const char *format, ...) {
    list->tensor = memory_grow(list->tensor, list->count + 1, sizeof *list->tensor);
    tiny_tensor *t = &list->tensor[list->count++];
    *t = (tiny_tensor){.rank = rank, .kind = kind};
    memcpy(t->dim, dim, sizeof t->dim);
    va_list args;
    va_start(args, format);
    vsnprintf(t->name, sizeof t->name, format, args);
    va_end(args);
}

static void add_bias(tiny_list *list, const char *name, int out) { add(list, TINY_BIAS, 1, (int64_t[4]){out}, "%s.bias", name); }

static void add_linear(tiny_list *list, const char *name, int out, int in, bool bias) {
    add(list, TINY_WEIGHT, 2, (int64_t[4]){out, in}, "%s.weight", name);
    if (bias) add_bias(list, name, out);
}

static void add_conv(tiny_list *list, const char *name, int out, int in, int kernel) {
    add(list, TINY_WEIGHT, 4, (int64_t[4]){out, in, kernel, kernel}, "%s.weight", name);
    add_bias(list, name, out);
}

static void add_norm(tiny_list *list, const char *name, int channels) {
    add(list, TINY_SCALE, 1, (int64_t[4]){channels}, "%s.weight", name);
    add_bias(list, name, channels);
}

/* "prefix" + "tail" in a caller-owned buffer. */
typedef struct tiny_name {
    char text[112];
} tiny_name;

static const char *join(tiny_name *name, const char *prefix, const char *format, ...) {
    int used = snprintf(name->text, sizeof name->text, "%s", prefix);
    va_list args;
    va_start(args, format);
    vsnprintf(name->text + used, sizeof name->text - (size_t)used, format, args);
    va_end(args);
    return name->text;
}

/* ---- U-Net ---- */

static void add_unet_resnet(tiny_list *list, const char *p, int in, int out, int time) {
    tiny_name n;
    add_norm(list, join(&n, p, ".in_layers.0"), in);
    add_conv(list, join(&n, p, ".in_layers.2"), out, in, 3);
    add_linear(list, join(&n, p, ".emb_layers.1"), out, time, true);
    add_norm(list, join(&n, p, ".out_layers.0"), out);
    add_conv(list, join(&n, p, ".out_layers.3"), out, out, 3);
    if (in != out) add_conv(list, join(&n, p, ".skip_connection"), out, in, 1);
}

static void add_transformer(tiny_list *list, const char *p, int c, int context) {
    tiny_name n, block;
    add_norm(list, join(&n, p, ".norm"), c);
    add_conv(list, join(&n, p, ".proj_in"), c, c, 1);
    join(&block, p, ".transformer_blocks.0");
    for (int a = 1; a <= 2; a++) {
        int keys = a == 1 ? c : context;
        add_linear(list, join(&n, block.text, ".attn%d.to_q", a), c, c, false);
        add_linear(list, join(&n, block.text, ".attn%d.to_k", a), c, keys, false);
        add_linear(list, join(&n, block.text, ".attn%d.to_v", a), c, keys, false);
        add_linear(list, join(&n, block.text, ".attn%d.to_out.0", a), c, c, true);
    }
    add_linear(list, join(&n, block.text, ".ff.net.0.proj"), 8 * c, c, true);
    add_linear(list, join(&n, block.text, ".ff.net.2"), c, 4 * c, true);
    for (int k = 1; k <= 3; k++) add_norm(list, join(&n, block.text, ".norm%d", k), c);
    add_conv(list, join(&n, p, ".proj_out"), c, c, 1);
}

static const int unet_multiple[4] = {1, 2, 4, 4};

static int add_unet_down(tiny_list *list, const char *p, int *skips, int *skip_count) {
    int base = list->shape.unet_channels, channels = base, block = 1;
    tiny_name n;
    skips[(*skip_count)++] = channels;
    for (int level = 0; level < 4; level++) {
        for (int i = 0; i < 2; i++, block++) {
            int out = base * unet_multiple[level];
            add_unet_resnet(list, join(&n, p, "input_blocks.%d.0", block), channels, out, 4 * base);
            channels = out;
            if (level < 3) add_transformer(list, join(&n, p, "input_blocks.%d.1", block), channels, list->shape.text_width);
            skips[(*skip_count)++] = channels;
        }
        if (level == 3) break;
        add_conv(list, join(&n, p, "input_blocks.%d.0.op", block++), channels, channels, 3);
        skips[(*skip_count)++] = channels;
    }
    return channels;
}

static void add_unet(tiny_list *list) {
    const char *p = "model.diffusion_model.";
    int base = list->shape.unet_channels, time = 4 * base, skips[16], skip_count = 0;
    tiny_name n;
    add_linear(list, join(&n, p, "time_embed.0"), time, base, true);
    add_linear(list, join(&n, p, "time_embed.2"), time, time, true);
    add_conv(list, join(&n, p, "input_blocks.0.0"), base, list->shape.unet_inputs ? list->shape.unet_inputs : 4, 3);
    int channels = add_unet_down(list, p, skips, &skip_count);
    add_unet_resnet(list, join(&n, p, "middle_block.0"), channels, channels, time);
    add_transformer(list, join(&n, p, "middle_block.1"), channels, list->shape.text_width);
    add_unet_resnet(list, join(&n, p, "middle_block.2"), channels, channels, time);
    for (int level = 3, block = 0; level >= 0; level--) {
        for (int i = 0; i < 3; i++, block++) {
            int out = base * unet_multiple[level];
            add_unet_resnet(list, join(&n, p, "output_blocks.%d.0", block), channels + skips[--skip_count], out, time);
            channels = out;
            if (level < 3) add_transformer(list, join(&n, p, "output_blocks.%d.1", block), channels, list->shape.text_width);
            if (level > 0 && i == 2)
                add_conv(list, join(&n, p, "output_blocks.%d.%d.conv", block, level < 3 ? 2 : 1), channels, channels, 3);
        }
    }
    add_norm(list, join(&n, p, "out.0"), channels);
    add_conv(list, join(&n, p, "out.2"), 4, base, 3);
}

/* ---- VAE ---- */

static void add_vae_resnet(tiny_list *list, const char *p, int in, int out) {
    tiny_name n;
    add_norm(list, join(&n, p, ".norm1"), in);
    add_conv(list, join(&n, p, ".conv1"), out, in, 3);
    add_norm(list, join(&n, p, ".norm2"), out);
    add_conv(list, join(&n, p, ".conv2"), out, out, 3);
    if (in != out) add_conv(list, join(&n, p, ".nin_shortcut"), out, in, 1);
}

static void add_vae_middle(tiny_list *list, const char *p, int c) {
    static const char *const projections[] = {"q", "k", "v", "proj_out"};
    tiny_name n;
    add_vae_resnet(list, join(&n, p, ".block_1"), c, c);
    add_norm(list, join(&n, p, ".attn_1.norm"), c);
    for (int i = 0; i < 4; i++) add_conv(list, join(&n, p, ".attn_1.%s", projections[i]), c, c, 1);
    add_vae_resnet(list, join(&n, p, ".block_2"), c, c);
}

static void add_vae(tiny_list *list) {
    const char *p = "first_stage_model.";
    int base = list->shape.vae_channels, c = base;
    tiny_name n;
    add_conv(list, join(&n, p, "encoder.conv_in"), c, 3, 3);
    for (int level = 0; level < 4; level++) {
        for (int i = 0; i < 2; i++, c = base * unet_multiple[level])
            add_vae_resnet(list, join(&n, p, "encoder.down.%d.block.%d", level, i), c, base * unet_multiple[level]);
        if (level < 3) add_conv(list, join(&n, p, "encoder.down.%d.downsample.conv", level), c, c, 3);
    }
    add_vae_middle(list, join(&n, p, "encoder.mid"), c);
    add_norm(list, join(&n, p, "encoder.norm_out"), c);
    add_conv(list, join(&n, p, "encoder.conv_out"), 8, c, 3);
    add_conv(list, join(&n, p, "decoder.conv_in"), c, 4, 3);
    add_vae_middle(list, join(&n, p, "decoder.mid"), c);
    for (int level = 3; level >= 0; level--) {
        for (int i = 0; i < 3; i++, c = base * unet_multiple[level])
            add_vae_resnet(list, join(&n, p, "decoder.up.%d.block.%d", level, i), c, base * unet_multiple[level]);
        if (level > 0) add_conv(list, join(&n, p, "decoder.up.%d.upsample.conv", level), c, c, 3);
    }
    add_norm(list, join(&n, p, "decoder.norm_out"), c);
    add_conv(list, join(&n, p, "decoder.conv_out"), 3, c, 3);
    add_conv(list, join(&n, p, "quant_conv"), 8, 8, 1);
    add_conv(list, join(&n, p, "post_quant_conv"), 4, 4, 1);
}

/* ---- text encoder ---- */

static void add_text_encoder(tiny_list *list) {
    static const char *const projections[] = {"k_proj", "v_proj", "q_proj", "out_proj"};
    const char *p = "cond_stage_model.transformer.text_model.";
    int d = list->shape.text_width;
    tiny_name n, layer;
    add(list, TINY_POSITIONS, 2, (int64_t[4]){1, 77}, "%sembeddings.position_ids", p);
    add(list, TINY_EMBEDDING, 2, (int64_t[4]){77, d}, "%sembeddings.position_embedding.weight", p);
    add(list, TINY_EMBEDDING, 2, (int64_t[4]){TINY_VOCABULARY, d}, "%sembeddings.token_embedding.weight", p);
    for (int l = 0; l < list->shape.text_layers; l++) {
        join(&layer, p, "encoder.layers.%d", l);
        for (int i = 0; i < 4; i++) add_linear(list, join(&n, layer.text, ".self_attn.%s", projections[i]), d, d, true);
        add_norm(list, join(&n, layer.text, ".layer_norm1"), d);
        add_linear(list, join(&n, layer.text, ".mlp.fc1"), 4 * d, d, true);
        add_linear(list, join(&n, layer.text, ".mlp.fc2"), d, 4 * d, true);
        add_norm(list, join(&n, layer.text, ".layer_norm2"), d);
    }
    add_norm(list, join(&n, p, "final_layer_norm"), d);
}

/* ---- the file ---- */

static size_t tensor_elements(const tiny_tensor *t) {
    size_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= (size_t)t->dim[i];
    return n;
}

static dtype tensor_type(const tiny_list *list, const tiny_tensor *t) {
    return t->kind == TINY_POSITIONS ? DTYPE_I64 : t->kind == TINY_ALPHAS ? DTYPE_F32 : list->shape.type;
}

static void fill(float *out, const tiny_tensor *t, size_t n, uint64_t seed, uint64_t stream) {
    double fan_in = t->rank ? (double)n / (double)t->dim[0] : 1;
    double spread = t->kind == TINY_WEIGHT ? sqrt(0.7 / fan_in) : t->kind == TINY_BIAS ? 0.01 : 0.02;
    double center = t->kind == TINY_SCALE ? 1 : 0;
    /* Uniform numbers of unit variance lie in +-sqrt(3). */
    for (size_t i = 0; i < n; i++) out[i] = (float)(center + spread * 1.7320508 * (2 * random_uniform(seed, stream, i) - 1));
    if (t->kind == TINY_ONE) out[0] = 4;
    if (t->kind != TINY_ALPHAS) return;
    double product = 1, first = sqrt(0.00085), last = sqrt(0.012);
    for (size_t i = 0; i < n; i++) {
        double root = first + (last - first) * (double)i / (double)(n - 1);
        product *= 1 - root * root;
        out[i] = (float)product;
    }
}

static char *header_text(const tiny_list *list) {
    char *json = memory_string("{\"__metadata__\":{\"format\":\"pt\"}");
    size_t length = strlen(json), offset = 0;
    for (size_t i = 0; i < list->count; i++) {
        const tiny_tensor *t = &list->tensor[i];
        dtype type = tensor_type(list, t);
        size_t bytes = tensor_elements(t) * dtype_size(type);
        char shape[96] = "", entry[320];
        for (int d = 0; d < t->rank; d++)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%lld", d ? "," : "", (long long)t->dim[d]);
        int used = snprintf(entry, sizeof entry, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", t->name,
                            dtype_name(type), shape, offset, offset + bytes);
        json = memory_grow(json, length + (size_t)used + 16, 1);
        memcpy(json + length, entry, (size_t)used + 1);
        length += (size_t)used;
        offset += bytes;
    }
    json[length++] = '}';
    while (length % 8) json[length++] = ' ';
    json[length] = 0;
    return json;
}

static bool write_tensor(file_writer *file, const tiny_list *list, size_t index, uint64_t seed) {
    const tiny_tensor *t = &list->tensor[index];
    size_t n = tensor_elements(t);
    dtype type = tensor_type(list, t);
    void *data = memory_new(n, 8);
    if (type == DTYPE_I64) {
        for (size_t i = 0; i < n; i++) ((int64_t *)data)[i] = (int64_t)i;
    } else {
        float *values = memory_new(n, sizeof *values);
        fill(values, t, n, seed, index);
        dtype_from_f32(data, type, values, n);
        free(values);
    }
    bool ok = file_writer_write(file, data, n * dtype_size(type), NULL);
    free(data);
    return ok;
}

static bool write_list(const char *path, uint64_t seed, tiny_list *list) {
    char *json = header_text(list);
    uint8_t size[8];
    for (int i = 0; i < 8; i++) size[i] = (uint8_t)((uint64_t)strlen(json) >> (8 * i));
    file_writer file;
    bool ok = file_writer_open(&file, path, NULL) && file_writer_write(&file, size, 8, NULL) &&
              file_writer_write(&file, json, strlen(json), NULL);
    for (size_t i = 0; ok && i < list->count; i++) ok = write_tensor(&file, list, i, seed);
    ok = ok && file_writer_commit(&file, NULL);
    free(json);
    free(list->tensor);
    return ok;
}

bool tiny_model_write_shape(const char *path, uint64_t seed, tiny_model_shape shape) {
    tiny_list list = {.shape = shape};
    add_unet(&list);
    add_vae(&list);
    add_text_encoder(&list);
    add(&list, TINY_ALPHAS, 1, (int64_t[4]){1000}, "alphas_cumprod");
    return write_list(path, seed, &list);
}

bool tiny_model_write(const char *path, uint64_t seed) {
    return tiny_model_write_shape(
        path, seed, (tiny_model_shape){TINY_UNET_CHANNELS, TINY_VAE_CHANNELS, TINY_TEXT_WIDTH, TINY_TEXT_LAYERS, DTYPE_F16, 4});
}

bool tiny_lora_write(const char *path, uint64_t seed, int width) {
    static const char *const projections[] = {"to_q", "to_k", "to_v", "to_out_0"};
    tiny_list list = {.shape = {.type = DTYPE_F16}};
    for (int i = 0; i < 4; i++) {
        tiny_name n;
        join(&n, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_", "%s", projections[i]);
        add(&list, TINY_ONE, 0, (int64_t[4]){0}, "%s.alpha", n.text);
        add(&list, TINY_WEIGHT, 2, (int64_t[4]){4, width}, "%s.lora_down.weight", n.text);
        add(&list, TINY_WEIGHT, 2, (int64_t[4]){width, 4}, "%s.lora_up.weight", n.text);
    }
    return write_list(path, seed, &list);
}
