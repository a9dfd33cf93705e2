/* Running the built program from a test, as a user would. */
#ifndef VULORA_TESTS_SUPPORT_PROGRAM_H
#define VULORA_TESTS_SUPPORT_PROGRAM_H

#include <stdbool.h>
#include <sys/types.h>

enum { PROGRAM_KILLED = -1, PROGRAM_TOO_SLOW = -2 };

typedef struct program_limits {
    long file_bytes; /* no file may grow larger (RLIMIT_FSIZE); 0: any size */
    bool as_nobody;  /* without root's rights */
    int seconds;     /* 0: 120 */
} program_limits;

typedef struct program_result {
    int status; /* exit status, PROGRAM_KILLED or PROGRAM_TOO_SLOW */
    char *out, *err;
} program_result;

/* arguments: separated by blanks; '...' keeps blanks together. limits: NULL for none. stdout and stderr go through files in /tmp, which are
   removed. The validation layer watches (validation.h): a run that made it speak ends with EXIT_VALIDATION, whatever else came of it. Free
   the result with program_result_free. */
program_result program_run(const char *program, const char *arguments, const program_limits *limits);
void program_result_free(program_result *result);

/* The same without waiting; its output goes to the files `out` and `err`. */
pid_t program_start(const char *program, const char *arguments, const program_limits *limits, const char *out, const char *err);
/* Waits at most that long, then kills it. Returns as program_result.status. */
int program_wait(pid_t process, int seconds);

#endif
