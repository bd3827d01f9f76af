// The instructions that kernels.cu is made of, a function each. In place of this file the tests put functions of the
// same names that do on a CPU what the PTX ISA says (tests/kernels/int8_cuda/emulated_intrinsics.h). Compiled by
// NVRTC: nothing is included. Source of the layouts: PTX ISA 8.7, sections "Matrix Fragments for mma.m8n8k16",
// "Matrix Fragments for mma.m16n8k32", "ldmatrix", "cp.async".

// Every card can do what older ones do: a newer one shows whether the code for sm75 is right.
#ifndef COMPUTES_AS
#define COMPUTES_AS __CUDA_ARCH__
#endif

__device__ inline unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Four matrices of 8 rows of 16 bytes; lane 8 i + r names the address of row r of matrix i. Lane 4 r + c gets
// bytes 4 c to 4 c + 3 of row r of matrix i in loaded[i].
__device__ inline void load_matrices(unsigned (&loaded)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(loaded[0]), "=r"(loaded[1]), "=r"(loaded[2]), "=r"(loaded[3])
                 : "r"(shared_address(row))
                 : "memory");
}

#if COMPUTES_AS >= 800
// Begins a copy of 16 bytes to shared memory, of which the first num_bytes are read and the others are zero.
__device__ inline void copy_async(void* shared, const void* global, int num_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(num_bytes)
                 : "memory");
}

// The copies that this thread began since the last call are a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's groups but for the newest ones.
template <int num_newest>
__device__ inline void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(num_newest) : "memory");
}

// sums += a [16, 32] times b [8, 32] transposed, of int8. Lane 4 g + t holds
//   a[0], a[1], a[2], a[3]   bytes 4 t to 4 t + 3 of rows g, g + 8, and bytes 16 + 4 t to 19 + 4 t of the same rows
//   b[0], b[1]               bytes 4 t to 4 t + 3 of row g, and bytes 16 + 4 t to 19 + 4 t
//   sums[0..3]               (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1) of the product [16, 8]
__device__ inline void mma_16x8x32(int (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
// sums += a [8, 16] times b [8, 16] transposed, of int8. Lane 4 g + t holds bytes 4 t to 4 t + 3 of row g of a and
// of b, and (g, 2 t), (g, 2 t + 1) of the product [8, 8].
__device__ inline void mma_8x8x16(int& sum0, int& sum1, unsigned a, unsigned b) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(sum0), "+r"(sum1)
        : "r"(a), "r"(b));
}
#endif

// The value of the lane whose number differs in these bits.
__device__ inline unsigned exchange(unsigned value, int bits) { return __shfl_xor_sync(0xffffffffu, value, bits); }

__device__ inline unsigned float_bits(float value) { return __float_as_uint(value); }
__device__ inline float bits_float(unsigned bits) { return __uint_as_float(bits); }
__device__ inline float square_root(float value) { return sqrtf(value); }
__device__ inline float round_half_even(float value) { return rintf(value); }

__device__ inline float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ inline unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
