/* An inspection for people: what it is, where it comes from, whether it is sound, what it changes where. */
#include "cli/inspection.h"
#include "cli/terminal.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LINE = 4096 };

/* Text under construction. */
typedef struct line {
    char text[LINE];
    size_t used;
} line;

static void add(line *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(line *l, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(l->text + l->used, sizeof l->text - l->used, format, args);
    va_end(args);
    l->used += n > 0 ? (size_t)n : 0;
    if (l->used >= sizeof l->text) l->used = sizeof l->text - 1;
}

enum { LABEL = 14 };

static int wrap; /* columns of the terminal; 0: lines are not broken */

static void put(const char *text, size_t n) {
    for (size_t k = 0; k < n; k++) putchar((unsigned char)text[k] < 32 || text[k] == 127 ? ' ' : text[k]);
}

/* "  label      text", broken between words; what comes from files may hold anything, and control characters would drive the terminal. */
static void print_row(const char *label, const line *l) {
    const char *text = l->text;
    int column = LABEL;
    if (!l->used) return;
    printf("  %-*s", LABEL - 2, label);
    while (*text) {
        size_t n = strcspn(text + 1, " ") + 1;
        if (wrap > 2 * LABEL && column > LABEL && column + (int)n > wrap) {
            printf("\n%*s", LABEL, "");
            column = LABEL;
            text += *text == ' ', n = strcspn(text, " ");
        }
        put(text, n);
        column += (int)n;
        text += n;
    }
    putchar('\n');
}

static void print_text(const char *label, const char *text) {
    line l = {.used = 0};
    add(&l, "%s", text);
    print_row(label, &l);
}

/* Of trainers' metadata; NULL: nothing is said. */
static const char *get(const inspection *i, const char *key) {
    const char *value = safetensors_metadata(&i->file.sources[0], key);
    return value && *value && strcmp(value, "None") ? value : NULL;
}

/* 5063040 as "5,063,040" */
static void add_grouped(line *l, int64_t n) {
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)n);
    for (int k = 0; k < length; k++) add(l, "%s%c", k && (length - k) % 3 == 0 ? "," : "", digits[k]);
}

/* ---- what it is ---- */

static void add_kinds(line *l, const inspection *i) {
    const char *name = i->kinds;
    while (*name) {
        size_t n = strcspn(name, "+");
        const char *title = NULL;
        for (const adapter_kind *const *k = adapter_kinds(); *k && !title; k++)
            if (strlen((*k)->name) == n && !strncmp((*k)->name, name, n)) title = (*k)->title;
        add(l, "%s%s", name == i->kinds ? "" : " and ", title ? title : "an unknown set of parts");
        name += n + (name[n] == '+');
    }
    const char *module = get(i, "ss_network_module"), *args = get(i, "ss_network_args");
    bool dylora = (module && strstr(module, "dylora")) || (args && strstr(args, "\"dylora\""));
    if (dylora) add(l, ", trained as DyLoRA: any lower rank can be cut from it");
    if (i->tucker) add(l, ", Tucker factors");
    if (i->dora) add(l, ", DoRA on the %s axis", i->dora_on_output ? "output" : "input");
    if (i->rank_stabilised) add(l, ", rank-stabilised (alpha over the root of the rank)");
}

static void add_counts(line *l, const char *what, const inspection_count *counts, int used, int modules) {
    for (int k = 0; k < used; k++) {
        add(l, "%s%s%g", k ? ", " : what, k ? "" : " ", counts[k].value);
        if (used > 1 || counts[k].modules != modules) add(l, " in %d", counts[k].modules);
    }
}

static void print_size(const inspection *i) {
    line l = {.used = 0};
    char bytes[24];
    add(&l, "%d module%s", i->modules, i->modules == 1 ? "" : "s");
    if (i->rank_count) add_counts(&l, ", rank", i->ranks, i->rank_count, i->modules);
    if (i->alpha_count) add_counts(&l, strstr(i->kinds, "oft") ? "; constraint" : "; alpha", i->alphas, i->alpha_count, i->modules);
    add(&l, "; ");
    add_grouped(&l, i->parameters);
    add(&l, " parameters");
    for (int k = 0; k < i->type_count; k++) add(&l, "%s%s", k ? "+" : " in ", dtype_name(i->types[k]));
    add(&l, ", %s", terminal_bytes(i->bytes, bytes));
    print_row("size", &l);
}

static void add_targets(line *l, const char *model, const inspection_targets *t) {
    if (!t->modules) return;
    add(l, "%s%s: ", l->used ? "; " : "", model);
    if (*t->set && t->modules == t->set_size)
        add(l, "%s, all %d", t->set, t->modules);
    else if (*t->set)
        add(l, "%d of the %d of %s", t->modules, t->set_size, t->set);
    else
        add(l, "%d", t->modules);
    const char *before = " (";
    for (int c = 0; c < INSPECTION_CLASSES; c++) {
        int count = t->classes[c];
        while (c + 1 < INSPECTION_CLASSES && !strcmp(inspection_class_title(c), inspection_class_title(c + 1))) count += t->classes[++c];
        if (!count) continue;
        add(l, "%s%d %s", before, count, inspection_class_title(c));
        before = ", ";
    }
    add(l, ")");
}

static void print_what(const inspection *i) {
    static const char *const styles[] = {
        "kohya's (lora_unet, lora_te)", "kohya's for SDXL (lora_te1)",   "the original layout's (lora_unet_input_blocks)",
        "kohya's for OFT (oft_unet)",   "diffusers' and PEFT's, dotted", "diffusers' old attention processors'"};
    line kind = {.used = 0}, targets = {.used = 0}, names = {.used = 0};
    add_kinds(&kind, i);
    print_row("kind", &kind);
    print_size(i);
    add_targets(&targets, "U-Net", &i->unet);
    add_targets(&targets, "text encoder", &i->text);
    print_row("targets", &targets);
    add(&names, "%s", styles[i->file.groups[0].style]);
    for (int g = 1; g < i->file.group_count; g++)
        if (i->file.groups[g].style != i->file.groups[0].style && i->file.groups[g].part == i->file.groups[0].part) {
            add(&names, ", and others: %s", styles[i->file.groups[g].style]);
            break;
        }
    print_row("names", &names);
    for (int e = 0; e < i->embedding_count; e++) {
        line l = {.used = 0};
        const inspection_embedding *emb = &i->embeddings[e];
        add(&l, "%s: %lld vector%s of %lld, a word to use in prompts", emb->token, (long long)emb->vectors, emb->vectors == 1 ? "" : "s",
            (long long)emb->width);
        print_row("embedding", &l);
    }
}

/* ---- where it comes from ---- */

/* Values of metadata as a sentence: "1200 steps, 10 epochs". */
static void add_values(line *l, const inspection *i, const char *const rows[][2], size_t count) {
    for (size_t k = 0; k < count; k++) {
        const char *value = get(i, rows[k][0]);
        bool zero = value && strspn(value, "0.") == strlen(value) && strcmp(rows[k][0], "ss_seed");
        if (!value || zero) continue;
        if (l->used) add(l, ", ");
        const char *gap = strchr(rows[k][1], '$'); /* where the value stands */
        add(l, "%.*s%.120s%s", (int)(gap - rows[k][1]), rows[k][1], value, gap + 1);
    }
}

static void print_date(const inspection *i) {
    const char *started = get(i, "ss_training_started_at"), *date = get(i, "modelspec.date");
    line l = {.used = 0};
    time_t seconds = started ? (time_t)strtod(started, NULL) : 0;
    struct tm when;
    char text[32];
    if (seconds > 0 && gmtime_r(&seconds, &when) && strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &when)) date = text;
    if (date) add(&l, "%.60s", date);
    print_row("date", &l);
}

/* "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)" without its modules. */
static void print_rates(const inspection *i) {
    static const char *const rows[][2] = {{"ss_unet_lr", "U-Net $"},
                                          {"ss_text_encoder_lr", "text encoder $"},
                                          {"ss_lr_scheduler", "$"},
                                          {"ss_lr_warmup_steps", "$ warm-up steps"}};
    line l = {.used = 0};
    add_values(&l, i, rows, 4);
    const char *optimizer = get(i, "ss_optimizer"), *name = optimizer;
    for (const char *c = optimizer; c && *c && *c != '('; c++)
        if (*c == '.') name = c + 1;
    if (name) add(&l, "%s%.120s", l.used ? ", " : "", name);
    print_row("rates", &l);
}

/* What its maker wrote. A title that only repeats the name is left out. */
static void print_about(const inspection *i) {
    static const char *const rows[][2] = {{"ss_output_name", "name"},
                                          {"modelspec.title", "title"},
                                          {"modelspec.author", "author"},
                                          {"modelspec.description", "description"},
                                          {"modelspec.license", "license"},
                                          {"modelspec.tags", "tags"},
                                          {"modelspec.trigger_phrase", "trigger"},
                                          {"ss_training_comment", "comment"}};
    const char *name = get(i, "ss_output_name"), *thumbnail = get(i, "modelspec.thumbnail");
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        const char *value = get(i, rows[k][0]);
        line l = {.used = 0};
        if (value && !(k == 1 && name && !strcmp(name, value))) add(&l, "%.300s", value);
        print_row(rows[k][1], &l);
    }
    line preview = {.used = 0};
    if (thumbnail && !strncmp(thumbnail, "data:image/", 11))
        add(&preview, "a %.*s picture in the metadata", (int)strcspn(thumbnail + 11, ";"), thumbnail + 11);
    print_row("preview", &preview);
}

static void print_training(const inspection *i) {
    static const char *const network[][2] = {{"ss_network_module", "$"}, {"ss_network_args", "$"}, {"ss_network_dropout", "dropout $"}};
    static const char *const training[][2] = {{"ss_steps", "$ steps"},
                                              {"ss_epoch", "$ epochs"},
                                              {"ss_num_train_images", "$ images with repeats"},
                                              {"ss_total_batch_size", "batches of $"},
                                              {"ss_resolution", "at $"},
                                              {"ss_mixed_precision", "precision $"},
                                              {"ss_clip_skip", "clip skip $"},
                                              {"ss_noise_offset", "noise offset $"},
                                              {"ss_min_snr_gamma", "min SNR gamma $"},
                                              {"ss_seed", "seed $"}};
    line net = {.used = 0}, steps = {.used = 0};
    add_values(&net, i, network, sizeof network / sizeof *network);
    print_row("network", &net);
    add_values(&steps, i, training, sizeof training / sizeof *training);
    print_row("training", &steps);
    print_rates(i);
    print_date(i);
}

static void print_origin(const inspection *i) {
    char text[1024];
    inspection_base(i, text, sizeof text);
    print_text("base", text);
    print_about(i);
    print_training(i);
    inspection_tags(&i->file.sources[0], text, sizeof text);
    print_text("captions", text);
}

/* ---- whether it is sound ---- */

static const char *verdict_text(const inspection_hash *h) {
    switch (h->verdict) {
    case HASH_TRUE: return "stated, true";
    case HASH_FALSE: return "stated, FALSE";
    case HASH_UNKNOWN: return "stated as LyCORIS writes it, in an order that the file does not keep: cannot be checked";
    case HASH_ABSENT: break;
    }
    return "computed, the file states none";
}

static void print_hashes(const inspection *i) {
    line l = {.used = 0};
    if (!*i->file_hash) return;
    const char *webui = i->model_hash.stated ? i->model_hash.stated : i->data_hash;
    add(&l, "%.12s for webui (%s)", webui, verdict_text(&i->model_hash));
    if (i->legacy_hash.stated) add(&l, ", legacy %.8s (%s)", i->legacy_hash.stated, verdict_text(&i->legacy_hash));
    add(&l, ", %.10s of the file (AutoV2)", i->file_hash);
    print_row("hashes", &l);
}

static void print_loaders(const inspection *i) {
    line yes = {.used = 0};
    for (int k = 0; k < LOADER_COUNT; k++)
        if (i->loads_in[k]) add(&yes, "%s%s", yes.used ? ", " : "", loader_title((loader)k));
    if (!yes.used) add(&yes, "none of webui, ComfyUI, diffusers, stable-diffusion.cpp as it is");
    print_row("loads in", &yes);
    for (int k = 0; k < LOADER_COUNT; k++) {
        line no = {.used = 0};
        if (i->loads_in[k]) continue;
        add(&no, "%s: %s", loader_title((loader)k), i->obstacles[k] ? i->obstacles[k] : "does not load it");
        print_row("not in", &no);
    }
}

/* ---- what it changes where ---- */

static double block_share(const inspection_block *b) { return b->multiplied ? sqrt(b->relative / b->multiplied) : 0; }

/* An empty string or eighths of a cell. */
static void print_bar(double share, int cells, bool utf8) {
    static const char *const eighths[] = {"", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589"};
    int n = (int)lround(share * cells * 8);
    for (int k = 0; k < n / 8; k++) fputs(utf8 ? "\u2588" : "#", stdout);
    if (utf8) fputs(eighths[n % 8], stdout);
}

static bool locale_is_utf8(void) {
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (int k = 0; k < 3; k++) {
        const char *value = getenv(names[k]);
        if (value && *value) return strstr(value, "UTF-8") || strstr(value, "utf8") || strstr(value, "UTF8") || strstr(value, "utf-8");
    }
    return false;
}

static void print_block(const inspection_block *b, int width, bool wide, double most, double most_share, bool bars, int cells) {
    char value[64] = "";
    size_t used = 0;
    if (b->added) used = (size_t)snprintf(value, sizeof value, "%.4g", sqrt(b->squares));
    if (b->multiplied) snprintf(value + used, sizeof value - used, "%s%.2f %% of W", used ? ", " : "", 100 * block_share(b));
    printf("    %-5s %-*s %3d  %*s", b->merging, width, b->name, b->modules, wide ? 14 : 9, value);
    double share = b->added ? (most > 0 ? sqrt(b->squares) / most : 0) : most_share > 0 ? block_share(b) / most_share : 0;
    if (bars) {
        fputs("  ", stdout);
        print_bar(share, cells, locale_is_utf8());
    }
    putchar('\n');
}

static void print_totals(const inspection *i) {
    double unet = 0, text = 0;
    bool added = false;
    for (int k = 0; k < i->block_count; k++) {
        double *sum = strncmp(i->blocks[k].name, "text", 4) ? &unet : &text;
        *sum += i->blocks[k].squares;
        added |= i->blocks[k].added > 0;
    }
    if (!added) return;
    fputs("    in all:", stdout);
    if (i->unet_modules) printf(" U-Net %.4g", sqrt(unet));
    if (i->text_modules) printf("%s text encoder %.4g", i->unet_modules ? "," : "", sqrt(text));
    putchar('\n');
}

static void print_norms(const inspection *i, bool bars, int columns) {
    double most = 0, most_share = 0;
    int width = 10, multiplied = 0;
    for (int k = 0; k < i->block_count; k++) {
        const inspection_block *b = &i->blocks[k];
        most = fmax(most, sqrt(b->squares));
        most_share = fmax(most_share, b->added ? 0 : block_share(b));
        multiplied += b->multiplied;
        width = (int)strlen(b->name) > width ? (int)strlen(b->name) : width;
    }
    int cells = columns - width - (multiplied ? 35 : 27);
    if (i->block_count)
        printf("  change at strength 1, by block (modules, Frobenius norm%s)\n", i->measured ? ", share of the model's weight" : "");
    for (int k = 0; k < i->block_count; k++)
        print_block(&i->blocks[k], width, multiplied, most, most_share, bars && cells >= 4, cells > 40 ? 40 : cells);
    print_totals(i);
    if (i->untold && !i->measured) printf("    %d module%s cannot be told from the file alone\n", i->untold, i->untold == 1 ? "" : "s");
    if (i->measured) return;
    if (multiplied) puts("    % of W: the share by which the weight changes, as expected of any weight; --model tells the norm itself");
    if (i->dora) puts("    of DoRA: the norm of what its factors add; --model tells how the sum is rescaled");
}

static void print_metadata(const safetensors *st) {
    puts("  metadata");
    for (size_t k = 0; k < st->metadata_count; k++) {
        line l = {.used = 0};
        add(&l, "%.300s%s", st->metadata[k].value, strlen(st->metadata[k].value) > 300 ? "..." : "");
        printf("    %-32s", st->metadata[k].key);
        put(l.text, l.used);
        putchar('\n');
    }
}

void inspection_print(const inspection *i, bool bars, int columns) {
    wrap = bars ? columns : 0;
    puts(i->file.path);
    print_what(i);
    print_origin(i);
    print_hashes(i);
    print_loaders(i);
    if (terminal_verbose() && i->file.sources[0].metadata_count) print_metadata(&i->file.sources[0]);
    print_norms(i, bars, columns);
    for (int k = 0; k < i->notes.count; k++) print_text("note:", i->notes.item[k]);
    for (int k = 0; k < i->problems.count; k++) print_text("problem:", i->problems.item[k]);
    if (!i->problems.count) puts("  no problems found");
}
