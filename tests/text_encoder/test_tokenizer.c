/* Token ids against transformers' CLIPTokenizer, and tokenizer folders, good and bad. */
#include "base/file.h"
#include "base/memory.h"
#include "text_encoder/tokenizer.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* Every line of a fixture: {"text": ..., "ids": [...]}, ids without start, end and padding. */
static size_t check_file(const tokenizer *tok, const char *path) {
    error err = {{0}};
    char *text = file_read_text(path, 1 << 22, NULL, &err);
    if (!text) fail_msg("%s", err.text);
    size_t checked = 0, bad = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *item = json_loads(line, JSON_ALLOW_NUL, NULL), *prompt = json_object_get(item, "text"),
               *want = json_object_get(item, "ids");
        assert_non_null(item);
        int32_t *ids, padded[TOKENIZER_LENGTH];
        size_t count, lost;
        assert_true(tokenizer_encode(tok, json_string_value(prompt), json_string_length(prompt), &ids, &count, &err));
        bool same = count == json_array_size(want);
        for (size_t i = 0; same && i < count; i++) same = ids[i] == json_integer_value(json_array_get(want, i));
        if (!same) {
            print_message("differs: %s\n", line);
            bad++;
        }
        assert_true(tokenizer_encode_77(tok, json_string_value(prompt), json_string_length(prompt), padded, &lost, &err));
        size_t kept = count < 75 ? count : 75;
        assert_int_equal(padded[0], tokenizer_start(tok));
        assert_memory_equal(padded + 1, ids, kept * sizeof *ids);
        assert_int_equal(padded[1 + kept], tokenizer_end(tok));
        for (size_t i = kept + 2; i < TOKENIZER_LENGTH; i++) assert_int_equal(padded[i], tokenizer_pad(tok));
        assert_int_equal(lost, count - kept);
        free(ids);
        json_decref(item);
        checked++;
    }
    free(text);
    assert_int_equal(bad, 0);
    return checked;
}

static void builtin_is_clip(void **state) {
    (void)state;
    error err;
    tokenizer *tok = tokenizer_open_builtin(&err);
    assert_non_null(tok);
    assert_int_equal(tokenizer_vocabulary(tok), 49408);
    assert_int_equal(tokenizer_start(tok), 49406);
    assert_int_equal(tokenizer_end(tok), 49407);
    assert_int_equal(tokenizer_pad(tok), 49407);
    assert_true(check_file(tok, TEST_DATA "/tokenizer.jsonl") > 400);
    tokenizer_close(tok);
}

static void folders_of_both_sorts(void **state) {
    (void)state;
    static const char *const folders[] = {TEST_DATA "/tokenizer_json", TEST_DATA "/tokenizer_two"};
    for (int i = 0; i < 2; i++) {
        error err = {{0}};
        tokenizer *tok = tokenizer_open_folder(folders[i], &err);
        if (!tok) fail_msg("%s", err.text);
        assert_int_equal(tokenizer_vocabulary(tok), 27);
        assert_int_equal(tokenizer_pad(tok), 2);
        assert_int_equal(check_file(tok, TEST_DATA "/tokenizer_small.jsonl"), 7);
        /* The configuration decides whether a special token may be typed in capitals. */
        int32_t *ids;
        size_t count;
        assert_true(tokenizer_encode(tok, "<|ENDOFTEXT|>", 13, &ids, &count, &err));
        if (i == 1)
            assert_int_equal(count, 1);
        else
            assert_true(count > 1);
        free(ids);
        tokenizer_close(tok);
    }
}

static void bad_utf8_is_named(void **state) {
    (void)state;
    error err;
    tokenizer *tok = tokenizer_open_builtin(&err);
    static const char *const texts[] = {"ok \xff", "\xc3", "a\xe4\xb8", "\xed\xa0\x80", "\xc0\x80", "\xf5\x80\x80\x80"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int32_t *ids;
        size_t count;
        assert_false(tokenizer_encode(tok, texts[i], strlen(texts[i]), &ids, &count, &err));
        assert_non_null(strstr(err.text, "UTF-8"));
        assert_null(ids);
    }
    tokenizer_close(tok);
}

static void long_words_take_no_time(void **state) {
    (void)state;
    error err;
    tokenizer *tok = tokenizer_open_builtin(&err);
    size_t size = 1 << 20, count;
    char *text = memory_new(size, 1);
    for (size_t i = 0; i < size; i++) text[i] = (char)('a' + (i * i) % 26);
    int32_t *ids;
    assert_true(tokenizer_encode(tok, text, size, &ids, &count, &err));
    assert_true(count > 1000);
    free(ids);
    free(text);
    tokenizer_close(tok);
}

/* A folder made of the given files must be refused with a message that has `words` in it. */
typedef struct bad_folder {
    const char *tokenizer_json, *vocab, *merges, *config, *words, *added;
} bad_folder;

static void write_if(const char *folder, const char *name, const char *text) {
    char *path = memory_format("%s/%s", folder, name);
    unlink(path);
    error err;
    if (text) assert_true(file_write_all(path, text, strlen(text), &err));
    free(path);
}

static void bad_folders_are_refused(void **state) {
    (void)state;
    static const bad_folder cases[] = {
        {NULL, NULL, NULL, NULL, "neither tokenizer.json nor vocab.json", NULL},
        {NULL, "{}", NULL, NULL, "neither tokenizer.json nor vocab.json", NULL},
        {"", NULL, NULL, NULL, "tokenizer.json: is not valid JSON", NULL},
        {"[]", NULL, NULL, NULL, "must hold a JSON object", NULL},
        {"{}", NULL, NULL, NULL, "CLIP's BPE", NULL},
        {"{\"model\":{\"type\":\"Unigram\"}}", NULL, NULL, NULL, "Unigram", NULL},
        {"{\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\"}}", NULL, NULL, NULL, "model.vocab", NULL},
        {"{\"model\":{\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0}}}", NULL, NULL, NULL, "model.merges", NULL},
        {"{\"model\":{\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":0},\"merges\":[7]}}", NULL, NULL, NULL, "merge 1", NULL},
        {"{\"model\":{\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":-1},\"merges\":[]}}", NULL, NULL, NULL, "\"a\" has no valid id",
         NULL},
        {"{\"model\":{\"end_of_word_suffix\":\"</w>\",\"vocab\":{\"a\":99999999999},\"merges\":[]}}", NULL, NULL, NULL, "no valid id",
         NULL},
        {NULL, "{\"a\":\"x\"}", "", NULL, "vocab.json: token \"a\" has no valid id", NULL},
        {NULL, "{\"a\":0", "", NULL, "vocab.json: is not valid JSON", NULL},
        {NULL, "{\"a\":0}", "#version: 0.2\na b\n", NULL, "merges.txt: merge 1, \"a b\"", NULL},
        {NULL, "{\"a\":0}", "ab\n", NULL, "not two tokens", NULL},
        {NULL, "{\"a\":0}", "", NULL, "lacks the bos_token", NULL},
        {NULL, "{\"a\":0,\"<|startoftext|>\":1,\"<|endoftext|>\":2}", "", "{\"pad_token\":\"[PAD]\"}", "pad_token \"[PAD]\"", NULL},
        {NULL, "{\"a\":0,\"<|startoftext|>\":1,\"<|endoftext|>\":2}", "", "{", "tokenizer_config.json: is not valid JSON", NULL},
        {NULL, "{\"a\":0,\"<|startoftext|>\":1,\"<|endoftext|>\":2}", "", NULL, "added_tokens.json: is not valid JSON", "{\"b\""},
        {NULL, "{\"a\":0,\"<|startoftext|>\":1,\"<|endoftext|>\":2}", "", NULL, "added_tokens.json: token \"b\"", "{\"b\":null}"},
    };
    char folder[] = "tokenizer-XXXXXX";
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_if(folder, "tokenizer.json", cases[i].tokenizer_json);
        write_if(folder, "vocab.json", cases[i].vocab);
        write_if(folder, "merges.txt", cases[i].merges);
        write_if(folder, "tokenizer_config.json", cases[i].config);
        write_if(folder, "added_tokens.json", cases[i].added);
        error err = {{0}};
        assert_null(tokenizer_open_folder(folder, &err));
        if (!strstr(err.text, cases[i].words)) fail_msg("case %zu: %s", i, err.text);
        assert_non_null(strstr(err.text, folder));
    }
    write_if(folder, "tokenizer.json", NULL);
    write_if(folder, "vocab.json", NULL);
    write_if(folder, "merges.txt", NULL);
    write_if(folder, "tokenizer_config.json", NULL);
    write_if(folder, "added_tokens.json", NULL);
    rmdir(folder);
    error err;
    assert_null(tokenizer_open_folder("no/such/folder", &err));
    assert_non_null(strstr(err.text, "no/such/folder"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(builtin_is_clip),         cmocka_unit_test(folders_of_both_sorts),   cmocka_unit_test(bad_utf8_is_named),
        cmocka_unit_test(long_words_take_no_time), cmocka_unit_test(bad_folders_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
