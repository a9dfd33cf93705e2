// Group norm of small images: one workgroup holds a whole group of one image in its registers. x: [images, pixels, groups, COLUMNS] of STEP
// channels each. THREADS is a multiple of COLUMNS: a thread has one step of channels of CHUNKS pixels. Workgroup (group, image).
const uint LANES = THREADS / COLUMNS;
#define EACH_CHUNK [[unroll]] for (uint c = 0; c < CHUNKS; c++)
#define COLUMN (gl_LocalInvocationID.x % COLUMNS)
#define PIXEL(c) (gl_LocalInvocationID.x / COLUMNS + c * LANES)
#define CLAMPED(c) min(PIXEL(c), p.pixels - 1) // no load under a branch: it would be waited for
#define AT(pixel) (((gl_WorkGroupID.y * p.pixels + pixel) * p.groups + gl_WorkGroupID.x) * COLUMNS + COLUMN)
