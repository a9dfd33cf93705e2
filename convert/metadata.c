#include "convert/metadata.h"

#include "base/file.h"
#include "base/memory.h"
#include "datasets/image.h"
#include "formats/png_text.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE_FILE_BYTES = 1 << 22 };

static const uint8_t WHITE[3] = {255, 255, 255};

/* ---- what is edited ---- */

typedef struct edit {
    const char *text, *key, *side; /* side: its name in webui's user metadata, or NULL */
} edit;

enum { EDITS = 7 };

/* One home for which option goes where. */
static void list_edits(const metadata_edits *e, edit out[EDITS]) {
    const edit rows[EDITS] = {
        {e->title, "modelspec.title", NULL},
        {e->description, "modelspec.description", "description"},
        {e->trigger, "modelspec.trigger_phrase", "activation text"},
        {e->notes, "ss_training_comment", "notes"},
        {e->author, "modelspec.author", NULL},
        {e->license, "modelspec.license", NULL},
        {e->tags, "modelspec.tags", NULL},
    };
    memcpy(out, rows, sizeof rows);
}

bool metadata_edits_given(const metadata_edits *e) {
    edit rows[EDITS];
    bool given = e->strip || e->preview || e->set_count || e->side_files;
    list_edits(e, rows);
    for (int i = 0; i < EDITS; i++) given = given || rows[i].text;
    return given;
}

/* Computed from the tensors, whatever anybody says. */
static bool is_hash(const char *key, size_t length) {
    static const char *const hashes[] = {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"};
    for (size_t i = 0; i < sizeof hashes / sizeof *hashes; i++)
        if (strlen(hashes[i]) == length && strncmp(hashes[i], key, length) == 0) return true;
    return false;
}

bool metadata_edits_check(const metadata_edits *e, error *err) {
    for (int i = 0; i < e->set_count; i++) {
        const char *text = e->set[i], *equals = strchr(text, '=');
        if (!equals || equals == text) return error_set(err, "--set %s: must be KEY=VALUE (KEY= takes the key out)", text);
        if (is_hash(text, (size_t)(equals - text)))
            return error_set(err, "--set %s: hashes are computed from the tensors and cannot be set", text);
    }
    if (!e->side_files && (e->negative || e->preferred_weight != 0))
        return error_set(err, "--%s: goes into webui's side file; give --side-files too", e->negative ? "negative" : "preferred-weight");
    if (!e->preview || !*e->preview) return true;
    image_rgb picture;
    if (!image_read(e->preview, WHITE, &picture, err)) return error_prefix(err, "--preview");
    image_free(&picture);
    return true;
}

/* ---- editing ---- */

/* `format` is what safetensors' readers for PyTorch ask for. */
static void strip(labels *l) {
    static const char *const kept[] = {
        "ss_v2",           "ss_base_model_version",    "ss_network_module",      "ss_network_dim", "ss_network_alpha",
        "ss_network_args", "modelspec.sai_model_spec", "modelspec.architecture", "format"};
    for (size_t i = 0; i < l->count;) {
        bool keep = false;
        for (size_t k = 0; k < sizeof kept / sizeof *kept; k++) keep = keep || strcmp(l->pairs[i].key, kept[k]) == 0;
        if (keep) {
            i++;
            continue;
        }
        char *key = memory_string(l->pairs[i].key);
        labels_set(l, key, NULL); /* the last pair comes here */
        free(key);
    }
}

static const char *or_none(const char *text) { return *text ? text : NULL; }

/* A file that uses ModelSpec's names says which edition it follows and what it is. */
static void complete_modelspec(labels *l) {
    bool used = false;
    for (size_t i = 0; i < l->count; i++) used = used || strncmp(l->pairs[i].key, "modelspec.", 10) == 0;
    if (!used) return;
    if (!labels_get(l, "modelspec.sai_model_spec")) labels_set(l, "modelspec.sai_model_spec", "1.0.1");
    if (!labels_get(l, "modelspec.architecture")) labels_set(l, "modelspec.architecture", "stable-diffusion-v1/lora");
}

static void set_pair(labels *l, const char *text) {
    const char *equals = strchr(text, '=');
    char *key = memory_format("%.*s", (int)(equals - text), text);
    labels_set(l, key, or_none(equals + 1));
    free(key);
}

bool metadata_edit(labels *l, const metadata_edits *e, error *err) {
    edit rows[EDITS];
    if (e->strip) strip(l);
    list_edits(e, rows);
    for (int i = 0; i < EDITS; i++)
        if (rows[i].text) labels_set(l, rows[i].key, or_none(rows[i].text));
    if (e->preview && *e->preview) {
        char *url = metadata_thumbnail(e->preview, err);
        if (!url) return error_prefix(err, "--preview");
        labels_set(l, "modelspec.thumbnail", url);
        free(url);
    } else if (e->preview) {
        labels_set(l, "modelspec.thumbnail", NULL);
    }
    complete_modelspec(l);
    for (int i = 0; i < e->set_count; i++) set_pair(l, e->set[i]);
    return true;
}

/* ---- webui's side files (formats.md 5.4) ---- */

/* "dir/me.safetensors" and ".json" make "dir/me.json". */
static char *beside(const char *path, const char *ending) {
    static const char own[] = ".safetensors";
    size_t n = strlen(path), m = sizeof own - 1;
    if (n > m && strcmp(path + n - m, own) == 0) n -= m;
    return memory_format("%.*s%s", (int)n, path, ending);
}

/* What the user has written there before, if it can be read. */
static json_t *read_side_file(const char *path) {
    size_t size;
    error ignored;
    char *text = file_exists(path) ? file_read_text(path, SIDE_FILE_BYTES, &size, &ignored) : NULL;
    json_t *value = text ? json_loadb(text, size, 0, NULL) : NULL;
    free(text);
    if (json_is_object(value)) return value;
    json_decref(value);
    return json_object();
}

static bool set_text(json_t *object, const char *key, const char *text, error *err) {
    if (json_object_set_new(object, key, json_string(text)) == 0) return true;
    return error_set(err, "the text for \"%s\" is not valid UTF-8", key);
}

/* The edit's text, else the metadata's, else an empty one where nothing is yet. */
static bool fill_side_file(json_t *object, const labels *l, const metadata_edits *e, error *err) {
    edit rows[EDITS];
    list_edits(e, rows);
    for (int i = 0; i < EDITS; i++) {
        if (!rows[i].side) continue;
        const char *stated = labels_get(l, rows[i].key), *text = rows[i].text;
        bool there = json_object_get(object, rows[i].side) != NULL;
        if (!text && stated && strcmp(stated, "None") != 0 && !there) text = stated;
        if ((text || !there) && !set_text(object, rows[i].side, text ? text : "", err)) return false;
    }
    if (!set_text(object, "sd version", "SD1", err)) return false;
    bool there = json_object_get(object, "negative text") != NULL;
    if ((e->negative || !there) && !set_text(object, "negative text", e->negative ? e->negative : "", err)) return false;
    if (e->preferred_weight != 0 || !json_object_get(object, "preferred weight"))
        json_object_set_new(object, "preferred weight", json_real(e->preferred_weight));
    return true;
}

/* A PNG as it is, anything else as a PNG. */
static bool write_preview(const char *picture, const char *path, error *err) {
    file_map map;
    image_info info;
    image_rgb rgb = {0};
    if (!file_map_open(&map, picture, err)) return false;
    bool ok = image_probe(map.data, map.size, picture, &info, err);
    if (ok && info.format == IMAGE_PNG)
        ok = file_write_all(path, map.data, map.size, err);
    else
        ok = ok && image_decode(map.data, map.size, picture, WHITE, &rgb, err) &&
             png_write(path, rgb.pixels, rgb.width, rgb.height, 3, NULL, 0, err);
    image_free(&rgb);
    file_map_close(&map);
    return ok;
}

bool metadata_side_files(const char *path, const labels *l, const metadata_edits *e, error *err) {
    if (!e->side_files) return true;
    char *json_path = beside(path, ".json"), *preview_path = beside(path, ".preview.png");
    json_t *object = read_side_file(json_path);
    bool ok = fill_side_file(object, l, e, err);
    char *text = ok ? json_dumps(object, JSON_INDENT(4) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6)) : NULL;
    ok = text && file_write_all(json_path, text, strlen(text), err);
    if (e->preview && *e->preview) ok = ok && write_preview(e->preview, preview_path, err);
    free(text);
    json_decref(object);
    free(preview_path);
    free(json_path);
    return ok;
}
