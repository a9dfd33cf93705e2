/* The option table itself, and what parsing makes of command lines. */
#include "cli/nearest.h"
#include "cli/options.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ARGUMENTS = 24 };

/* Parses a command line given as one text, arguments separated by '|', the first of them the command. The copy stays for the strings in o.
 */
typedef struct line {
    char text[1024];
    char *argv[MOST_ARGUMENTS];
    options o;
    error err;
    bool ok;
} line;

static void parse(line *l, const char *text) {
    int argc = 0;
    memset(l, 0, sizeof *l);
    assert_true(strlen(text) < sizeof l->text);
    strcpy(l->text, text);
    for (char *p = l->text; p && argc < MOST_ARGUMENTS; argc++) {
        l->argv[argc] = p;
        p = strchr(p, '|');
        if (p) *p++ = 0;
    }
    const command *c = command_find(l->argv[0]);
    assert_non_null(c);
    l->ok = options_parse(&l->o, c, argc - 1, l->argv + 1, &l->err);
}

static void expect_refused(const char *text, const char *message) {
    line l;
    parse(&l, text);
    if (l.ok) fail_msg("accepted: %s", text);
    if (!strstr(l.err.text, message)) fail_msg("%s: says '%s', not '%s'", text, l.err.text, message);
    options_free(&l.o);
}

static void every_row_is_sound(void **state) {
    (void)state;
    for (const option *row = option_table; row->name; row++) {
        assert_true(row - option_table < (ptrdiff_t)sizeof((options){0}.given) / (ptrdiff_t)sizeof(char *));
        assert_non_null(row->help);
        assert_true(row->commands);
        if (row->type != OPTION_NOTED && row->type != OPTION_REFUSED) assert_non_null(row->group);
        if (row->type == OPTION_INT || row->type == OPTION_REAL || row->type == OPTION_SIZE) assert_true(row->low < row->high);
        if (row->type != OPTION_SWITCH && row->type != OPTION_NOTED && row->type != OPTION_REFUSED) assert_non_null(row->value);
        assert_true((row->type == OPTION_CHOICE) == (row->choices || row->choice_at));
        assert_null(strchr(row->name, '_'));
        /* A name leads to one row only within a command. */
        for (unsigned bit = 1; bit < COMMAND_ALL; bit <<= 1)
            if (row->commands & bit) assert_ptr_equal(option_find(row->name, bit), row);
    }
}

static void every_default_is_a_valid_value(void **state) {
    (void)state;
    for (const option *row = option_table; row->name; row++) {
        if (!row->fallback || row->type == OPTION_SWITCH) continue;
        for (const command *c = command_table; c->name; c++) {
            if (!(row->commands & c->bit)) continue;
            char text[256];
            line l;
            snprintf(text, sizeof text, "%s|--%s=%s%s", c->name, row->name, row->fallback, c->words_least ? "|word" : "");
            parse(&l, text);
            if (!l.ok) fail_msg("%s: %s", text, l.err.text);
            options_free(&l.o);
        }
    }
}

static void help_names_every_option(void **state) {
    (void)state;
    for (const command *c = command_table; c->name; c++) {
        char *text = NULL;
        size_t size = 0;
        FILE *out = open_memstream(&text, &size);
        options_print_help(out, c);
        fclose(out);
        for (const option *row = option_table; row->name; row++) {
            char name[64];
            snprintf(name, sizeof name, "--%s", row->name);
            bool listed = (row->commands & c->bit) && row->type != OPTION_NOTED && row->type != OPTION_REFUSED;
            if (listed && !strstr(text, name)) fail_msg("help of %s lacks %s", c->name, name);
        }
        for (char *p = strtok(text, "\n"); p; p = strtok(NULL, "\n")) assert_true(strlen(p) <= 130);
        free(text);
    }
}

static void values_are_read(void **state) {
    (void)state;
    line l;
    parse(&l, "train|--rank|8|--alpha=4.5|--lr|3e-4|--resolution|512x768|--data|photos|--output=a.safetensors|--flip|--no-metadata|--seed|"
              "7|--lr-scheduler|Cosine");
    assert_true(l.ok);
    assert_int_equal(l.o.rank, 8);
    assert_true(l.o.alpha == 4.5 && l.o.lr == 3e-4 && isnan(l.o.unet_lr) && isnan(l.o.conv_alpha));
    assert_int_equal(l.o.resolution.width, 512);
    assert_int_equal(l.o.resolution.height, 768);
    assert_string_equal(l.o.data, "photos");
    assert_string_equal(l.o.output, "a.safetensors");
    assert_string_equal(l.o.scheduler, "cosine");
    assert_int_equal(l.o.flip, 1);
    assert_int_equal(l.o.metadata, 0);
    assert_int_equal(l.o.checkpointing, -1);
    assert_int_equal(l.o.seed, 7);
    assert_true(options_given(&l.o, "rank") && options_given(&l.o, "network_dim") && !options_given(&l.o, "steps"));
    options_free(&l.o);
}

static void sd_scripts_command_line(void **state) {
    (void)state;
    line l;
    parse(&l, "train_network|--pretrained_model_name_or_path=m.safetensors|--train_data_dir=img|--output_dir=out|--output_name=me|--"
              "resolution=512,512|--network_dim=32|--network_alpha=16|"
              "--learning_rate=1e-4|--max_train_steps=1600|--train_batch_size=2|--xformers|--mixed_precision=fp16|--cache_latents|--max_"
              "data_loader_n_workers|2|--optimizer_type=AdamW8bit|"
              "--save_precision=float|--enable_bucket|--gradient_checkpointing");
    assert_true(l.ok);
    assert_string_equal(l.o.model, "m.safetensors");
    assert_string_equal(l.o.data, "img");
    assert_int_equal(l.o.rank, 32);
    assert_true(l.o.alpha == 16 && l.o.lr == 1e-4);
    assert_int_equal(l.o.steps, 1600);
    assert_int_equal(l.o.batch_size, 2);
    assert_int_equal(l.o.resolution.width, 512);
    assert_int_equal(l.o.resolution.height, 512);
    assert_int_equal(l.o.noted.count, 4);
    assert_int_equal(l.o.checkpointing, 1);
    assert_string_equal(l.o.optimizer, "adamw");
    assert_string_equal(l.o.save_precision, "fp32");
    options_free(&l.o);
}

static void lists_words_and_last_wins(void **state) {
    (void)state;
    line l;
    parse(&l, "generate|--lora|a.safetensors:0.8|--cfg|3|--lora=b.safetensors|--cfg=5|--prompt|");
    assert_true(l.ok);
    assert_int_equal(l.o.loras.count, 2);
    assert_string_equal(l.o.loras.item[1], "b.safetensors");
    assert_true(l.o.cfg == 5);
    assert_string_equal(l.o.prompt, "");
    options_free(&l.o);
    parse(&l, "inspect|a|--json|b|--|--c");
    assert_true(l.ok && l.o.json);
    assert_int_equal(l.o.words.count, 3);
    assert_string_equal(l.o.words.item[2], "--c");
    options_free(&l.o);
}

static void samplers_have_webui_spellings(void **state) {
    (void)state;
    static const char *const rows[][3] = {{"dpmpp_2m", "dpmpp-2m", "auto"}, {"DPM++ 2M Karras", "dpmpp-2m", "karras"},
                                          {"DPM++ 2M", "dpmpp-2m", "auto"}, {"Euler a", "euler-a", "auto"},
                                          {"DDIM", "ddim", "auto"},         {"Euler", "euler", "auto"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[128];
        line l;
        snprintf(text, sizeof text, "generate|--sampler|%s", rows[i][0]);
        parse(&l, text);
        assert_true(l.ok);
        assert_string_equal(l.o.sampler, rows[i][1]);
        assert_string_equal(l.o.schedule, rows[i][2]);
        options_free(&l.o);
    }
    line l;
    parse(&l, "generate|--schedule|default|--sampler|DPM++ 2M Karras");
    assert_true(l.ok);
    assert_string_equal(l.o.schedule, "default");
    options_free(&l.o);
}

static void wrong_options_are_refused(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"train|--lern-rate|1", "unknown option --lern-rate; did you mean --lr?"},
        {"train|--leraning_rate=1", "did you mean --lr?"},
        {"train|--rnak|8", "did you mean --rank?"},
        {"train|--network_dimm|8", "did you mean --rank?"},
        {"train|-rank|8", "unknown option -rank; did you mean --rank?"},
        {"train|--qqqqqqqqqqqq", "unknown option --qqqqqqqqqqqq; 'vulora train --help'"},
        {"train|--no-rank", "unknown option"},
        {"generate|--rank|8", "--rank is an option of train, convert, merge, extract and bench, not of generate"},
        {"devices|--model|x",
         "--model is an option of train, generate, grid, inspect, convert, merge, extract, bench and probe, not of devices"},
        {"train|--rank", "--rank needs a value"},
        {"train|--data|--output|x", "--data needs a value"},
        {"train|--rank|12abc", "--rank: '12abc' is not a whole number"},
        {"train|--rank|1.5", "is not a whole number"},
        {"train|--rank|", "is not a whole number"},
        {"train|--rank= 8", "is not a whole number"},
        {"train|--rank|0", "--rank: 0 is out of range; it goes from 1 to 1000000000"},
        {"train|--rank|-3", "out of range"},
        {"train|--rank|99999999999999999999", "out of range"},
        {"train|--lr|nan", "--lr: 'nan' is not a number"},
        {"train|--lr|inf", "is not a number"},
        {"train|--lr|1e999", "out of range"},
        {"train|--lr|0x1p-3", "is not a number"},
        {"train|--lr|-1", "out of range"},
        {"train|--learning_rate|fast", "--learning_rate: 'fast' is not a number"},
        {"train|--resolution|512x", "is not a size"},
        {"train|--resolution|x512", "is not a size"},
        {"train|--resolution|large", "is not a size"},
        {"train|--resolution|512x-8", "is not a size"},
        {"train|--resolution|510", "--resolution: 510 is not a multiple of 8; 504 is"},
        {"train|--resolution|32", "out of range"},
        {"train|--flip=yes", "takes no value; write --flip or --no-flip"},
        {"train|--xformers=1", "takes no value"},
        {"train|--lr-scheduler|cosin", "did you mean cosine?"},
        {"train|--optimizer|prodigy", "unknown value 'prodigy'; known: adamw"},
        {"train|--kind|lokkon", "did you mean locon?"},
        {"train|--network_args|conv_dmi=8", "did you mean conv_dim?"},
        {"train|--optimizer_args|weight_decay=0.1", "give weight_decay as --weight-decay"},
        {"train|--v2", "Stable Diffusion 1.x"},
        {"train|--data|", "--data: is empty"},
        {"train|photos", "'photos' is no option of train"},
        {"generate|--sampler|eular", "did you mean euler?"},
        {"generate|--schedule|kerras", "did you mean karras?"},
        {"generate|--width|100", "is not a multiple of 8"},
        {"generate|--seed|-2", "out of range"},
        {"generate|--steps|1000", "out of range"},
        {"probe|unet|vae", "'vae' is one word too many"},
        {"probe|--steps|3", "probe needs PART"},
        {"inspect", "inspect needs FILE..."},
        {"bench|--part|unit", "did you mean unet?"},
        {"bench|--repeats|0", "out of range"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) expect_refused(rows[i][0], rows[i][1]);
}

static void distances(void **state) {
    (void)state;
    assert_int_equal(nearest_distance("rank", "rank"), 0);
    assert_int_equal(nearest_distance("rnak", "rank"), 1);
    assert_int_equal(nearest_distance("Batch_Size", "batch-size"), 0);
    assert_int_equal(nearest_distance("kitten", "sitting"), 3);
    assert_int_equal(nearest_distance("", "abc"), 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_is_sound),
        cmocka_unit_test(every_default_is_a_valid_value),
        cmocka_unit_test(help_names_every_option),
        cmocka_unit_test(values_are_read),
        cmocka_unit_test(sd_scripts_command_line),
        cmocka_unit_test(lists_words_and_last_wins),
        cmocka_unit_test(samplers_have_webui_spellings),
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(distances),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
