// The dialect of the kernels, in CUDA C++; prelude_opencl.h tells what its words mean. NVRTC compiles it without any header.

#define KERNEL extern "C" __global__ __launch_bounds__(LANES)
#define FUNCTION static __device__ inline
#define GLOBAL
#define LOCAL __shared__
#define TO_LOCAL
#define BARRIER() __syncthreads()
#define GROUP(axis) ((int)((axis) == 0 ? blockIdx.x : (axis) == 1 ? blockIdx.y : blockIdx.z))
#define N_GROUPS(axis) ((int)((axis) == 0 ? gridDim.x : (axis) == 1 ? gridDim.y : gridDim.z))
#define LANE ((int)threadIdx.x)
#define UNROLL _Pragma("unroll")

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long long ulong;  // 64 bits, which CUDA's own long has on Linux only

#define INFINITY __int_as_float(0x7f800000)
#define as_float(bits) __uint_as_float(bits)
#define as_uint(x) __float_as_uint(x)
#define mul_hi(a, b) __umul64hi(a, b)

// The nearest float16, ties to even.
FUNCTION void store_half(ushort* target, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(*target) : "f"(x)); }
