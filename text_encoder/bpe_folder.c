/* A tokenizer folder as transformers writes it: tokenizer.json (version 5, or the fast tokenizers of version 4), or vocab.json and
   merges.txt; beside them tokenizer_config.json and added_tokens.json. */
#include "base/file.h"
#include "base/memory.h"
#include "text_encoder/bpe_table.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_LIMIT ((size_t)64 << 20)
#define ID_LIMIT (1 << 24)

/* `flags`: jansson's. */
static json_t *read_json(const char *folder, const char *name, bool needed, size_t flags, error *err) {
    char *path = memory_format("%s/%s", folder, name);
    json_t *value = NULL;
    if (file_exists(path) || needed) {
        size_t size = 0;
        char *text = file_read_text(path, TEXT_LIMIT, &size, err);
        json_error_t problem;
        if (text) {
            value = json_loadb(text, size, flags, &problem);
            if (!value)
                error_set(err, "%s: is not valid JSON: line %d: %s", path, problem.line, problem.text);
            else if (!json_is_object(value)) {
                error_set(err, "%s: must hold a JSON object", path);
                json_decref(value);
                value = NULL;
            }
        }
        free(text);
    }
    free(path);
    return value;
}

static bool has_file(const char *folder, const char *name) {
    char *path = memory_format("%s/%s", folder, name);
    bool found = file_exists(path) && !file_is_directory(path);
    free(path);
    return found;
}

static bool put_token(bpe_vocabulary *vocabulary, bpe_texts *texts, const char *text, const json_t *id, error *err) {
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= ID_LIMIT)
        return error_set(err, "token \"%s\" has no valid id", text);
    int32_t number = (int32_t)json_integer_value(id);
    if (number >= vocabulary->count) vocabulary->count = number + 1;
    bpe_texts_put(texts, text, strlen(text), number);
    return true;
}

static bool put_vocabulary(bpe_vocabulary *vocabulary, bpe_texts *texts, json_t *entries, error *err) {
    const char *text;
    json_t *id;
    json_object_foreach(entries, text, id) if (!put_token(vocabulary, texts, text, id, err)) return false;
    return true;
}

/* "left right" */
static bool add_pair(bpe_vocabulary *vocabulary, const bpe_texts *texts, const char *line, size_t size, uint32_t rank, error *err) {
    const char *gap = memchr(line, ' ', size);
    if (!gap) return error_set(err, "merge %u, \"%.*s\", is not two tokens with a space between", rank + 1, (int)size, line);
    return bpe_merges_add(vocabulary, texts, line, (size_t)(gap - line), gap + 1, (size_t)(line + size - gap - 1), rank, err);
}

static bool read_merges_text(bpe_vocabulary *vocabulary, const bpe_texts *texts, const char *text, error *err) {
    size_t lines = 1;
    for (const char *c = text; *c; c++) lines += *c == '\n';
    bpe_merges_reserve(vocabulary, lines);
    uint32_t rank = 0;
    while (*text) {
        size_t size = strcspn(text, "\n"), kept = size && text[size - 1] == '\r' ? size - 1 : size;
        if (kept && strncmp(text, "#version", 8) != 0 && !add_pair(vocabulary, texts, text, kept, rank++, err)) return false;
        text += size + (text[size] == '\n');
    }
    return true;
}

static bool read_merges_json(bpe_vocabulary *vocabulary, const bpe_texts *texts, const json_t *merges, error *err) {
    if (!json_is_array(merges)) return error_set(err, "model.merges is missing");
    bpe_merges_reserve(vocabulary, json_array_size(merges));
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const json_t *merge = json_array_get(merges, i);
        const char *left = json_string_value(json_array_get(merge, 0)), *right = json_string_value(json_array_get(merge, 1));
        bool ok = left && right ? bpe_merges_add(vocabulary, texts, left, strlen(left), right, strlen(right), (uint32_t)i, err)
                  : json_is_string(merge)
                      ? add_pair(vocabulary, texts, json_string_value(merge), json_string_length(merge), (uint32_t)i, err)
                      : error_set(err, "merge %zu is neither a text nor a pair of texts", i + 1);
        if (!ok) return false;
    }
    return true;
}

static bool read_tokenizer_json(bpe_vocabulary *vocabulary, bpe_texts *texts, json_t *root, error *err) {
    json_t *model = json_object_get(root, "model");
    const char *type = json_string_value(json_object_get(model, "type"));
    const char *suffix = json_string_value(json_object_get(model, "end_of_word_suffix"));
    if (type && strcmp(type, "BPE") != 0) return error_set(err, "is a %s tokenizer; SD 1.5 needs CLIP's BPE tokenizer", type);
    if (!suffix || strcmp(suffix, "</w>") != 0) return error_set(err, "does not end words with </w>; SD 1.5 needs CLIP's BPE tokenizer");
    if (!json_is_object(json_object_get(model, "vocab"))) return error_set(err, "model.vocab is missing");
    if (!put_vocabulary(vocabulary, texts, json_object_get(model, "vocab"), err)) return false;
    if (!read_merges_json(vocabulary, texts, json_object_get(model, "merges"), err)) return false;
    size_t i;
    json_t *added;
    json_array_foreach(json_object_get(root, "added_tokens"), i, added) {
        const char *text = json_string_value(json_object_get(added, "content"));
        if (!text) return error_set(err, "added token %zu has no content", i + 1);
        if (!put_token(vocabulary, texts, text, json_object_get(added, "id"), err)) return false;
        bpe_special_add(vocabulary, text, bpe_texts_get(texts, text, strlen(text)), json_is_true(json_object_get(added, "normalized")));
    }
    return true;
}

static bool read_two_files(bpe_vocabulary *vocabulary, bpe_texts *texts, const char *folder, error *err) {
    json_t *vocab = read_json(folder, "vocab.json", true, 0, err);
    if (!vocab) return false;
    bool ok = put_vocabulary(vocabulary, texts, vocab, err) || error_prefix(err, "%s/vocab.json", folder);
    json_decref(vocab);
    if (!ok) return false;
    char *path = memory_format("%s/merges.txt", folder), *text = file_read_text(path, TEXT_LIMIT, NULL, err);
    ok = text && (read_merges_text(vocabulary, texts, text, err) || error_prefix(err, "%s", path));
    free(text);
    free(path);
    return ok;
}

/* A special token that the configuration names, as a text or as an object; its id, or `fallback` if the configuration is silent. */
static bool read_special(bpe_vocabulary *vocabulary, const bpe_texts *texts, const json_t *config, const char *key, const char *fallback,
                         int32_t *id, error *err) {
    const json_t *value = json_object_get(config, key);
    const char *text = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    if (!text) text = fallback;
    *id = bpe_texts_get(texts, text, strlen(text));
    if (*id < 0) return error_set(err, "the vocabulary lacks the %s \"%s\"", key, text);
    bool known = false;
    for (size_t i = 0; i < vocabulary->special_count; i++) known = known || strcmp(vocabulary->specials[i].text, text) == 0;
    if (!known) bpe_special_add(vocabulary, text, *id, json_is_true(json_object_get(value, "normalized")));
    return true;
}

static bool read_config(bpe_vocabulary *vocabulary, bpe_texts *texts, const char *folder, error *err) {
    json_t *added = read_json(folder, "added_tokens.json", false, 0, err);
    if (!added && has_file(folder, "added_tokens.json")) return false;
    /* transformers writes "no limit" as an integer of 31 digits. */
    json_t *config = read_json(folder, "tokenizer_config.json", false, JSON_DECODE_INT_AS_REAL, err);
    if (!config && has_file(folder, "tokenizer_config.json")) {
        json_decref(added);
        return false;
    }
    bool ok = !added || put_vocabulary(vocabulary, texts, added, err) || error_prefix(err, "%s/added_tokens.json", folder);
    const char *text;
    json_t *id;
    if (ok) json_object_foreach(added, text, id) bpe_special_add(vocabulary, text, (int32_t)json_integer_value(id), false);
    ok = ok && ((read_special(vocabulary, texts, config, "bos_token", "<|startoftext|>", &vocabulary->start, err) &&
                 read_special(vocabulary, texts, config, "eos_token", "<|endoftext|>", &vocabulary->end, err) &&
                 read_special(vocabulary, texts, config, "unk_token", "<|endoftext|>", &vocabulary->unknown, err) &&
                 read_special(vocabulary, texts, config, "pad_token", "<|endoftext|>", &vocabulary->pad, err)) ||
                error_prefix(err, "%s", folder));
    json_decref(added);
    json_decref(config);
    return ok;
}

bool bpe_vocabulary_folder(bpe_vocabulary *vocabulary, const char *folder, error *err) {
    *vocabulary = (bpe_vocabulary){0};
    if (!file_is_directory(folder)) return error_set(err, "%s: is not a folder; a tokenizer folder is needed", folder);
    bool one = has_file(folder, "tokenizer.json"), two = has_file(folder, "vocab.json") && has_file(folder, "merges.txt");
    if (!one && !two) return error_set(err, "%s: holds neither tokenizer.json nor vocab.json with merges.txt", folder);
    bpe_texts texts = {0};
    bool ok;
    if (two) { /* what SD 1.5 folders have had from the start; tokenizer.json repeats it */
        ok = read_two_files(vocabulary, &texts, folder, err);
    } else {
        json_t *root = read_json(folder, "tokenizer.json", true, 0, err);
        ok = root && (read_tokenizer_json(vocabulary, &texts, root, err) || error_prefix(err, "%s/tokenizer.json", folder));
        json_decref(root);
    }
    ok = ok && read_config(vocabulary, &texts, folder, err);
    if (ok)
        bpe_bytes_fill(vocabulary, &texts);
    else
        bpe_vocabulary_free(vocabulary);
    bpe_texts_free(&texts);
    return ok;
}
