#include "cli/nearest.h"
#include "cli/options.h"
#include "cli/terminal.h"

#include <string.h>

static int refuse_command(const char *name) {
    error err;
    char known[256] = "";
    nearest search = nearest_begin(name);
    for (const command *c = command_table; c->name; c++) {
        nearest_try(&search, c->name, c->name);
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", c == command_table ? "" : ", ", c->name);
    }
    if (*name == '-')
        error_set(&err, "'%.100s' stands before the command; usage: vulora COMMAND [options]; commands: %s", name, known);
    else if (search.best)
        error_set(&err, "unknown command '%.100s'; did you mean %s? Commands: %s", name, search.best, known);
    else
        error_set(&err, "unknown command '%.100s'; commands: %s", name, known);
    return terminal_refuse(&err);
}

static int run_command(const command *c, int argc, char **argv) {
    options o;
    error err = {""};
    int status = EXIT_DONE;
    if (!options_parse(&o, c, argc, argv, &err)) {
        status = terminal_refuse(&err);
    } else if (o.help) {
        options_print_help(stdout, c);
    } else {
        terminal_setup(o.quiet, o.verbose);
        char names[512] = "";
        for (int i = 0; i < o.noted.count; i++) snprintf(names + strlen(names), sizeof names - strlen(names), " --%s", o.noted.item[i]);
        if (*names) terminal_say("note: without effect here, accepted for the sake of saved command lines:%s", names);
        status = c->run(&o);
    }
    options_free(&o);
    return !terminal_flush_results() && status == EXIT_DONE ? EXIT_FAILED : status;
}

int main(int argc, char **argv) {
    terminal_setup(false, false);
    const char *name = argc > 1 ? argv[1] : "help";
    if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
        printf("vulora %s\n", VULORA_VERSION);
        return terminal_flush_results() ? EXIT_DONE : EXIT_FAILED;
    }
    bool help = !strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h");
    if (help && argc > 2) {
        const command *c = command_find(argv[2]);
        if (!c) return refuse_command(argv[2]);
        options_print_help(stdout, c);
    } else if (help) {
        options_print_overview(stdout);
    } else {
        const command *c = command_find(name);
        return c ? run_command(c, argc - 2, argv + 2) : refuse_command(name);
    }
    return terminal_flush_results() ? EXIT_DONE : EXIT_FAILED;
}
