/* bench_kernels: what every set of CPU kernels that this processor runs reaches on the shapes of Stable Diffusion 1.5, in GFLOP/s and as
   a share of the processor's own measured peak; a Markdown table. A Winograd convolution counts the operations of the direct one, so it
   can pass 100 %.

   usage: bench_kernels [--threads N] [--seconds S] [--only TEXT] [--kernels SET] */
#include "base/memory.h"
#include "base/random.h"
#include "bench/kernels/peak.h"
#include "cpu/cpu.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum shape_kind { LINEAR, CONVOLUTION, ATTENTION } shape_kind;

/* Linear: [m, k] x [k, n]. Convolution 3x3: k to n channels, m x m pixels in. Attention: 8 heads of width k, m queries, n keys.
   Sizes are those of a 512x512 picture. */
typedef struct shape {
    shape_kind kind;
    const char *where;
    int64_t m, k, n;
    int stride; /* of a convolution */
} shape;

static const shape shapes[] = {
    {LINEAR, "to_q, to_k, to_v, to_out at 64x64", 4096, 320, 320, 0},
    {LINEAR, "to_q, to_k, to_v, to_out at 32x32", 1024, 640, 640, 0},
    {LINEAR, "to_q, to_k, to_v, to_out at 16x16", 256, 1280, 1280, 0},
    {LINEAR, "feed-forward in at 64x64", 4096, 320, 2560, 0},
    {LINEAR, "feed-forward in at 32x32", 1024, 640, 5120, 0},
    {LINEAR, "feed-forward in at 16x16", 256, 1280, 10240, 0},
    {LINEAR, "feed-forward out at 64x64", 4096, 1280, 320, 0},
    {LINEAR, "feed-forward out at 32x32", 1024, 2560, 640, 0},
    {LINEAR, "feed-forward out at 16x16", 256, 5120, 1280, 0},
    {LINEAR, "text to_k, to_v at 64x64", 77, 768, 320, 0},
    {LINEAR, "text to_k, to_v at 16x16", 77, 768, 1280, 0},
    {LINEAR, "LoRA down, rank 16, at 64x64", 4096, 320, 16, 0},
    {LINEAR, "LoRA up, rank 16, at 64x64", 4096, 16, 320, 0},
    {LINEAR, "skip 1x1 at 64x64", 4096, 960, 320, 0},
    {CONVOLUTION, "in", 64, 4, 320, 1},
    {CONVOLUTION, "residual block", 64, 320, 320, 1},
    {CONVOLUTION, "residual block behind a skip", 64, 960, 320, 1},
    {CONVOLUTION, "residual block", 32, 640, 640, 1},
    {CONVOLUTION, "residual block behind a skip", 32, 1920, 640, 1},
    {CONVOLUTION, "residual block", 16, 1280, 1280, 1},
    {CONVOLUTION, "residual block behind a skip", 16, 2560, 1280, 1},
    {CONVOLUTION, "residual block", 8, 1280, 1280, 1},
    {CONVOLUTION, "residual block behind a skip", 8, 2560, 1280, 1},
    {CONVOLUTION, "downsampling", 64, 320, 320, 2},
    {CONVOLUTION, "downsampling", 32, 640, 640, 2},
    {CONVOLUTION, "VAE", 64, 512, 512, 1},
    {CONVOLUTION, "VAE", 256, 256, 256, 1},
    {CONVOLUTION, "VAE", 512, 128, 128, 1},
    {ATTENTION, "self at 64x64", 4096, 40, 4096, 0},
    {ATTENTION, "self at 32x32", 1024, 80, 1024, 0},
    {ATTENTION, "self at 16x16", 256, 160, 256, 0},
    {ATTENTION, "text at 64x64", 4096, 40, 77, 0},
    {ATTENTION, "text at 32x32", 1024, 80, 77, 0},
    {ATTENTION, "text at 16x16", 256, 160, 77, 0},
};

enum { HEADS = 8, MOST_COLUMNS = 16, MOST_RUNS = 1000 };

/* How a shape is run: forward, or the gradient of its input (of queries, keys and values). */
typedef enum direction { FORWARD, BACKWARD, DIRECTIONS } direction;

typedef struct column {
    const cpu_kernels *kernels;
    bool bf16;
    double peak;
} column;

typedef struct settings {
    int threads;
    double seconds; /* for every figure */
    const char *only, *kernels;
} settings;

static void refuse(const char *what) {
    fprintf(stderr, "bench_kernels: %s; usage: bench_kernels [--threads N] [--seconds S] [--only TEXT] [--kernels SET]\n", what);
    exit(2);
}

static settings settings_read(int argc, char **argv) {
    settings s = {.threads = omp_get_max_threads(), .seconds = 0.3};
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc) refuse("an option without a value");
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--threads"))
            s.threads = atoi(value);
        else if (!strcmp(name, "--seconds"))
            s.seconds = atof(value);
        else if (!strcmp(name, "--only"))
            s.only = value;
        else if (!strcmp(name, "--kernels"))
            s.kernels = value;
        else
            refuse(name);
    }
    if (s.threads < 1) refuse("--threads must be 1 or more");
    return s;
}

/* ---- one figure ---- */

static void *block_new(size_t bytes) {
    void *block = memory_try_aligned(bytes ? bytes : 64);
    if (block) return memset(block, 0, bytes);
    fprintf(stderr, "bench_kernels: no memory for %zu bytes\n", bytes);
    exit(1);
}

static float *values_new(int64_t count, uint64_t stream) {
    float *x = block_new((size_t)count * sizeof *x);
    random_normal_fill(1, RANDOM_STREAM_NOISE, stream, x, (size_t)count);
    return x;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median time of a run, after one that warms up. */
static double time_runs(void (*run)(void *), void *what, double seconds) {
    static double runs[MOST_RUNS];
    int count = 0;
    run(what);
    for (double begin = bench_clock(); count < 3 || (count < MOST_RUNS && bench_clock() - begin < seconds); count++) {
        double start = bench_clock();
        run(what);
        runs[count] = bench_clock() - start;
    }
    qsort(runs, (size_t)count, sizeof *runs, by_size);
    return runs[count / 2];
}

typedef struct call {
    const cpu_kernels *kernels;
    cpu_gemm gemm;
    cpu_attention attention;
    int threads;
    void *scratch;
    bool winograd, backward;
} call;

static void run_gemm(void *what) {
    const call *c = what;
    (c->winograd ? c->kernels->winograd : c->kernels->gemm)(&c->gemm, c->threads, c->scratch);
}

static void run_attention(void *what) {
    const call *c = what;
    (c->backward ? c->kernels->attention_grad : c->kernels->attention)(&c->attention, c->threads, c->scratch);
}

/* As a tape runs a product of bf16 operands: rows stored so, weights packed. Their memory; free it. */
static void *gemm_narrow(const cpu_kernels *kernels, cpu_gemm *g, int64_t a_count) {
    cpu_weights w = {g->b, g->b_type, g->taps, g->kn ? g->k : g->n, g->kn ? g->n : g->k};
    size_t packed = kernels->pack_bytes(&w), rows = (size_t)a_count * sizeof(uint16_t);
    char *memory = block_new(packed + rows);
    kernels->pack(&w, memory);
    dtype_from_f32(memory + packed, DTYPE_BF16, g->a, (size_t)a_count);
    g->b = memory, g->packed = true;
    g->a = memory + packed, g->a_type = DTYPE_BF16;
    return memory;
}

/* Weights as the files have them: fp16. Returns GFLOP/s; 0 where the kernel does not serve the shape. */
static double measure_gemm(const shape *s, direction d, bool winograd, const column *col, const settings *set) {
    bool conv = s->kind == CONVOLUTION, back = d == BACKWARD;
    int64_t out = conv ? s->m / s->stride : 0, from = back ? s->n : s->k, to = back ? s->k : s->n;
    int64_t large = conv ? s->m * s->m : s->m, small = conv ? out * out : s->m, rows = back ? large : small, taps = conv ? 9 : 1;
    int64_t height = back ? s->m : out, source = back ? out : s->m;
    cpu_gather gather = {height, height, source, source, 3, s->stride, 1, back};
    size_t weights = (size_t)(taps * s->k * s->n);
    int64_t a_count = (back ? small : large) * from;
    float *a = values_new(a_count, 1), *values = values_new((int64_t)weights, 2);
    void *b = block_new(weights * 2), *narrow = NULL;
    dtype_from_f32(b, DTYPE_F16, values, weights);
    float *c = block_new((size_t)(rows * to) * sizeof *c);
    call what = {.kernels = col->kernels, .threads = set->threads, .winograd = winograd};
    what.gemm = (cpu_gemm){.m = rows,
                           .n = to,
                           .k = from,
                           .taps = (int)taps,
                           .gather = conv ? &gather : NULL,
                           .a = a,
                           .lda = from,
                           .b = b,
                           .b_type = DTYPE_F16,
                           .kn = back,
                           .scale = 1,
                           .c = c,
                           .rows_per_image = rows,
                           .bf16 = col->bf16};
    double rate = 0;
    if (!winograd && col->kernels->narrow && col->kernels->narrow(&what.gemm)) narrow = gemm_narrow(col->kernels, &what.gemm, a_count);
    if (!winograd || col->kernels->winograd_serves(&what.gemm)) {
        size_t bytes = (winograd ? col->kernels->winograd_scratch : col->kernels->gemm_scratch)(&what.gemm, set->threads);
        what.scratch = block_new(bytes);
        rate = 2e-9 * (double)(small * taps * s->k * s->n) / time_runs(run_gemm, &what, set->seconds);
    }
    free(a), free(values), free(b), free(c), free(narrow), free(what.scratch);
    return rate;
}

static double measure_attention(const shape *s, direction d, const column *col, const settings *set) {
    int64_t width = HEADS * s->k;
    float *block[9]; /* q, k, v, o, its gradient, gradients of q, k, v, log-sum-exp */
    for (uint64_t i = 0; i < 9; i++) {
        bool keys = i == 1 || i == 2 || i == 6 || i == 7;
        block[i] = values_new(i == 8 ? HEADS * s->m : (keys ? s->n : s->m) * width, i);
    }
    call what = {.kernels = col->kernels, .threads = set->threads, .backward = d == BACKWARD};
    what.attention = (cpu_attention){.images = 1,
                                     .heads = HEADS,
                                     .tq = s->m,
                                     .tk = s->n,
                                     .width = s->k,
                                     .scale = 0.1f,
                                     .q = block[0],
                                     .k = block[1],
                                     .v = block[2],
                                     .o = block[3],
                                     .lse = block[8],
                                     .dout = block[4],
                                     .dq = block[5],
                                     .dk = block[6],
                                     .dv = block[7],
                                     .bf16 = col->bf16};
    size_t forward = col->kernels->attention_scratch(&what.attention, set->threads),
           backward = col->kernels->attention_grad_scratch(&what.attention, set->threads);
    what.scratch = block_new(forward > backward ? forward : backward);
    col->kernels->attention(&what.attention, set->threads, what.scratch); /* backward reads its results */
    double flops = (d == BACKWARD ? 10.0 : 4.0) * (double)(HEADS * s->m * s->n * s->k);
    double rate = 1e-9 * flops / time_runs(run_attention, &what, set->seconds);
    for (int i = 0; i < 9; i++) free(block[i]);
    free(what.scratch);
    return rate;
}

/* ---- the table ---- */

static void print_name(const shape *s, direction d, bool winograd, char *out, size_t size) {
    const char *way = d == BACKWARD ? "backward" : "forward";
    int n = s->kind == LINEAR ? snprintf(out, size, "linear %lld, %lld to %lld", (long long)s->m, (long long)s->k, (long long)s->n)
            : s->kind == CONVOLUTION
                ? snprintf(out, size, "convolution 3x3%s %lld to %lld at %lldx%lld", s->stride > 1 ? ", stride 2," : "", (long long)s->k,
                           (long long)s->n, (long long)s->m, (long long)s->m)
                : snprintf(out, size, "attention %lld x %lld, heads of %lld", (long long)s->m, (long long)s->n, (long long)s->k);
    snprintf(out + n, size - (size_t)n, " (%s) | %s%s", s->where, winograd ? "Winograd " : "", way);
}

static void print_row(const shape *s, direction d, bool winograd, const column *columns, int count, const settings *set) {
    char name[200];
    print_name(s, d, winograd, name, sizeof name);
    if (set->only && !strstr(name, set->only)) return;
    printf("| %s |", name);
    for (int i = 0; i < count; i++) {
        double rate = s->kind == ATTENTION ? measure_attention(s, d, &columns[i], set) : measure_gemm(s, d, winograd, &columns[i], set);
        if (rate > 0)
            printf(" %.0f (%.0f %%) |", rate, 100 * rate / columns[i].peak);
        else
            printf(" - |");
        fflush(stdout);
    }
    puts("");
}

static int columns_make(column *columns, const settings *set) {
    int count = 0;
    for (int i = 0; cpu_kernels_at(i); i++) {
        const cpu_kernels *k = cpu_kernels_at(i);
        if (set->kernels && strcmp(set->kernels, k->name) != 0) continue;
        for (int bf16 = 0; bf16 <= k->bf16 && count < MOST_COLUMNS; bf16++)
            columns[count++] = (column){k, bf16 != 0, 1e-9 * peak_measure(k->name, bf16 != 0, set->threads)};
    }
    return count;
}

int main(int argc, char **argv) {
    settings set = settings_read(argc, argv);
    column columns[MOST_COLUMNS];
    int count = columns_make(columns, &set);
    if (count == 0) {
        fprintf(stderr, "bench_kernels: this processor runs none of the sets of kernels%s%s\n", set.kernels ? " called " : "",
                set.kernels ? set.kernels : "");
        return 1;
    }
    printf("GFLOP/s of %d thread%s, and the share of the measured peak. Weights fp16; in bf16 packed, and rows stored so.\n\n| shape | "
           "kernel |",
           set.threads, set.threads == 1 ? "" : "s");
    for (int i = 0; i < count; i++) printf(" %s %s |", columns[i].kernels->name, columns[i].bf16 ? "bf16" : "fp32");
    printf("\n|---|---|");
    for (int i = 0; i < count; i++) printf("---|");
    printf("\n| peak | |");
    for (int i = 0; i < count; i++) printf(" %.0f |", columns[i].peak);
    puts("");
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int d = 0; d < DIRECTIONS; d++)
            for (int w = 0; w <= (shapes[s].kind == CONVOLUTION && shapes[s].stride == 1); w++)
                print_row(&shapes[s], (direction)d, w != 0, columns, count, &set);
    return 0;
}
