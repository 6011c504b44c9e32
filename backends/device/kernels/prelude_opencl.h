// The dialect of the kernels, in OpenCL C 1.2.
//
// A kernel runs in many work-items at once. GROUP(0) tells which of N_GROUPS(0) work-groups one belongs to, LANE its place
// there. LANES is the number of work-items of a group, known when the kernel is compiled. Work-items of a group can share
// memory that is LOCAL, and wait for each other at a BARRIER. Everything else a kernel needs is plain C.

#define KERNEL __kernel __attribute__((reqd_work_group_size(LANES, 1, 1)))  // registers are shared out for so many
#define FUNCTION static inline
#define GLOBAL __global
#define LOCAL __local
#define TO_LOCAL __local  // of a parameter that points there, which CUDA writes in another way
#if LANES == 1
#define BARRIER()  // nobody to wait for
#else
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE)
#endif
#define GROUP(axis) ((int)get_group_id(axis))
#define N_GROUPS(axis) ((int)get_num_groups(axis))
#define LANE ((int)get_local_id(0))
#define UNROLL _Pragma("unroll")  // before a loop of known length: as many copies of its body

// as_float, as_uint, mul_hi, sin, cos, sqrt, min, max are OpenCL's own.

// The nearest float16, ties to even. Core OpenCL, although arithmetic in float16 is not; an x86 CPU has an instruction for it,
// which compilers do not find by themselves.
#if defined(__F16C__) && LANES == 1
FUNCTION void store_half(GLOBAL ushort* target, float x) { *target = __builtin_ia32_vcvtps2ph256((float8)x, 0)[0]; }
#else
FUNCTION void store_half(GLOBAL ushort* target, float x) { vstore_half_rte(x, 0, (GLOBAL half*)target); }
#endif
