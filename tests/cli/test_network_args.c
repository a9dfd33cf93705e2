/* sd-scripts' --network_module and --network_args: what they set, what a line's own options say instead, what is refused. */
#include "cli/options.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

enum { MOST_ARGUMENTS = 48 };

typedef struct line {
    char text[1024];
    char *argv[MOST_ARGUMENTS];
    options o;
    error err;
    bool ok;
} line;

/* `train` with these arguments, separated by '|'. The copy stays for the strings in o. */
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
    l->ok = options_parse(&l->o, command_find("train"), argc, l->argv, &l->err);
}

/* What options of a line say as texts: the value typed, or standing for it. */
typedef struct meaning {
    const char *line;
    const char *options[8][2]; /* name, text; NULL: not given */
    const char *remark;        /* a part of one; NULL: none is looked for */
} meaning;

static bool remarked(const options *o, const char *part) {
    for (int i = 0; i < o->remarks.count; i++)
        if (strstr(o->remarks.item[i], part)) return true;
    return false;
}

static void expect(const meaning *m) {
    line l;
    parse(&l, m->line);
    if (!l.ok) fail_msg("%s: %s", m->line, l.err.text);
    for (int i = 0; i < 8 && m->options[i][0]; i++) {
        const char *is = options_text(&l.o, m->options[i][0]), *should = m->options[i][1];
        if (!is != !should || (is && strcmp(is, should) != 0))
            fail_msg("%s: --%s is %s, not %s", m->line, m->options[i][0], is ? is : "not given", should ? should : "(not given)");
    }
    if (m->remark && !remarked(&l.o, m->remark)) fail_msg("%s: does not remark on %s", m->line, m->remark);
    options_free(&l.o);
}

static void arguments_become_options(void **state) {
    (void)state;
    static const meaning rows[] = {
        {"--network_module=networks.lora|--network_dim=32|--network_alpha=16",
         {{"rank", "32"}, {"alpha", "16"}, {"targets", NULL}, {"kind", NULL}},
         "text encoder"},
        {"--network_module=networks.lora", {{"rank", "4"}, {"alpha", "1"}}, "--network_alpha is not given: 1"},
        {"--network_module=networks.lora|--network_dim=8|--network_args|conv_dim=4|conv_alpha=2",
         {{"conv-rank", "4"}, {"conv-alpha", "2"}, {"targets", "blocks"}},
         NULL},
        {"--network_module|networks.lora|--network_args|conv_dim=4|--seed|1", {{"conv-alpha", "1"}, {"seed", "1"}}, NULL},
        {"--network_module=networks.lora|--network_args|block_dims=2,4|up_lr_weight=cosine+.25|block_lr_zero_threshold=0.1",
         {{"block-dims", "2,4"}, {"up-lr-weight", "cosine+.25"}, {"block-lr-zero-threshold", "0.1"}},
         NULL},
        {"--network_module=networks.dylora|--network_dim=16|--network_args|unit=4", {{"kind", "dylora"}, {"block-size", "4"}}, NULL},
        {"--network_module=networks.dylora|--network_dim=16", {{"kind", "dylora"}, {"block-size", "1"}}, NULL},
        {"--network_module=lycoris.kohya|--network_dim=8", {{"kind", "locon"}, {"targets", "full"}}, NULL},
        {"--network_module=lycoris.kohya|--network_args|algo=loha|preset=attn-mlp|use_cp=True|use_scalar=true|rs_lora=1",
         {{"kind", "loha"}, {"targets", "attn-mlp"}, {"tucker", "1"}, {"use-scalar", "1"}, {"rs-lora", "1"}},
         NULL},
        {"--network_module=lycoris.kohya|--network_alpha=3|--network_args|algo=lokr|factor=8|decompose_both=False|full_matrix=True|conv_"
         "dim=4",
         {{"kind", "lokr"}, {"factor", "8"}, {"decompose-both", "0"}, {"full-matrix", "1"}, {"conv-rank", "4"}, {"conv-alpha", "3"}},
         NULL},
        {"--network_module=lycoris.kohya|--network_args|algo=diag-oft|constraint=1e-3|rescaled=True",
         {{"kind", "oft"}, {"constraint", "1e-3"}, {"rescaled", "1"}},
         NULL},
        {"--network_module=lycoris.kohya|--network_args|algo=boft", {{"kind", "boft"}}, NULL},
        {"--network_module=lycoris.kohya|--network_args|algo=full", {{"kind", "full"}}, NULL},
        {"--network_module=lycoris.kohya|--network_args|algo=dylora|block_size=2", {{"kind", "dylora"}, {"block-size", "2"}}, NULL},
        {"--network_module=lycoris.kohya|--network_args|algo=glora", {{"kind", "glora"}}, NULL},
        {"--network_module=lycoris.kohya|--network_args|algo=ia3", {{"kind", "ia3"}, {"targets", "ia3"}}, "preset=ia3"},
        {"--network_module=lycoris.kohya|--network_args|dora_wd=True", {{"dora", "1"}}, "norms are those of the inputs"},
        {"--network_module=lycoris.kohya|--network_args|train_norm=True|dropout=0.1|rank_dropout=0.2|module_dropout=0.3",
         {{"train-norm", "1"}, {"network-dropout", "0.1"}, {"rank-dropout", "0.2"}, {"module-dropout", "0.3"}},
         NULL},
        {"--network_module=lycoris.kohya|--network_args|conv_alpha=None|disable_conv_cp=False|bypass_mode=True|unbalanced_factorization="
         "False",
         {{"conv-alpha", NULL}, {"tucker", NULL}},
         NULL},
        {"--network_module=networks.lora|--network_args|loraplus_lr_ratio=16|loraplus_unet_lr_ratio=8|loraplus_text_encoder_lr_ratio=4",
         {{"loraplus-lr-ratio", "16"}, {"loraplus-unet-lr-ratio", "8"}, {"loraplus-text-encoder-lr-ratio", "4"}},
         NULL},
        /* What graphical front ends write whatever the algorithm is. */
        {"--network_module=lycoris.kohya|--network_args|preset=full|conv_dim=4|conv_alpha=1|use_tucker=False|rank_dropout=0|module_dropout="
         "0|"
         "use_cp=False|use_scalar=False|decompose_both=False|full_matrix=False|factor=-1|constrain=0.0|rescaled=False|bypass_mode=False|"
         "dora_wd=False|rank_dropout_scale=False|train_norm=False|algo=loha",
         {{"kind", "loha"}, {"factor", NULL}, {"tucker", "0"}, {"conv-rank", "4"}, {"dora", "0"}},
         NULL},
        /* Options of their own count more, wherever they stand. */
        {"--kind|loha|--network_module=lycoris.kohya|--network_args|algo=lokr|conv_dim=4|--conv-rank|2|--targets|attn",
         {{"kind", "loha"}, {"conv-rank", "2"}, {"targets", "attn"}},
         NULL},
        {"--kind|lokr|--network_args|factor=4", {{"kind", "lokr"}, {"factor", "4"}, {"alpha", NULL}}, NULL},
        {"--network_args=algo=loha", {{"kind", "loha"}}, NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) expect(&rows[i]);
}

static void what_is_not_understood_is_refused(void **state) {
    (void)state;
    static const char *const rows[][2] = {
        {"--network_module=networks.lroa", "--network-module networks.lroa: unknown; did you mean networks.lora?"},
        {"--network_module=something.else.entirely", "known: networks.lora, networks.dylora, lycoris.kohya"},
        {"--network_module=networks.lora_fa", "LoRA-FA trains one of the two factors"},
        {"--network_module=networks.oft", "give --kind oft"},
        {"--network_module=networks.lora|--network_args|conv_dmi=4", "unknown key conv_dmi; did you mean conv_dim?"},
        {"--network_module=networks.lora|--network_args|qqqqqqqq=4", "networks.lora has none that is called so"},
        {"--network_module=networks.lora|--network_args|algo=loha", "--network-args algo: networks.lora has no such argument"},
        {"--network_module=lycoris.kohya|--network_args|block_dims=4", "lycoris.kohya has no such argument"},
        {"--network_module=lycoris.kohya|--network_args|algo=lokkr", "did you mean lokr?"},
        {"--network_module=lycoris.kohya|--network_args|algo=tlora", "--network-args algo: unknown value 'tlora'"},
        {"--network_module=lycoris.kohya|--network_args|preset=attn-only2", "did you mean attn-only?"},
        {"--network_module=lycoris.kohya|--network_args|preset=mine.toml", "preset files are not read"},
        {"--network_module=lycoris.kohya|--network_args|use_scalar=maybe", "'maybe' is neither True nor False"},
        {"--network_module=lycoris.kohya|--network_args|disable_conv_cp=True", "use_tucker=False"},
        {"--network_module=lycoris.kohya|--network_args|unbalanced_factorization=True", "usual factorization only"},
        {"--network_module=lycoris.kohya|--network_args|conv_dim=four", "--network-args conv_dim: 'four' is not a whole number"},
        {"--network_module=lycoris.kohya|--network_args|conv_dim", "'conv_dim' is not of the form KEY=VALUE"},
        {"--network_args", "--network_args needs a value"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        line l;
        parse(&l, rows[i][0]);
        if (l.ok) fail_msg("accepted: %s", rows[i][0]);
        if (!strstr(l.err.text, rows[i][1])) fail_msg("%s: says '%s', not '%s'", rows[i][0], l.err.text, rows[i][1]);
        options_free(&l.o);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arguments_become_options),
        cmocka_unit_test(what_is_not_understood_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
