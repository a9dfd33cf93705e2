#include "cli/nearest.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "vulkan/gpu.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* Whether Vulkan's validation layer, where a developer asked for it, had anything to say. */
static bool report_validation(void) {
    const char *first;
    int count = gpu_validation_messages(&first);
    if (count) terminal_warn("%d messages from the Vulkan validation layer, the first: %s", count, first);
    return count > 0;
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
        for (int i = 0; i < o.remarks.count; i++) terminal_say("note: %s", o.remarks.item[i]);
        status = c->run(&o);
    }
    options_free(&o);
    if (!terminal_flush_results() && status == EXIT_DONE) status = EXIT_FAILED;
    return report_validation() ? EXIT_VALIDATION : status;
}

/* OpenMP's threads spin at barriers unless told otherwise before the program starts. When anything else wants the processors, each of a
   step's thousands of barriers then waits for a thread that another one's spinning keeps from running: measured 2.0 s instead of 0.15 s
   for a training step of the demo model, on two processors with a compiler beside it. So the program starts itself again, once. */
static void wait_without_spinning(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("OMP_WAIT_POLICY", "passive", 1);
    execv("/proc/self/exe", argv);
}

int main(int argc, char **argv) {
    wait_without_spinning(argv);
    signal(SIGXFSZ, SIG_IGN); /* a file over the shell's size limit is a failed write, with a message */
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
