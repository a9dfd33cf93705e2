/* The program as a user runs it: killed at any moment, interrupted, out of disk space. Whatever happens, files are whole, and --resume
   reaches the bytes of a training that was never disturbed. */
#include "base/random.h"
#include "formats/safetensors.h"
#include "tests/train/training.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

enum { STEPS = 12, KILLS = 20, MOST_SECONDS = 180, MOST_ARGUMENTS = 48 };

static place here;
static char *undisturbed;  /* the adapter of an uninterrupted training */
static double run_seconds; /* how long that took */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void sleep_seconds(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&t, &t) != 0 && errno == EINTR) continue;
}

/* ---- the program ---- */

typedef struct command {
    const char *output;
    const char *extra[8]; /* further options, NULL-terminated */
    rlim_t file_limit;    /* bytes a file may have; 0: any */
} command;

static void become(const command *c, const char *log) {
    char *model = place_path(&here, "model.safetensors"), *pictures = place_path(&here, "pictures"), *cache = place_path(&here, "cache");
    char steps[8];
    snprintf(steps, sizeof steps, "%d", STEPS);
    const char *arguments[MOST_ARGUMENTS] = {VULORA_PROGRAM, "train",
                                             "--model",      model,
                                             "--data",       pictures,
                                             "--output",     c->output,
                                             "--cache-dir",  cache,
                                             "--steps",      steps,
                                             "--rank",       "2",
                                             "--targets",    "attn",
                                             "--lr",         "1e-3",
                                             "--resolution", "64",
                                             "--device",     "cpu",
                                             "--threads",    "1",
                                             "--flip",       "--save-precision",
                                             "fp32"};
    size_t n = 0;
    while (arguments[n]) n++;
    for (int i = 0; c->extra[i]; i++) arguments[n++] = c->extra[i];
    int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0) _exit(99);
    if (c->file_limit) {
        /* Without the signal the write fails, as on a full disk. */
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){c->file_limit, c->file_limit});
    }
    execv(arguments[0], (char *const *)(uintptr_t)arguments);
    _exit(98);
}

static char *log_path(void) { return place_path(&here, "log.txt"); }

static pid_t start(const command *c) {
    char *log = log_path();
    unlink(log);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) become(c, log);
    free(log);
    return child;
}

/* The exit status, or minus the signal. */
static int finish(pid_t child) {
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static char *said(void) {
    char *path = log_path();
    size_t size;
    char *text = file_read_text(path, 1 << 20, &size, NULL);
    assert_non_null(text);
    free(path);
    return text;
}

static void expect_said(const char *part) {
    char *text = said();
    expect_text(text, part);
    free(text);
}

static void expect_status(int status, int expected) {
    if (status == expected) return;
    char *text = said();
    fail_msg("status %d instead of %d: %s", status, expected, text);
}

static int setup(void **state) {
    (void)state;
    place_open(&here, "test_kill");
    undisturbed = place_output(&here, "undisturbed");
    command c = {.output = undisturbed};
    /* The second run has the encoded pictures, as all later ones. */
    for (int i = 0; i < 2; i++) {
        double begin = now();
        expect_status(finish(start(&c)), 0);
        run_seconds = now() - begin;
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    free(undisturbed);
    place_close(&here);
    return 0;
}

/* ---- what is left ---- */

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

/* Every .safetensors file is whole: adapters load, the state is a state. Returns how many there are. */
static int check_files(const char *folder, int moment) {
    error err = {""};
    char *model = place_path(&here, "model.safetensors");
    pipeline *p = pipeline_open(model, NULL, NULL, here.device, &err);
    if (!p) fail_msg("%s", err.text);
    int files = 0;
    DIR *dir = opendir(folder);
    for (const struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        if (!ends_with(e->d_name, ".safetensors")) continue;
        char *path = memory_format("%s/%s", folder, e->d_name);
        safetensors st;
        if (!safetensors_open(&st, path, &err)) fail_msg("kill %d left a broken file: %s", moment, err.text);
        for (size_t i = 0; i < st.count; i++)
            assert_int_equal(safetensors_first_nonfinite(st.tensors[i].data, st.tensors[i].type, st.tensors[i].elements),
                             st.tensors[i].elements);
        safetensors_close(&st);
        if (!ends_with(path, ".state.safetensors")) {
            adapter *a = adapter_load(path, p->modules, here.device, false, NULL, &err);
            if (!a) fail_msg("kill %d left an adapter that does not load: %s", moment, err.text);
            adapter_free(a);
        }
        files++;
        free(path);
    }
    if (dir) closedir(dir);
    pipeline_close(p);
    free(model);
    return files;
}

static bool left_temporaries(const char *folder) {
    bool found = false;
    DIR *dir = opendir(folder);
    for (const struct dirent *e; dir && (e = readdir(dir)) != NULL;) found |= strstr(e->d_name, ".tmp-") != NULL;
    if (dir) closedir(dir);
    return found;
}

/* Kills a training after `seconds`, then lets it go on to its end. */
static void kill_and_resume(int moment, double seconds, const char *every) {
    char *name = memory_format("kill-%d", moment), *output = place_output(&here, name), *folder = place_path(&here, name);
    char *state = trainer_state_path(output);
    command c = {.output = output, .extra = {"--save-every-n-steps", every}};
    pid_t child = start(&c);
    sleep_seconds(seconds);
    kill(child, SIGKILL);
    finish(child);
    check_files(folder, moment);
    if (file_exists(state)) c.extra[2] = "--resume";
    expect_status(finish(start(&c)), 0);
    check_files(folder, moment);
    if (left_temporaries(folder)) fail_msg("kill %d: temporary files stay", moment);
    expect_equal_results(output, undisturbed);
    free(state);
    free(folder);
    free(output);
    free(name);
}

static void killed_at_any_moment(void **state) {
    (void)state;
    static const char *const every[] = {"1", "2", "3"};
    uint64_t seed = (uint64_t)time(NULL);
    /* The first quarter of a run only loads. The seed is printed so that a failure can be repeated. */
    printf("moments of seed %llu in a run of %.2f s\n", (unsigned long long)seed, run_seconds);
    double begin = now();
    for (int i = 0; i < KILLS; i++) {
        double part = random_uniform(seed, 1, (uint64_t)i);
        kill_and_resume(i, run_seconds * (0.25 + 0.95 * part), every[i % 3]);
        /* Sanitizers on a busy machine: there is a limit to a test's time. */
        if (now() - begin > MOST_SECONDS && i + 1 < KILLS) {
            printf("%d kills instead of %d: the machine is too slow for more\n", i + 1, KILLS);
            break;
        }
    }
}

/* Every step saves; the moments walk through the run, the same folder all the time: interrupted resumes, too. */
static void killed_again_and_again(void **state) {
    (void)state;
    char *output = place_output(&here, "again"), *folder = place_path(&here, "again"), *kept = trainer_state_path(output);
    command c = {.output = output, .extra = {"--save-every-n-steps", "1"}};
    for (int i = 0; i < 6; i++) {
        pid_t child = start(&c);
        sleep_seconds(run_seconds * (0.5 + 0.05 * i));
        kill(child, SIGKILL);
        finish(child);
        check_files(folder, 100 + i);
        if (file_exists(kept)) c.extra[2] = "--resume";
    }
    expect_status(finish(start(&c)), 0);
    expect_equal_results(output, undisturbed);
    free(kept);
    free(folder);
    free(output);
}

static void interrupted_it_saves_and_says_how_to_go_on(void **state) {
    (void)state;
    char *output = place_output(&here, "interrupt"), *kept = trainer_state_path(output);
    command c = {.output = output, .extra = {"--save-every-n-steps", "1"}};
    pid_t child = start(&c);
    /* It is in the middle as soon as the first save is done. */
    for (double begin = now(); !file_exists(kept) && now() - begin < 60;) sleep_seconds(0.005);
    kill(child, SIGINT);
    int status = finish(child);
    if (status == 0) skip(); /* on a very busy machine the run may have ended before the signal */
    expect_status(status, 130);
    expect_said("--resume");
    expect_said("saved");
    assert_true(file_exists(output));
    c.extra[2] = "--resume";
    expect_status(finish(start(&c)), 0);
    expect_said("going on from step");
    expect_equal_results(output, undisturbed);
    free(kept);
    free(output);
}

static void a_full_disk_is_named_and_old_files_stay(void **state) {
    (void)state;
    char *output = place_output(&here, "full"), *folder = place_path(&here, "full"), *kept = trainer_state_path(output);
    struct stat info;
    assert_int_equal(stat(undisturbed, &info), 0);
    folder_text(here.folder, "full/me.safetensors", "an old result");
    command c = {.output = output, .file_limit = (rlim_t)info.st_size / 2};
    expect_status(finish(start(&c)), 1);
    expect_said("full/me.safetensors");
    expect_said("what stood there before is unchanged");
    assert_int_equal(folder_count(folder), 1);
    size_t size;
    char *text = file_read_text(output, 100, &size, NULL);
    assert_string_equal(text, "an old result");
    free(text);
    /* Room for the adapter, none for the larger state: the adapter is whole, the state is the older one or none. */
    c.file_limit = (rlim_t)info.st_size + 1000;
    expect_status(finish(start(&c)), 1);
    expect_said("me.state.safetensors");
    assert_int_equal(folder_count(folder), 1);
    assert_false(file_exists(kept));
    expect_equal_files(output, undisturbed);
    free(kept);
    free(folder);
    free(output);
}

static void a_full_cache_costs_only_time(void **state) {
    (void)state;
    char *output = place_output(&here, "cache-full"), *cache = place_path(&here, "cache-full/cache");
    /* An entry is larger than 1000 bytes: none can be written; nor can the adapter, which is the error then. */
    command c = {.output = output, .extra = {"--cache-dir", cache}, .file_limit = 1000};
    expect_status(finish(start(&c)), 1);
    expect_said("encoded pictures are not kept");
    expect_said("cache-full/me.safetensors");
    free(cache);
    free(output);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(killed_at_any_moment), cmocka_unit_test(killed_again_and_again),
                                       cmocka_unit_test(interrupted_it_saves_and_says_how_to_go_on),
                                       cmocka_unit_test(a_full_disk_is_named_and_old_files_stay),
                                       cmocka_unit_test(a_full_cache_costs_only_time)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
