#include "ops/kernel.h"

#include <stdio.h>
#include <string.h>

kernel_call kernel_named(const char *name) {
    kernel_call k = {.range_count = 0};
    snprintf(k.shader, sizeof k.shader, "%s", name);
    return k;
}

void kernel_type(kernel_call *k, const tensor *x) {
    size_t length = strlen(k->shader);
    if (length + 3 > sizeof k->shader) return;
    if (k->type_count++ == 0) k->shader[length++] = '_';
    k->shader[length++] = x->type == DTYPE_F16 ? 'h' : 'f';
    k->shader[length] = 0;
}

void kernel_bind(kernel_call *k, gpu_range range, bool written) {
    if (k->range_count == KERNEL_BINDINGS) return;
    if (written) k->written |= 1u << k->range_count;
    k->ranges[k->range_count++] = range;
}

void kernel_read(kernel_call *k, const tensor *x) { kernel_bind(k, x->gpu, false); }
void kernel_write(kernel_call *k, const tensor *x) { kernel_bind(k, x->gpu, true); }

void kernel_read_typed(kernel_call *k, const tensor *x) {
    kernel_type(k, x);
    kernel_read(k, x);
}

void kernel_write_typed(kernel_call *k, const tensor *x) {
    kernel_type(k, x);
    kernel_write(k, x);
}

void kernel_constant(kernel_call *k, int64_t value) {
    if (k->constant_count < KERNEL_CONSTANTS) k->constants[k->constant_count++] = (uint32_t)value;
}

void kernel_push(kernel_call *k, int64_t value) {
    if (k->push_count < KERNEL_PUSH) k->push[k->push_count++] = (uint32_t)value;
}

void kernel_push_float(kernel_call *k, float value) {
    if (k->push_count < KERNEL_PUSH) memcpy(&k->push[k->push_count++], &value, sizeof value);
}

void kernel_push_divisor(kernel_call *k, int64_t divisor) {
    uint64_t d = (uint64_t)divisor, shift = 0;
    while ((uint64_t)1 << shift < d) shift++;
    kernel_push(k, (int64_t)(((((uint64_t)1 << shift) - d) << 32) / d + 1));
    kernel_push(k, (int64_t)shift);
}

void kernel_run(const kernel_call *k, gpu_recording *rec, int64_t x, int64_t y, int64_t z, double flops) {
    gpu_dispatch d = {.shader = k->shader,
                      .constants = k->constants,
                      .constant_count = k->constant_count,
                      .push = k->push,
                      .push_bytes = (uint32_t)(k->push_count * (int)sizeof(uint32_t)),
                      .ranges = k->ranges,
                      .range_count = k->range_count,
                      .written = k->written,
                      .subgroup = k->subgroup,
                      .groups = {(uint32_t)x, (uint32_t)y, (uint32_t)z}};
    gpu_record(rec, &d, flops);
}

void kernel_run_groups(const kernel_call *k, gpu_recording *rec, int64_t groups) {
    const uint32_t most = gpu_get_limits(gpu_recording_device(rec))->groups[0];
    const int64_t row = most < 32768 ? most : 32768;
    if (groups <= row)
        kernel_run(k, rec, groups, 1, 1, 0);
    else
        kernel_run(k, rec, row, kernel_groups(groups, row), 1, 0);
}

void kernel_run_over(const kernel_call *k, gpu_recording *rec, int64_t elements) {
    kernel_run_groups(k, rec, kernel_groups(elements, 128));
}

void kernel_reduce(gpu_recording *rec, const tensor *parts, const tensor *to, int64_t outer, int64_t splits, int64_t inner,
                   bool accumulate) {
    const int64_t step = kernel_fours(inner) ? 4 : 1;
    kernel_call k = kernel_named("reduce");
    kernel_read(&k, parts);
    kernel_write(&k, to);
    kernel_constant(&k, step);
    kernel_push(&k, outer);
    kernel_push(&k, splits);
    kernel_push(&k, inner / step);
    kernel_push_divisor(&k, inner / step);
    kernel_push(&k, accumulate);
    kernel_run_over(&k, rec, outer * inner / step);
}
