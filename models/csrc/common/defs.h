// Shared by all operations: marks functions whose arithmetic serves host and device alike.
#pragma once

#if defined(__CUDACC__)
#define OPUS_HD __host__ __device__ __forceinline__
#else
#define OPUS_HD inline
#endif
