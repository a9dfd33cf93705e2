#include "cli/options.h"

#include <stdlib.h>
#include <string.h>

enum { HELP_WIDTH = 100, HELP_INDENT = 32 };

void options_print_overview(FILE *out) {
    fprintf(out,
            "vulora %s: trains Stable Diffusion 1.5 adapters (LoRA) from your pictures, and draws with them\n\nusage: vulora COMMAND "
            "[options]\n\n",
            VULORA_VERSION);
    for (const command *c = command_table; c->name; c++) fprintf(out, "  %-10s %s\n", c->name, c->help);
    fputs("\n'vulora COMMAND --help' lists a command's options. To begin:\n\n"
          "  vulora train --model MODEL.safetensors --data PHOTOS/ --output me.safetensors\n"
          "  vulora generate --model MODEL.safetensors --lora me.safetensors:0.8 --prompt \"...\" --output out.png\n",
          out);
}

/* Words of text from column HELP_INDENT on, broken at HELP_WIDTH; `column` is where the cursor stands. */
static void print_wrapped(FILE *out, const char *text, int column) {
    if (column >= HELP_INDENT) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", HELP_INDENT - column, "");
    column = HELP_INDENT;
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (column > HELP_INDENT && column + 1 + length > HELP_WIDTH) {
            fprintf(out, "\n%*s", HELP_INDENT, "");
            column = HELP_INDENT;
        }
        column += fprintf(out, "%s%.*s", column > HELP_INDENT ? " " : "", length, text);
        text += length + (text[length] == ' ');
    }
    fputc('\n', out);
}

static void describe(const option *row, char *text, size_t size) {
    const char *name;
    snprintf(text, size, "%s", row->help);
    for (int i = 0; row->type == OPTION_CHOICE && (name = row->choices ? row->choices[i].name : row->choice_at(i)); i++)
        snprintf(text + strlen(text), size - strlen(text), "%s%s", i ? ", " : ": ", name);
    if (row->type == OPTION_SWITCH && row->fallback && row->fallback[0] == '1')
        snprintf(text + strlen(text), size - strlen(text), " (default; --no-%s)", row->name);
    else if (row->fallback && *row->fallback && row->type != OPTION_SWITCH)
        snprintf(text + strlen(text), size - strlen(text), " (default %s)", row->fallback);
    if (row->aliases) {
        char first[64];
        snprintf(first, sizeof first, "%.*s", (int)strcspn(row->aliases, " "), row->aliases);
        for (char *p = first; *p; p++)
            if (*p == '-') *p = '_';
        snprintf(text + strlen(text), size - strlen(text), " [--%s]", first);
    }
}

void options_print_help(FILE *out, const command *c) {
    fprintf(out, "usage: vulora %s%s%s [options]\n%s\n", c->name, *c->words ? " " : "", c->words, c->help);
    const char *group = NULL;
    for (const option *row = option_table; row->name; row++) {
        if (!(row->commands & c->bit) || row->type == OPTION_NOTED || row->type == OPTION_REFUSED) continue;
        if (!group || strcmp(group, row->group)) fprintf(out, "\n%s\n", row->group);
        group = row->group;
        char text[1024];
        describe(row, text, sizeof text);
        print_wrapped(out, text, fprintf(out, "  --%s%s%s  ", row->name, row->value ? " " : "", row->value ? row->value : ""));
    }
    fputs("\n'-' and '_' are the same in option names, --name=VALUE is --name VALUE, and of an option given twice the last one counts.\n",
          out);
    if (c->bit == COMMAND_TRAIN)
        fputs("sd-scripts' names are understood where they mean the same; those that tune PyTorch are accepted without effect.\n", out);
}
