/* gpu_start FAMILY: how long all kernels take that SD1.5 launches at 512x512 when the program starts on that card, without and with the
   cache on disk that the first start leaves. Only compiles, on a null device (see bench/gpu_static): run.sh sets the driver up. */
#include "bench/gpu_static/gpu_static.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

static double wall_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Of the whole process. waits: how often a thread gave up its processor, as for a lock inside the driver. */
typedef struct spent {
    double wall, processor;
    long waits;
} spent;

static spent spent_now(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    double processor = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
    return (spent){wall_seconds(), processor, u.ru_nvcsw};
}

static void visit(void *user, const case_kernel *k) { (void)user, (void)k; }

/* One start: the cache is read, all pipelines are built, the cache is written. */
static bool start(gpu *g, const char *which, error *err) {
    spent before = spent_now();
    if (gpu_cache_open(g) != VK_SUCCESS) return error_set(err, "no pipeline cache");
    size_t kept = g->cache_bytes;
    bool ok = gpu_pipelines_build(g, err);
    spent after = spent_now();
    if (ok)
        printf("%-8s %4d pipelines in %6.3f s (%.3f s of processor time, %ld waits), cache read %.1f KiB, left %.1f KiB\n", which,
               g->pipeline_count, after.wall - before.wall, after.processor - before.processor, after.waits - before.waits,
               (double)kept / 1024, (double)g->cache_bytes / 1024);
    for (int i = 0; i < g->pipeline_count; i++) {
        g->vk.vkDestroyPipeline(g->device, g->pipelines[i]->handle, NULL);
        g->pipelines[i]->handle = VK_NULL_HANDLE;
    }
    gpu_cache_close(g);
    g->cache = VK_NULL_HANDLE;
    g->cache_path = NULL;
    return ok;
}

int main(int argc, char **argv) {
    null_device *d = argc == 2 ? null_device_open() : NULL;
    if (!d) {
        fprintf(stderr, "gpu_start: which family, and is there a driver with a null device? See run.sh\n");
        return 2;
    }
    error err;
    gpu *g = null_device_engine(d);
    bool ok = cases_run(g, argv[1], visit, NULL, &err) && start(g, "first", &err) && start(g, "second", &err);
    if (!ok) fprintf(stderr, "gpu_start: %s\n", err.text);
    null_device_close(d);
    return !ok;
}
