/* vulora devices: what can compute here, and which one `auto` picks and why. */
#include "cli/commands.h"
#include "cli/terminal.h"
#include "graph/device.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_DEVICES = 16 };

typedef struct cpu_info {
    char name[128], features[128];
    long threads;
    uint64_t memory_bytes;
} cpu_info;

static void read_processor_name(char *out, size_t size) {
    char line[512];
    snprintf(out, size, "CPU");
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(out, size, "%.100s", colon + 1 + strspn(colon + 1, " "));
        break;
    }
    if (file) fclose(file);
}

static cpu_info cpu_look(void) {
    cpu_info cpu = {.threads = sysconf(_SC_NPROCESSORS_ONLN),
                    .memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE)};
    read_processor_name(cpu.name, sizeof cpu.name);
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) strcat(cpu.features, "AVX2 ");
    if (__builtin_cpu_supports("fma")) strcat(cpu.features, "FMA ");
    if (__builtin_cpu_supports("avx512f")) strcat(cpu.features, "AVX-512 ");
#endif
    size_t length = strlen(cpu.features);
    if (length) cpu.features[length - 1] = 0;
    return cpu;
}

/* What `--cpu-kernels auto` means here. */
static const char *kernels_name(void) { return cpu_kernels_at(0) ? cpu_kernels_at(0)->name : "portable"; }

/* Opening is the only honest way to ask what `auto` does: the rule has one home, device_open. */
static void auto_choice(const gpu_info *list, int count, char *name, size_t name_size, char *why, size_t why_size) {
    error err = {""};
    device *d = device_open("auto", "auto", 0, &err);
    int software = 0, refused = 0;
    for (int i = 0; i < count; i++) {
        software += list[i].software;
        refused += !list[i].software && *list[i].refused;
    }
    if (!d) {
        snprintf(name, name_size, "none");
        snprintf(why, why_size, "%s", err.text);
        return;
    }
    snprintf(name, name_size, "%s", d->gpu ? d->name : "cpu");
    if (d->gpu)
        snprintf(why, why_size, "the best GPU: discrete before integrated, then by memory");
    else if (refused)
        snprintf(why, why_size, "no GPU here can be used, for the reasons above");
    else if (software)
        snprintf(why, why_size, "there is no GPU; a software Vulkan device is slower than the CPU itself and is used only when named");
    else
        snprintf(why, why_size, "no Vulkan device was found");
    device_close(d);
}

static void print_text(const gpu_info *list, int count, const cpu_info *cpu, const char *name, const char *why) {
    char memory[24], left[24];
    printf("%-10s %s: %ld threads, %s memory%s%s, %s kernels\n", "cpu", cpu->name, cpu->threads, terminal_bytes(cpu->memory_bytes, memory),
           *cpu->features ? ", " : "", cpu->features, kernels_name());
    for (int i = 0; i < count; i++) {
        const gpu_info *g = &list[i];
        char spec[24];
        snprintf(spec, sizeof spec, "vulkan:%d", g->index);
        printf("%-10s %s (%s): %s, %s memory%s%s, fp16 %s, subgroup %d\n", spec, g->name, g->driver,
               g->software   ? "software"
               : g->discrete ? "discrete GPU"
                             : "integrated GPU",
               terminal_bytes(g->memory_bytes, memory), g->memory_free ? ", free " : "",
               g->memory_free ? terminal_bytes(g->memory_free, left) : "",
               g->fp16_storage ? (g->fp16_math ? "storage and arithmetic" : "storage") : "no", g->subgroup_size);
        if (*g->refused) printf("%-10s cannot be used: %s\n", "", g->refused);
    }
    printf("\nauto picks %s: %s\n", name, why);
}

static void print_json(const gpu_info *list, int count, const cpu_info *cpu, const char *name, const char *why) {
    json_t *all = json_array();
    json_array_append_new(all, json_pack("{s:s, s:s, s:s, s:I, s:I, s:s, s:s}", "spec", "cpu", "name", cpu->name, "type", "cpu", "threads",
                                         (json_int_t)cpu->threads, "memory_bytes", (json_int_t)cpu->memory_bytes, "features", cpu->features,
                                         "kernels", kernels_name()));
    for (int i = 0; i < count; i++) {
        const gpu_info *g = &list[i];
        char spec[24];
        snprintf(spec, sizeof spec, "vulkan:%d", g->index);
        json_array_append_new(
            all, json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:b, s:b, s:i, s:s}", "spec", spec, "name", g->name, "driver", g->driver, "type",
                           g->software   ? "software"
                           : g->discrete ? "discrete"
                                         : "integrated",
                           "memory_bytes", (json_int_t)g->memory_bytes, "memory_free_bytes", (json_int_t)g->memory_free, "fp16_storage",
                           g->fp16_storage, "fp16_math", g->fp16_math, "subgroup_size", g->subgroup_size, "refused", g->refused));
    }
    json_t *root = json_pack("{s:o, s:s, s:s}", "devices", all, "auto", name, "why", why);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    if (text) puts(text);
    free(text);
    json_decref(root);
}

int cmd_devices(const options *o) {
    gpu_info list[MOST_DEVICES];
    int count = gpu_list(list, MOST_DEVICES);
    if (count > MOST_DEVICES) count = MOST_DEVICES;
    cpu_info cpu = cpu_look();
    char name[256], why[1024];
    auto_choice(list, count, name, sizeof name, why, sizeof why);
    if (o->json)
        print_json(list, count, &cpu, name, why);
    else
        print_text(list, count, &cpu, name, why);
    return EXIT_DONE;
}
