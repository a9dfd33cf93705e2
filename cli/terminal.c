#include "cli/terminal.h"

#include "base/bytes.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static bool be_quiet, be_verbose, rewrites;
static progress *on_screen; /* whose line other text must not run into */

static const double seconds_between_lines = 5, seconds_between_rewrites = 0.1;

void terminal_setup(bool quiet, bool verbose) {
    const char *kind = getenv("TERM");
    be_quiet = quiet;
    be_verbose = verbose && !quiet;
    rewrites = isatty(STDERR_FILENO) && kind && strcmp(kind, "dumb") != 0;
}

bool terminal_verbose(void) { return be_verbose; }

/* NO_COLOR (no-color.org) is kept by never colouring: the only control sequence is "erase to the end of the line", on a terminal. */
static void erase_progress(void) {
    if (!on_screen || !on_screen->visible) return;
    fputs("\r\033[K", stderr);
    on_screen->visible = false;
}

static void print_line(const char *prefix, const char *format, va_list args) {
    erase_progress();
    fputs(prefix, stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

void terminal_say(const char *format, ...) {
    if (be_quiet) return;
    va_list args;
    va_start(args, format);
    print_line("", format, args);
    va_end(args);
}

void terminal_detail(const char *format, ...) {
    if (!be_verbose) return;
    va_list args;
    va_start(args, format);
    print_line("", format, args);
    va_end(args);
}

void terminal_warn(const char *format, ...) {
    va_list args;
    va_start(args, format);
    print_line("vulora: note: ", format, args);
    va_end(args);
}

/* What comes from files may hold anything: control characters would drive the terminal. */
static int print_error(const error *err, int status) {
    erase_progress();
    fputs("vulora: ", stderr);
    for (const char *c = err->text; *c; c++) fputc((unsigned char)*c < 32 && *c != '\n' ? '?' : *c == 127 ? '?' : *c, stderr);
    fputc('\n', stderr);
    return status;
}

int terminal_fail(const error *err) { return print_error(err, EXIT_FAILED); }
int terminal_refuse(const error *err) { return print_error(err, EXIT_USAGE); }

bool terminal_flush_results(void) {
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return true;
    error err;
    error_set(&err, "the results cannot be written to standard output: %s", strerror(errno ? errno : EIO));
    terminal_fail(&err);
    return false;
}

/* ---- progress ---- */

double terminal_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

const char *terminal_duration(double seconds, char out[24]) {
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e9) return strcpy(out, "?");
    long long s = (long long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, 24, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, 24, "%lld:%02lld", s / 60, s % 60);
    return out;
}

const char *terminal_bytes(uint64_t bytes, char out[24]) { return bytes_text(bytes, out); }

void progress_begin(progress *p, const char *what, int64_t first, int64_t total) {
    double now = terminal_clock();
    *p = (progress){.what = what, .total = total, .done = first, .first = first, .started = now, .shown = -1e9};
    on_screen = p;
    if (!rewrites) p->shown = now;
}

static int terminal_width(void) {
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 10 ? size.ws_col : 80;
}

static void progress_text(const progress *p, const char *detail, double now, char *text, size_t size) {
    double rate = (double)(p->done - p->first) / (now - p->started + 1e-9);
    char left[24];
    int used = snprintf(text, size, "%s %lld/%lld", p->what, (long long)p->done, (long long)p->total);
    if (detail && *detail) used += snprintf(text + used, size - (size_t)used, "  %.200s", detail);
    if (p->done > p->first) {
        used += rate >= 1 ? snprintf(text + used, size - (size_t)used, "  %.2f it/s", rate)
                          : snprintf(text + used, size - (size_t)used, "  %.2f s/it", 1 / rate);
        if (p->done < p->total)
            snprintf(text + used, size - (size_t)used, "  ETA %s", terminal_duration((double)(p->total - p->done) / rate, left));
    }
}

void progress_update(progress *p, int64_t done, const char *detail) {
    double now = terminal_clock();
    char text[512];
    p->done = done;
    if (be_quiet || (now - p->shown < (rewrites ? seconds_between_rewrites : seconds_between_lines) && done != p->total)) return;
    p->shown = now;
    progress_text(p, detail, now, text, sizeof text);
    if (rewrites)
        fprintf(stderr, "\r%.*s\033[K", terminal_width() - 1, text);
    else
        fprintf(stderr, "%s\n", text);
    fflush(stderr);
    p->visible = rewrites;
}

void progress_end(progress *p) {
    if (p->visible) fputc('\n', stderr);
    p->visible = false;
    if (on_screen == p) on_screen = NULL;
}

/* ---- Ctrl-C ---- */

static volatile sig_atomic_t interrupted;

/* What is under way ends first, which can take a while: say so at once, with what a signal handler may call. */
static void on_signal(int number) {
    static const char STOPPING[] = "\nstopping after this step (Ctrl-C again quits at once, without saving)\n";
    if (interrupted) _exit(128 + number);
    interrupted = 1;
    ssize_t written = write(STDERR_FILENO, STOPPING, sizeof STOPPING - 1);
    (void)written;
}

void interrupt_catch(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool interrupt_requested(void) { return interrupted; }
