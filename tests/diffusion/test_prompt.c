#include "diffusion/prompt.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- adapters in the prompt --- */

static void test_loras(void **state) {
    (void)state;
    static const struct {
        const char *prompt, *text, *name;
        float te, unet;
        const char *blocks;
    } cases[] = {
        {"a cat <lora:me:0.8> sleeping", "a cat  sleeping", "me", 0.8f, 0.8f, NULL},
        {"<lora:me>", "", "me", 1, 1, NULL},
        {"<lora:my style v2:0.5:0.25>", "", "my style v2", 0.5f, 0.25f, NULL},
        {"<lora:me:te=0.3:unet=-1>x", "x", "me", 0.3f, -1, NULL},
        {"<lora:me:unet=0.4>", "", "me", 1, 0.4f, NULL},
        {"<lora:me:0.7:unet=0.4>", "", "me", 0.7f, 0.4f, NULL},
        {"<lyco:me: 2 >", "", "me", 2, 2, NULL},
        {"(<lora:me:1.5>:1.2)", "(:1.2)", "me", 1.5f, 1.5f, NULL},
        {"<lora:me:0.8:lbw=OUTALL>", "", "me", 0.8f, 0.8f, "OUTALL"},
        {"<lora:me:0.5:lbw=0, 1:unet=1:lbw=1,0>", "", "me", 0.5f, 1, "1,0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        prompt_plan plan;
        error err;
        assert_true(prompt_parse(&plan, cases[i].prompt, 20, false, &err));
        assert_int_equal(plan.lora_count, 1);
        assert_string_equal(plan.loras[0].name, cases[i].name);
        assert_true(plan.loras[0].te_weight == cases[i].te && plan.loras[0].unet_weight == cases[i].unet);
        assert_true(!plan.loras[0].blocks == !cases[i].blocks);
        if (cases[i].blocks) assert_string_equal(plan.loras[0].blocks, cases[i].blocks);
        assert_int_equal(plan.stage_count, 1);
        assert_string_equal(plan.stages[0].text, cases[i].text);
        prompt_free(&plan);
    }
}

/* What is no tag is text, to the letter. */
static void test_angle_brackets_as_text(void **state) {
    (void)state;
    static const char *const texts[] = {"a < b", "<3",        "<lora>",  "<lora:",  "<lora:>", "<lora:x",
                                        "<:x>",  "<foo:bar>", "<a b:c>", "x <lora", "<",       "<<>>"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        prompt_plan plan;
        error err;
        assert_true(prompt_parse(&plan, texts[i], 20, false, &err));
        assert_int_equal(plan.lora_count, 0);
        assert_string_equal(plan.stages[0].text, texts[i]);
        prompt_free(&plan);
    }
    prompt_plan two;
    error err;
    assert_true(prompt_parse(&two, "<lora:a:1><lora:b:2> x <lora:a:3>", 20, false, &err));
    assert_int_equal(two.lora_count, 3);
    assert_string_equal(two.loras[2].name, "a");
    assert_string_equal(two.stages[0].text, " x ");
    prompt_free(&two);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *prompt, *named;
        bool negative;
    } cases[] = {
        {"<lora:me:strong>", "strong", false},
        {"<lora::1>", "names no adapter", false},
        {"<lora:me:1:2:3>", "'3'", false},
        {"<lora:me:dyn=4>", "dyn=4", false},
        {"<lora:me:lbwe=XYZ>", "lbwe=XYZ", false},
        {"<lora:me:1e99>", "1e99", false},
        {"<lora:me:>", "is not a weight", false},
        {"<lora:me:nan>", "nan", false},
        {"<hypernet:x:1>", "hypernet", false},
        {"a cat AND a dog", "AND", false},
        {"AND", "AND", false},
        {"bad <lora:me:1>", "<lora:me:1>", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        prompt_plan plan;
        error err;
        assert_false(prompt_parse(&plan, cases[i].prompt, 20, cases[i].negative, &err));
        assert_non_null(strstr(err.text, cases[i].named));
    }
    prompt_plan plan;
    error err;
    static const char *const fine[] = {"SAND", "ANDY", "_AND_", "and", "RAND AND"};
    for (size_t i = 0; i < 4; i++) {
        assert_true(prompt_parse(&plan, fine[i], 20, false, &err));
        prompt_free(&plan);
    }
    assert_false(prompt_parse(&plan, fine[4], 20, false, &err));
    assert_true(prompt_parse(&plan, "salt AND pepper", 20, true, &err));
    prompt_free(&plan);
}

/* --- prompts that change --- */

/* "end text|end text|..." */
static void describe_stages(const prompt_plan *plan, char *out, size_t size) {
    size_t length = 0;
    out[0] = 0;
    for (int i = 0; i < plan->stage_count; i++)
        length += (size_t)snprintf(out + length, size - length, "%s%d %s", i ? "|" : "", plan->stages[i].last_step, plan->stages[i].text);
}

/* The examples in webui's own documentation, with 10 steps; equal neighbours are one stage here. */
static void test_stages(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"test", "10 test"},
        {"a [b:3]", "3 a |10 a b"},
        {"a [b: 3]", "3 a |10 a b"},
        {"a [b: 3 ]", "3 a |10 a b"},
        {"a [[[b]]:2]", "2 a |10 a [[b]]"},
        {"[(a:2):3]", "3 |10 (a:2)"},
        {"a [b : c : 1] d", "1 a b  d|10 a  c  d"},
        {"a[b:[c:d:2]:1]e", "1 abe|2 ace|10 ade"},
        {"a [unbalanced", "10 a [unbalanced"},
        {"a [b:.5] c", "5 a  c|10 a b c"},
        {"a [{b|d{:.5] c", "5 a  c|10 a {b|d{ c"},
        {"((a][:b:c [d:3]", "3 ((a][:b:c |10 ((a][:b:c d"},
        {"[a|(b:1.1)]", "1 a|2 (b:1.1)|3 a|4 (b:1.1)|5 a|6 (b:1.1)|7 a|8 (b:1.1)|9 a|10 (b:1.1)"},
        {"[fe|]male", "1 female|2 male|3 female|4 male|5 female|6 male|7 female|8 male|9 female|10 male"},
        {"[fe|||]male", "1 female|4 male|5 female|8 male|9 female|10 male"},
        {"[a::4]", "4 a|10 "},
        {"[a:b:0]", "10 b"},
        {"[a:b:-3]", "10 b"},
        {"[a:b:99]", "10 a"},
        {"[a:b:1.0]", "10 a"},
        {"[a:b:0.04]", "10 b"},
        {"(x [a:b:0.5]:1.2)", "5 (x a:1.2)|10 (x b:1.2)"},
        {"\\[a:b:0.5\\]", "10 \\[a:b:0.5\\]"},
        {"[a\\:b:c:0.5]", "5 a\\:b|10 c"},
        {"[a (b:c:0.5]", "10 [a (b:c:0.5]"},
        {"[a) b:c:0.5]", "10 [a) b:c:0.5]"},
        {"[a:b:c:0.5]", "10 [a:b:c:0.5]"},
        {"[a:b]", "10 [a:b]"},
        {"[:]", "10 [:]"},
        {"[]", "10 []"},
        {"", "10 "},
        {"[[a|b]:c:4]", "1 a|2 b|3 a|4 b|10 c"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        prompt_plan plan;
        error err;
        char text[512];
        assert_true(prompt_parse(&plan, cases[i][0], 10, false, &err));
        describe_stages(&plan, text, sizeof text);
        assert_string_equal(text, cases[i][1]);
        prompt_free(&plan);
    }
}

static void test_stage_at(void **state) {
    (void)state;
    prompt_plan plan;
    error err;
    assert_true(prompt_parse(&plan, "[a:b:0.5]", 10, false, &err));
    for (int i = 0; i < 10; i++) assert_string_equal(plan.stages[prompt_stage_at(&plan, i)].text, i <= 5 ? "a" : "b");
    assert_string_equal(plan.stages[prompt_stage_at(&plan, 100)].text, "b");
    prompt_free(&plan);
}

static void test_hostile_prompts(void **state) {
    (void)state;
    enum { SIZE = 16000 };
    static const char *const units[] = {"[",   "(",  "]",  ")",      "[a:",       ":1]", "\\",    "<",
                                        "[a|", "([", "])", "<lora:", "[a:b:0.5]", "|",   "BREAK "};
    char *text = malloc(SIZE + 1);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t length = strlen(units[u]), n = 0;
        for (; n + length <= SIZE; n += length) memcpy(text + n, units[u], length);
        text[n] = 0;
        prompt_plan plan;
        prompt_fragments fragments;
        error err;
        assert_true(prompt_parse(&plan, text, 20, false, &err));
        prompt_free(&plan);
        if (prompt_fragments_parse(&fragments, text, &err)) prompt_fragments_free(&fragments);
    }
    /* 100 edits, each in the one before */
    text[0] = 0;
    for (int i = 0; i < 100; i++) strcat(text, "[a:");
    for (int i = 0; i < 100; i++) strcat(text, ":1]");
    prompt_plan plan;
    error err;
    assert_false(prompt_parse(&plan, text, 20, false, &err));
    assert_non_null(strstr(err.text, "nested"));
    free(text);
}

/* --- weights --- */

/* "text*weight|text*weight|..." */
static void describe_fragments(const prompt_fragments *fragments, char *out, size_t size) {
    size_t length = 0;
    out[0] = 0;
    for (int i = 0; i < fragments->count; i++) {
        const prompt_fragment *f = &fragments->items[i];
        if (f->is_break)
            length += (size_t)snprintf(out + length, size - length, "%sBREAK", i ? "|" : "");
        else
            length += (size_t)snprintf(out + length, size - length, "%s%s*%.5g", i ? "|" : "", f->text, (double)f->weight);
    }
}

/* The first nine are the examples in webui's documentation. */
static void test_weights(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"normal text", "normal text*1"},
        {"an (important) word", "an *1|important*1.1| word*1"},
        {"(unbalanced", "unbalanced*1.1"},
        {"\\(literal\\]", "(literal]*1"},
        {"(unnecessary)(parens)", "unnecessaryparens*1.1"},
        {"a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
         "a *1|house*1.573| *1.1|on*1| a *1.1|hill*0.55|, sun, *1.1|sky*1.4641|.*1.1"},
        {"[blurry]", "blurry*0.90909"},
        {"((a))", "a*1.21"},
        {"(a:1.3)", "a*1.3"},
        {"(a: 1.3 )", "a*1.3"},
        {"(a:-.5)", "a*-0.5"},
        {"(a:2.)", "a*2"},
        {"[[a]", "a*0.82645"},
        {"a:1.3)", "a:1.3)*1"},
        {"(a:b)", "a:b*1.1"},
        {"(a:1.3", "a:1.3*1.1"},
        {"[a:1.3]", "a:1.3*0.90909"},
        {"([a)]", "a*1"},
        {"time: 10:30", "time: 10:30*1"},
        {"a\\b\\\\c", "ab\\c*1"},
        {"tail\\", "tail*1"},
        {"", "*1"},
        {"()", "*1"},
        {"a BREAK b", "a*1|BREAK|b*1"},
        {"(a BREAK b:1.2) c", "a*1.2|BREAK|b*1.2| c*1"},
        {"a BREAKFAST", "a BREAKFAST*1"},
        {"a\nBREAK\n\nb", "a*1|BREAK|b*1"},
        {"BREAK", "*1|BREAK|*1"},
        {"BREAKBREAK BREAK", "BREAKBREAK*1|BREAK|*1"},
        {"caf\xc3\xa9 (\xe7\x8c\xab:1.5)", "caf\xc3\xa9 *1|\xe7\x8c\xab*1.5"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        prompt_fragments fragments;
        error err;
        char text[512];
        assert_true(prompt_fragments_parse(&fragments, cases[i][0], &err));
        describe_fragments(&fragments, text, sizeof text);
        assert_string_equal(text, cases[i][1]);
        prompt_fragments_free(&fragments);
    }
    prompt_fragments fragments;
    error err;
    assert_false(prompt_fragments_parse(&fragments, "(a:1.2.3)", &err));
    assert_non_null(strstr(err.text, "1.2.3"));
    assert_false(prompt_fragments_parse(&fragments, "x (a:.)", &err));
}

static void test_emphasis(void **state) {
    (void)state;
    enum { WIDTH = 5 };
    float hidden[PROMPT_CHUNK * WIDTH], before[PROMPT_CHUNK * WIDTH], weights[PROMPT_CHUNK];
    double mean = 0, new_mean = 0;
    for (int i = 0; i < PROMPT_CHUNK * WIDTH; i++) before[i] = hidden[i] = sinf((float)i) + 0.2f;
    for (int t = 0; t < PROMPT_CHUNK; t++) weights[t] = 1;
    prompt_emphasize(hidden, weights, WIDTH);
    assert_memory_equal(hidden, before, sizeof hidden);
    weights[3] = 1.5f;
    weights[4] = 0.5f;
    prompt_emphasize(hidden, weights, WIDTH);
    for (int i = 0; i < PROMPT_CHUNK * WIDTH; i++) {
        mean += (double)before[i];
        new_mean += (double)hidden[i];
    }
    assert_true(fabs(mean - new_mean) < 1e-3);
    /* rows keep their proportions, weighted */
    assert_true(fabsf(hidden[3 * WIDTH + 2] / before[3 * WIDTH + 2] / (hidden[0] / before[0]) - 1.5f) < 1e-4f);
    assert_true(fabsf(hidden[4 * WIDTH + 1] / before[4 * WIDTH + 1] / (hidden[0] / before[0]) - 0.5f) < 1e-4f);
    for (int t = 0; t < PROMPT_CHUNK; t++) weights[t] = 0;
    prompt_emphasize(hidden, weights, WIDTH);
    for (int i = 0; i < PROMPT_CHUNK * WIDTH; i++) assert_true(hidden[i] == 0);
}

/* --- chunks --- */

enum { START = 9001, END = 9002, COMMA = 267 };

/* One token a character; the comma has CLIP's id; spaces are none; # stands for a character that makes three tokens. */
static size_t encode(void *user, const char *text, int32_t *ids, size_t capacity) {
    size_t count = 0;
    ++*(int *)user;
    for (; *text; text++) {
        if (*text == ' ') continue;
        for (int repeat = *text == '#' ? 3 : 1; repeat; repeat--, count++) {
            if (count < capacity) ids[count] = *text == ',' ? COMMA : *text;
        }
    }
    return count;
}

static int encode_calls;
static const prompt_tokenizer tokenizer = {.encode = encode, .user = &encode_calls, .start_id = START, .end_id = END};

static void build(prompt_chunks *chunks, const char *text) {
    prompt_fragments fragments;
    error err;
    assert_true(prompt_fragments_parse(&fragments, text, &err));
    prompt_chunks_build(chunks, &fragments, &tokenizer);
    prompt_fragments_free(&fragments);
}

/* Checks a chunk: start, the characters of `text`, end to the end. */
static void check_chunk(const prompt_chunks *chunks, int index, const char *text) {
    const int32_t *ids = chunks->ids + (ptrdiff_t)index * PROMPT_CHUNK;
    size_t length = strlen(text);
    assert_true(index < chunks->count && length <= PROMPT_CHUNK_TEXT);
    assert_int_equal(ids[0], START);
    for (size_t i = 0; i < length; i++) assert_int_equal(ids[1 + i], text[i] == ',' ? COMMA : text[i]);
    for (size_t i = length + 1; i < PROMPT_CHUNK; i++) assert_int_equal(ids[i], END);
}

static char *repeat(char c, size_t n, const char *tail) {
    char *text = malloc(n + strlen(tail) + 1);
    memset(text, c, n);
    strcpy(text + n, tail);
    return text;
}

static void test_chunks_short(void **state) {
    (void)state;
    prompt_chunks chunks;
    build(&chunks, "");
    assert_int_equal(chunks.count, 1);
    check_chunk(&chunks, 0, "");
    assert_int_equal(chunks.tokens, 0);
    prompt_chunks_free(&chunks);

    build(&chunks, "ab(c d:1.5)e");
    check_chunk(&chunks, 0, "abcde");
    assert_int_equal(chunks.tokens, 5);
    static const float expected[8] = {1, 1, 1, 1.5f, 1.5f, 1, 1, 1};
    for (int i = 0; i < 8; i++) assert_true(chunks.weights[i] == expected[i]);
    prompt_chunks_free(&chunks);

    build(&chunks, "####"); /* more tokens than bytes */
    check_chunk(&chunks, 0, "############");
    prompt_chunks_free(&chunks);
}

static void test_chunks_break(void **state) {
    (void)state;
    prompt_chunks chunks;
    build(&chunks, "ab BREAK cd");
    assert_int_equal(chunks.count, 2);
    check_chunk(&chunks, 0, "ab");
    check_chunk(&chunks, 1, "cd");
    prompt_chunks_free(&chunks);
    build(&chunks, "ab BREAK");
    assert_int_equal(chunks.count, 1);
    prompt_chunks_free(&chunks);
    build(&chunks, "BREAK BREAK x");
    assert_int_equal(chunks.count, 3);
    check_chunk(&chunks, 1, "");
    check_chunk(&chunks, 2, "x");
    prompt_chunks_free(&chunks);
}

static void check_split(size_t before, const char *tail, size_t first) {
    prompt_chunks chunks;
    char *text = repeat('x', before, tail), *head = strdup(text);
    build(&chunks, text);
    head[first] = 0;
    check_chunk(&chunks, 0, head);
    assert_int_equal(chunks.count, text[first] ? 2 : 1);
    if (text[first]) check_chunk(&chunks, 1, text + first);
    assert_int_equal(chunks.tokens, strlen(text));
    prompt_chunks_free(&chunks);
    free(text);
    free(head);
}

/* Where a full chunk is cut: behind the last comma if that is the 56th token or later. */
static void test_chunks_commas(void **state) {
    (void)state;
    check_split(75, "", 75);
    check_split(75, "y", 75);
    check_split(75, ",y", 75);
    check_split(74, ",y", 75);
    check_split(70, ",yyyyy", 71);
    check_split(60, ",yyyyy,yyyyyyyyyyy", 67);
    check_split(55, ",yyyyyyyyyyyyyyyyyyyyyyyy", 56);
    check_split(54, ",yyyyyyyyyyyyyyyyyyyyyyyyy", 75);
    check_split(70, ",yyyy", 75);
    check_split(70, ",yyyy,", 75); /* a comma does not move what stands before it */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loras),         cmocka_unit_test(test_angle_brackets_as_text),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_stages),
        cmocka_unit_test(test_stage_at),      cmocka_unit_test(test_hostile_prompts),
        cmocka_unit_test(test_weights),       cmocka_unit_test(test_emphasis),
        cmocka_unit_test(test_chunks_short),  cmocka_unit_test(test_chunks_break),
        cmocka_unit_test(test_chunks_commas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
