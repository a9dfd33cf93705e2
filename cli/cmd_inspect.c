/* vulora inspect FILE...: what adapter files are. */
#include "cli/commands.h"
#include "cli/inspection.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "convert/source.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Text from a file may hold bytes that are no UTF-8, which JSON cannot hold. */
static json_t *text_value(const char *text) {
    json_t *value = json_string(text);
    if (value) return value;
    char *copy = malloc(strlen(text) + 1);
    if (!copy) return json_null();
    strcpy(copy, text);
    for (char *p = copy; *p; p++)
        if ((unsigned char)*p >= 128) *p = '?';
    value = json_string(copy);
    free(copy);
    return value;
}

static json_t *list_value(const inspection_list *list) {
    json_t *array = json_array();
    for (int k = 0; k < list->count; k++) json_array_append_new(array, text_value(list->item[k]));
    return array;
}

static json_t *counts_value(const inspection_count *counts, int used) {
    json_t *object = json_object();
    for (int k = 0; k < used; k++) {
        char key[32];
        snprintf(key, sizeof key, "%g", counts[k].value);
        json_object_set_new(object, key, json_integer(counts[k].modules));
    }
    return object;
}

static json_t *targets_value(const inspection_targets *t) {
    json_t *object = json_object(), *classes = json_object();
    for (int c = 0; c < INSPECTION_CLASSES; c++) {
        const char *title = inspection_class_title(c);
        json_int_t so_far = json_integer_value(json_object_get(classes, title));
        if (t->classes[c]) json_object_set_new(classes, title, json_integer(so_far + t->classes[c]));
    }
    json_object_set_new(object, "set", *t->set ? json_string(t->set) : json_null());
    json_object_set_new(object, "complete", json_boolean(*t->set && t->modules == t->set_size));
    json_object_set_new(object, "modules", classes);
    return object;
}

/* "true": null when nothing is stated, or when it cannot be checked. */
static json_t *hash_value(const inspection_hash *h) {
    bool checked = h->verdict == HASH_TRUE || h->verdict == HASH_FALSE;
    json_t *object = json_object();
    json_object_set_new(object, "stated", h->stated ? text_value(h->stated) : json_null());
    json_object_set_new(object, "computed", json_string(h->computed));
    json_object_set_new(object, "true", checked ? json_boolean(h->verdict == HASH_TRUE) : json_null());
    return object;
}

static json_t *blocks_value(const inspection *i) {
    json_t *blocks = json_array();
    for (int k = 0; k < i->block_count; k++) {
        const inspection_block *b = &i->blocks[k];
        json_t *block = json_object();
        json_object_set_new(block, "block", json_string(b->name));
        json_object_set_new(block, "merging_name", json_string(b->merging));
        json_object_set_new(block, "modules", json_integer(b->modules));
        json_object_set_new(block, "norm", b->added ? json_real(sqrt(b->squares)) : json_null());
        if (b->multiplied) json_object_set_new(block, "share_of_weight", json_real(sqrt(b->relative / b->multiplied)));
        json_array_append_new(blocks, block);
    }
    return blocks;
}

static json_t *embeddings_value(const inspection *i) {
    json_t *embeddings = json_array();
    for (int e = 0; e < i->embedding_count; e++) {
        json_t *object = json_object();
        json_object_set_new(object, "token", text_value(i->embeddings[e].token));
        json_object_set_new(object, "vectors", json_integer(i->embeddings[e].vectors));
        json_object_set_new(object, "width", json_integer(i->embeddings[e].width));
        json_array_append_new(embeddings, object);
    }
    return embeddings;
}

static void set_loaders(json_t *object, const inspection *i) {
    json_t *loads = json_object(), *obstacles = json_object();
    for (int k = 0; k < LOADER_COUNT; k++) {
        json_object_set_new(loads, loader_name((loader)k), json_boolean(i->loads_in[k]));
        if (i->obstacles[k]) json_object_set_new(obstacles, loader_name((loader)k), json_string(i->obstacles[k]));
    }
    json_object_set_new(object, "loads_in", loads);
    json_object_set_new(object, "obstacles", obstacles);
}

static void set_hashes(json_t *object, const inspection *i) {
    if (!*i->file_hash) return;
    json_t *hashes = json_object();
    json_object_set_new(hashes, "sshs_model_hash", hash_value(&i->model_hash));
    json_object_set_new(hashes, "sshs_legacy_hash", hash_value(&i->legacy_hash));
    json_object_set_new(object, "sshs_model_hash", json_string(i->data_hash));
    json_object_set_new(object, "sha256", json_string(i->file_hash));
    json_object_set_new(object, "hashes", hashes);
}

static json_t *inspection_value(const inspection *i) {
    json_t *object = json_object(), *metadata = json_object(), *targets = json_object();
    char base[512];
    const safetensors *st = &i->file.sources[0];
    for (size_t k = 0; k < st->metadata_count; k++) json_object_set_new(metadata, st->metadata[k].key, text_value(st->metadata[k].value));
    inspection_base(i, base, sizeof base);
    json_object_set_new(targets, "unet", targets_value(&i->unet));
    json_object_set_new(targets, "text_encoder", targets_value(&i->text));
    json_object_set_new(object, "file", text_value(i->file.path));
    json_object_set_new(object, "kind", json_string(i->kinds));
    json_object_set_new(object, "dora", json_boolean(i->dora));
    json_object_set_new(object, "modules", json_integer(i->modules));
    json_object_set_new(object, "unet_modules", json_integer(i->unet_modules));
    json_object_set_new(object, "text_encoder_modules", json_integer(i->text_modules));
    json_object_set_new(object, "targets", targets);
    json_object_set_new(object, "rank", counts_value(i->ranks, i->rank_count));
    json_object_set_new(object, "alpha", counts_value(i->alphas, i->alpha_count));
    json_object_set_new(object, "rank_stabilised", json_boolean(i->rank_stabilised));
    json_object_set_new(object, "parameters", json_integer(i->parameters));
    json_object_set_new(object, "bytes", json_integer((json_int_t)i->bytes));
    json_object_set_new(object, "base", text_value(base));
    set_hashes(object, i);
    set_loaders(object, i);
    json_object_set_new(object, "norms", blocks_value(i));
    json_object_set_new(object, "norms_measured", json_boolean(i->measured));
    json_object_set_new(object, "embeddings", embeddings_value(i));
    json_object_set_new(object, "dead_modules", list_value(&i->dead));
    json_object_set_new(object, "nonfinite_tensors", list_value(&i->nonfinite));
    json_object_set_new(object, "metadata", metadata);
    json_object_set_new(object, "notes", list_value(&i->notes));
    json_object_set_new(object, "problems", list_value(&i->problems));
    return object;
}

static void print_json(json_t *object) {
    char *text = json_dumps(object, 0);
    if (text) puts(text);
    free(text);
    json_decref(object);
}

static void print_refusal(const char *path, const error *err) {
    json_t *object = json_object(), *problems = json_array();
    json_array_append_new(problems, text_value(err->text));
    json_object_set_new(object, "file", text_value(path));
    json_object_set_new(object, "kind", json_null());
    json_object_set_new(object, "problems", problems);
    print_json(object);
}

static int screen_columns(void) {
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

static int inspect_file(const options *o, int index, const inspection_name *names, const source_base *base) {
    const char *path = names[index].path;
    inspection i;
    error err = {""};
    if (!inspection_open(&i, path, &err)) {
        if (o->json) print_refusal(path, &err);
        return terminal_fail(&err);
    }
    if (base) inspection_measure(&i, base);
    inspection_find_clashes(&i, index, names, o->words.count);
    if (o->json)
        print_json(inspection_value(&i));
    else
        inspection_print(&i, isatty(STDOUT_FILENO), screen_columns());
    inspection_close(&i);
    return EXIT_DONE;
}

int cmd_inspect(const options *o) {
    int status = EXIT_DONE;
    error err = {""};
    source_base base;
    if (o->model) {
        char *path = session_find_model(o->model, &err);
        bool ok = path && source_base_open(&base, path, 0, &err);
        free(path);
        if (!ok) return terminal_fail(&err);
    }
    inspection_name *names = inspection_names_read(o->words.item, o->words.count);
    for (int k = 0; k < o->words.count; k++) {
        if (k && !o->json) putchar('\n');
        int one = inspect_file(o, k, names, o->model ? &base : NULL);
        if (one != EXIT_DONE) status = one;
    }
    inspection_names_free(names, o->words.count);
    if (o->model) source_base_close(&base);
    return status;
}
