/* Textual inversions that come with an adapter, in prompts: a word whose vectors are those of other tokens says the same as these. */
#include "base/memory.h"
#include "diffusion/prompt.h"
#include "lora/words.h"
#include "pipeline/words.h"
#include "tests/support/folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MODEL TEST_DATA "/model_small"

static device *on;
static pipeline *pipe;
static char *folder;

static const float *embedding(int64_t id) {
    const checkpoint_tensor *t = checkpoint_find(&pipe->model, CHECKPOINT_TEXT_ENCODER, "text_model.embeddings.token_embedding.weight");
    assert_int_equal(t->type, DTYPE_F32);
    return (const float *)t->data + id * pipe->text.width;
}

/* Adds an adapter of one word whose vectors are the embeddings of the text's tokens. */
static void add_word(const char *name, const char *text) {
    safetensors_writer w = {0};
    error err;
    char path[512];
    int32_t *ids = NULL;
    size_t count;
    int64_t width = pipe->text.width;
    assert_true(tokenizer_encode(pipe->tokenizer, text, strlen(text), &ids, &count, &err));
    float *vectors = memory_new(count * (size_t)width, sizeof *vectors);
    for (size_t i = 0; i < count; i++) memcpy(vectors + (int64_t)i * width, embedding(ids[i]), (size_t)width * sizeof *vectors);
    snprintf(path, sizeof path, "%s/word.safetensors", folder);
    assert_true(safetensors_writer_add_f32(&w, name, DTYPE_F32, 2, (int64_t[]){(int64_t)count, width}, vectors, &err));
    if (!safetensors_writer_write(&w, path, &err)) fail_msg("%s", err.text);
    adapter_report report;
    adapter *a = adapter_load(path, pipe->modules, on, false, &report, &err);
    if (!a) fail_msg("%s", err.text);
    assert_int_equal(report.unapplied_count, 0);
    assert_int_equal(a->word_count, 1);
    adapter_stack_add(pipe->adapters, a, 0, 0);
    pipeline_adapters_changed(pipe);
    adapter_report_free(&report);
    safetensors_writer_free(&w);
    free(vectors);
    free(ids);
}

static void take_words(void) {
    while (adapter_stack_count(pipe->adapters)) adapter_stack_remove(pipe->adapters, adapter_stack_at(pipe->adapters, 0));
    pipeline_adapters_changed(pipe);
}

static size_t plain_encode(void *user, const char *text, int32_t *ids, size_t capacity) {
    int32_t *all = NULL;
    size_t count = 0;
    assert_true(tokenizer_encode(user, text, strlen(text), &all, &count, NULL));
    if (all) memcpy(ids, all, (count < capacity ? count : capacity) * sizeof *ids);
    free(all);
    return count;
}

static prompt_chunks chunks_of(const char *text, bool words) {
    prompt_fragments fragments;
    prompt_chunks chunks;
    error err;
    prompt_tokenizer t = {.encode = plain_encode, .user = pipe->tokenizer, .start_id = 0, .end_id = 1};
    if (words) t.encode = pipeline_encode_words, t.user = pipe, t.together = pipeline_word_length;
    assert_true(prompt_fragments_parse(&fragments, text, &err));
    prompt_chunks_build(&chunks, &fragments, &t);
    prompt_fragments_free(&fragments);
    return chunks;
}

static void assert_same(const char *with_words, const char *plain) {
    prompt_chunks a = chunks_of(with_words, true), b = chunks_of(plain, false);
    error err;
    size_t count = (size_t)(PROMPT_CHUNK * pipe->text.width);
    float *x = memory_new(count, sizeof *x), *y = memory_new(count, sizeof *y);
    assert_int_equal(a.count, b.count);
    assert_int_equal(a.tokens, b.tokens);
    assert_memory_equal(a.weights, b.weights, (size_t)(a.count * PROMPT_CHUNK) * sizeof(float));
    for (int i = 0; i < a.count; i++) {
        if (!pipeline_encode_text(pipe, a.ids + i * PROMPT_CHUNK, 1, 1, x, &err)) fail_msg("%s", err.text);
        assert_true(pipeline_encode_text(pipe, b.ids + i * PROMPT_CHUNK, 1, 1, y, &err));
        assert_memory_equal(x, y, count * sizeof *x);
    }
    free(x);
    free(y);
    prompt_chunks_free(&a);
    prompt_chunks_free(&b);
}

static void test_words(void **state) {
    (void)state;
    assert_same("a hg b", "a hg b");
    add_word("bundle_emb.hg.clip_l", "abc de a");
    assert_same("a hg b", "a abc de a b");
    assert_same("a (HG:1.3), hg", "a (abc de a:1.3), abc de a");
    assert_same("a h g b", "a h g b");                  /* other tokens than the word's */
    add_word("bundle_emb.f hg.string_to_param.*", "c"); /* longer, so it counts */
    assert_same("f hg hg", "c abc de a");
    add_word("bundle_emb.hg.string_to_param.*", "e e"); /* the same word, on top */
    assert_same("hg", "e e");
    take_words();
    assert_same("a hg b", "a hg b");
}

/* A word's vectors stay in one chunk. */
static void test_chunks(void **state) {
    (void)state;
    char text[512] = "";
    for (int i = 0; i < 74; i++) strcat(text, "a ");
    strcat(text, "hg b");
    add_word("bundle_emb.hg.clip_l", "abc de");
    prompt_chunks c = chunks_of(text, true);
    assert_int_equal(c.count, 2);
    assert_int_equal(c.tokens, 77);
    assert_int_equal(c.ids[74], 11);
    assert_int_equal(c.ids[75], 1); /* padding: one place was left, which is not enough */
    assert_int_equal(c.ids[PROMPT_CHUNK + 1], pipe->text.vocabulary);
    assert_int_equal(c.ids[PROMPT_CHUNK + 2], pipe->text.vocabulary + 1);
    prompt_chunks_free(&c);
    take_words();
}

static int setup(void **state) {
    (void)state;
    error err;
    folder = folder_make("words");
    on = device_open("cpu", "fp32", 1, &err);
    pipe = on ? pipeline_open(MODEL, NULL, TEST_DATA "/tokenizer_two", on, &err) : NULL;
    return pipe ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    pipeline_close(pipe);
    device_close(on);
    folder_remove(folder);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_words), cmocka_unit_test(test_chunks)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
