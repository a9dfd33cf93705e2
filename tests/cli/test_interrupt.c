/* A training that is stopped: by Ctrl-C, or killed at any moment. No file is ever broken or lost, and going on makes the bytes that an
   undisturbed training makes. */
#include "base/file.h"
#include "base/memory.h"
#include "base/random.h"
#include "formats/safetensors.h"
#include "tests/support/folder.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_png.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { KILLS = 20 };

#define TRAIN \
    "train --model model.safetensors --data photos --resolution 64 --rank 4 --steps 24 --save-every-n-steps 3 --device cpu --threads 1 " \
    "--cache-dir cache "

static char *folder;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pause_for(double seconds) {
    nanosleep(&(struct timespec){(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)}, NULL);
}

static bool same_files(const char *a, const char *b) {
    file_map x, y;
    assert_true(file_map_open(&x, a, NULL) && file_map_open(&y, b, NULL));
    bool same = x.size == y.size && !memcmp(x.data, y.data, x.size);
    file_map_close(&x);
    file_map_close(&y);
    return same;
}

/* Two adapter files with the same tensors: metadata hold the times at which a training began and ended. */
static bool same_tensors(const char *a, const char *b) {
    safetensors x, y;
    assert_true(safetensors_open(&x, a, NULL) && safetensors_open(&y, b, NULL));
    bool same = x.count == y.count && x.map.size - x.data_start == y.map.size - y.data_start &&
                !memcmp(x.map.data + x.data_start, y.map.data + y.data_start, x.map.size - x.data_start);
    for (size_t i = 0; same && i < x.count; i++) same = !strcmp(x.tensors[i].name, y.tensors[i].name);
    safetensors_close(&x);
    safetensors_close(&y);
    return same;
}

static void run(const char *arguments, int status) {
    program_result r = program_run(VULORA_PROGRAM, arguments, NULL);
    if (r.status != status) fail_msg("vulora %s: status %d, not %d: %s", arguments, r.status, status, r.err);
    program_result_free(&r);
}

/* Every .safetensors file there opens. */
static void expect_whole_files(const char *path) {
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        const char *dot = strrchr(entry->d_name, '.');
        if (!dot || strcmp(dot, ".safetensors")) continue;
        char *name = memory_format("%s/%s", path, entry->d_name);
        safetensors file;
        error err = {""};
        if (!safetensors_open(&file, name, &err)) fail_msg("a broken file: %s", err.text);
        safetensors_close(&file);
        free(name);
    }
    closedir(dir);
}

static void one_seed_makes_the_same_bytes(void **state) {
    (void)state;
    run(TRAIN "--output whole/me.safetensors", 0);
    run(TRAIN "--output again/me.safetensors", 0);
    assert_true(same_tensors("whole/me.safetensors", "again/me.safetensors"));
    assert_true(same_files("whole/me.safetensors", "again/me.safetensors"));
}

static void ctrl_c_saves_and_resume_goes_on(void **state) {
    (void)state;
    const char *command = TRAIN "--output stopped/me.safetensors --trace stopped/trace";
    pid_t process = program_start(VULORA_PROGRAM, command, NULL, "out", "err");
    double start = now();
    size_t size = 0;
    /* The first lines of the trace show that it is under way. */
    while (now() - start < 60) {
        char *text = file_read_text("stopped/trace/trace.jsonl", (size_t)1 << 24, &size, NULL);
        free(text);
        if (text && size > 600) break;
        pause_for(0.002);
    }
    kill(process, SIGINT);
    int status = program_wait(process, 60);
    char *err = file_read_text("err", (size_t)1 << 20, &size, NULL);
    if (status != 130 && status != 0) fail_msg("status %d: %s", status, err);
    assert_non_null(strstr(err, "saved"));
    if (status == 130) assert_non_null(strstr(err, "--resume"));
    free(err);
    expect_whole_files("stopped");
    run(TRAIN "--output stopped/me.safetensors --resume", 0);
    assert_true(same_tensors("whole/me.safetensors", "stopped/me.safetensors"));
}

static void a_shorter_training_goes_on(void **state) {
    (void)state;
    run("train --model model.safetensors --data photos --resolution 64 --rank 4 --steps 10 --device cpu --threads 1 --cache-dir cache "
        "--output longer/me.safetensors",
        0);
    run("train --model model.safetensors --data photos --resolution 64 --rank 4 --steps 24 --device cpu --threads 1 --cache-dir cache "
        "--output longer/me.safetensors --resume",
        0);
    assert_true(same_tensors("whole/me.safetensors", "longer/me.safetensors"));
}

static void killed_at_any_moment(void **state) {
    (void)state;
    double start = now();
    run(TRAIN "--output killed/me.safetensors", 0);
    double whole = now() - start;
    for (int i = 0; i < KILLS; i++) {
        bool resume = file_exists("killed/me.state.safetensors");
        pid_t process =
            program_start(VULORA_PROGRAM, resume ? TRAIN "--output killed/me.safetensors --resume" : TRAIN "--output killed/me.safetensors",
                          NULL, "out", "err");
        pause_for(whole * random_uniform(1, 2, (uint64_t)i));
        kill(process, SIGKILL);
        int status = program_wait(process, 60);
        assert_true(status == PROGRAM_KILLED || status == 0);
        expect_whole_files("killed");
        assert_true(!resume || file_exists("killed/me.state.safetensors"));
        if (i % 5 == 4) { /* from the beginning again, so that kills meet every phase */
            run(file_exists("killed/me.state.safetensors") ? TRAIN "--output killed/me.safetensors --resume"
                                                           : TRAIN "--output killed/me.safetensors",
                0);
            assert_true(same_tensors("whole/me.safetensors", "killed/me.safetensors"));
            assert_int_equal(unlink("killed/me.state.safetensors"), 0);
        }
    }
}

static int make_everything(void **state) {
    (void)state;
    static const char *const folders[] = {"photos", "whole", "again", "stopped", "longer", "killed"};
    folder = folder_enter("interrupt");
    if (!folder) return -1;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        if (mkdir(folders[i], 0755) != 0) return -1;
    tiny_model_shape shape = {32, 32, 64, 1, DTYPE_F16, 4};
    if (!tiny_model_write_shape("model.safetensors", 1, shape)) return -1;
    for (int i = 0; i < 4; i++) {
        char path[32], caption[32];
        snprintf(path, sizeof path, "photos/%d.png", i);
        if (!tiny_png_write(path, 64 + 32 * (i % 2), 64, (unsigned)i)) return -1;
        snprintf(path, sizeof path, "photos/%d.txt", i);
        snprintf(caption, sizeof caption, "wall number %d", i);
        if (!file_write_all(path, caption, strlen(caption), NULL)) return -1;
    }
    return 0;
}

static int remove_everything(void **state) {
    (void)state;
    return folder_leave(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_seed_makes_the_same_bytes),
        cmocka_unit_test(ctrl_c_saves_and_resume_goes_on),
        cmocka_unit_test(a_shorter_training_goes_on),
        cmocka_unit_test(killed_at_any_moment),
    };
    return cmocka_run_group_tests(tests, make_everything, remove_everything);
}
