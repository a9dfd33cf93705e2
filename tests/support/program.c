#include "tests/support/program.h"

#include "base/file.h"
#include "base/memory.h"
#include "tests/support/validation.h"

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_ARGUMENTS = 64, NOBODY = 65534 };

/* Cuts `text` into words, in place. */
static int split(char *text, char **argv) {
    int argc = 1;
    while (*text && argc < MOST_ARGUMENTS) {
        text += strspn(text, " ");
        if (!*text) break;
        char *to = argv[argc++] = text;
        for (bool quoted = false; *text && (quoted || *text != ' '); text++) {
            if (*text == '\'')
                quoted = !quoted;
            else
                *to++ = *text;
        }
        if (*text) text++;
        *to = 0;
    }
    argv[argc] = NULL;
    return argc;
}

pid_t program_start(const char *program, const char *arguments, const program_limits *limits, const char *out, const char *err) {
    char *copy = memory_string(arguments), *argv[MOST_ARGUMENTS + 1] = {(char *)(uintptr_t)program};
    split(copy, argv);
    pid_t child = fork();
    if (child == 0) {
        validation_begin();
        int files[3] = {open("/dev/null", O_RDONLY), open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600),
                        open(err, O_WRONLY | O_CREAT | O_TRUNC, 0600)};
        for (int i = 0; i < 3; i++)
            if (files[i] < 0 || dup2(files[i], i) < 0) _exit(126);
        if (limits && limits->file_bytes) {
            struct rlimit most = {(rlim_t)limits->file_bytes, (rlim_t)limits->file_bytes};
            setrlimit(RLIMIT_FSIZE, &most);
        }
        if (limits && limits->as_nobody && geteuid() == 0 && (setgid(NOBODY) != 0 || setuid(NOBODY) != 0)) _exit(126);
        execv(program, argv);
        _exit(127);
    }
    free(copy);
    return child;
}

int program_wait(pid_t process, int seconds) {
    time_t start = time(NULL);
    int status = 0;
    while (waitpid(process, &status, WNOHANG) == 0) {
        if (time(NULL) - start > seconds) {
            kill(process, SIGKILL);
            waitpid(process, &status, 0);
            return PROGRAM_TOO_SLOW;
        }
        nanosleep(&(struct timespec){0, 3000000}, NULL);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : PROGRAM_KILLED;
}

program_result program_run(const char *program, const char *arguments, const program_limits *limits) {
    char out[] = "/tmp/vulora-test-out-XXXXXX", err[] = "/tmp/vulora-test-err-XXXXXX";
    size_t size;
    close(mkstemp(out));
    close(mkstemp(err));
    pid_t process = program_start(program, arguments, limits, out, err);
    program_result result = {.status = program_wait(process, limits && limits->seconds ? limits->seconds : 120)};
    result.out = file_read_text(out, (size_t)1 << 26, &size, NULL);
    result.err = file_read_text(err, (size_t)1 << 26, &size, NULL);
    if (!result.out) result.out = memory_string("");
    if (!result.err) result.err = memory_string("");
    unlink(out);
    unlink(err);
    return result;
}

void program_result_free(program_result *result) {
    free(result->out);
    free(result->err);
    *result = (program_result){0, NULL, NULL};
}
