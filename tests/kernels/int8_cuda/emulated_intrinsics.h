// intrinsics.cuh on a CPU: threads are fibers that take turns in a random order, instructions of a warp take what all
// its lanes bring. Asynchronous copies land as late as they may, so that a wait that is missing shows. What an
// instruction does is written from the PTX ISA, not from intrinsics.cuh. Blocks run one after another.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct Index {
    unsigned x;
};
static Index threadIdx, blockIdx;

constexpr int LANES = 32;
constexpr size_t STACK_BYTES = 64 * 1024;

struct Barrier {
    int arrived = 0;
    unsigned generation = 0;
};

struct AsyncCopy {
    char* shared;
    const char* global;
    int num_bytes;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Barrier* waits_for = nullptr;
    unsigned generation = 0;
    unsigned num_collectives = 0;
    bool done = false;
    std::vector<AsyncCopy> begun;
    std::deque<std::vector<AsyncCopy>> groups;
};

// What the lanes of a warp bring to an instruction. Two in turns: a lane may be one instruction ahead of others.
struct Warp {
    Barrier barrier;
    unsigned words[2][LANES][8];
    const void* rows[2][LANES];
};

static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Barrier block_barrier;
static std::function<void()> kernel;

static Fiber& this_fiber() { return fibers[threadIdx.x]; }

static void wait_at(Barrier& barrier, int num_threads) {
    Fiber& fiber = this_fiber();
    if (++barrier.arrived == num_threads) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    fiber.waits_for = &barrier;
    fiber.generation = barrier.generation;
    swapcontext(&fiber.context, &scheduler);
}

static void __syncthreads() { wait_at(block_barrier, fibers.size()); }

static void run_fiber() {
    kernel();
    this_fiber().done = true;
}

static void run_block(unsigned num_threads, std::mt19937& random) {
    fibers.clear();
    fibers.resize(num_threads);
    warps.assign(num_threads / LANES, Warp());
    block_barrier = Barrier();
    std::vector<unsigned> order;
    for (unsigned thread = 0; thread < num_threads; ++thread) {
        Fiber& fiber = fibers[thread];
        fiber.stack.reset(new char[STACK_BYTES]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, run_fiber, 0);
        order.push_back(thread);
    }
    bool any_left = true;
    while (any_left) {
        any_left = false;
        bool any_ran = false;
        std::shuffle(order.begin(), order.end(), random);
        for (unsigned thread : order) {
            Fiber& fiber = fibers[thread];
            if (fiber.done) continue;
            any_left = true;
            if (fiber.waits_for && fiber.waits_for->generation == fiber.generation) continue;
            fiber.waits_for = nullptr;
            any_ran = true;
            threadIdx.x = thread;
            swapcontext(&scheduler, &fiber.context);
        }
        if (any_left && !any_ran) {
            std::fprintf(stderr, "a barrier that not all threads of block %u reach\n", blockIdx.x);
            std::abort();
        }
    }
}

// Runs every block of a kernel, in a random order of blocks and threads.
static void launch(unsigned num_blocks, unsigned num_threads, unsigned seed, std::function<void()> body) {
    std::mt19937 random(seed);
    kernel = body;
    std::vector<unsigned> blocks(num_blocks);
    for (unsigned block = 0; block < num_blocks; ++block) blocks[block] = block;
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (unsigned block : blocks) {
        blockIdx.x = block;
        run_block(num_threads, random);
    }
}

// An instruction of a warp: brings words and waits for the others'. Returns what all lanes brought.
static Warp& bring(int& turn, const unsigned* words, int num_words, const void* row = nullptr) {
    Warp& warp = warps[threadIdx.x / LANES];
    turn = this_fiber().num_collectives++ % 2;
    const int lane = threadIdx.x % LANES;
    std::copy(words, words + num_words, warp.words[turn][lane]);
    warp.rows[turn][lane] = row;
    wait_at(warp.barrier, LANES);
    return warp;
}

// Element `byte` (0 to 3) of a register with four 8-bit ones, the lowest first.
static int code_in(unsigned word, int byte) { return static_cast<signed char>(word >> (8 * byte)); }

// The 32 banks of shared memory, 4 bytes each, serve eight rows of 16 bytes at once if none meet in a bank.
static int num_conflicts = 0;

static void note_banks(const void* const* rows) {
    unsigned taken = 0;
    for (int row = 0; row < 8; ++row) taken |= 1u << reinterpret_cast<size_t>(rows[row]) % 128 / 16;
    num_conflicts += taken != 0xff;
}

static void load_matrices(unsigned (&loaded)[4], const void* row) {
    int turn;
    Warp& warp = bring(turn, nullptr, 0, row);
    const int lane = threadIdx.x % LANES;
    for (int matrix = 0; matrix < 4; ++matrix) {
        if (lane == 0) note_banks(warp.rows[turn] + 8 * matrix);
        const void* source = warp.rows[turn][8 * matrix + lane / 4];
        if (reinterpret_cast<size_t>(source) % 16) std::abort();
        std::memcpy(&loaded[matrix], static_cast<const char*>(source) + lane % 4 * 4, 4);
    }
}

#if COMPUTES_AS >= 800
static void copy_async(void* shared, const void* global, int num_bytes) {
    if (reinterpret_cast<size_t>(shared) % 16 || reinterpret_cast<size_t>(global) % 16) std::abort();
    this_fiber().begun.push_back({static_cast<char*>(shared), static_cast<const char*>(global), num_bytes});
}

static void commit_copies() {
    this_fiber().groups.push_back(std::move(this_fiber().begun));
    this_fiber().begun.clear();
}

template <int num_newest>
static void await_copies() {
    auto& groups = this_fiber().groups;
    for (; static_cast<int>(groups.size()) > num_newest; groups.pop_front())
        for (const AsyncCopy& copy : groups.front()) {
            std::memset(copy.shared, 0, 16);
            std::memcpy(copy.shared, copy.global, copy.num_bytes);
        }
}

// PTX ISA, "Matrix Fragments for mma.m16n8k32", .s8: with groupID = lane >> 2 and threadID_in_group = lane % 4
//   a_i (i of 16): row groupID for 0 <= i < 4 or 8 <= i < 12, else groupID + 8; column threadID_in_group * 4 +
//                  (i & 3), plus 16 for i >= 8
//   b_i (i of 8):  row threadID_in_group * 4 + (i & 3), plus 16 for i >= 4; column groupID
//   c_i (i of 4):  row groupID, plus 8 for i >= 2; column threadID_in_group * 2 + (i & 1)
static void mma_16x8x32(int (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    int turn;
    Warp& warp = bring(turn, words, 6);
    const int group = threadIdx.x % LANES >> 2, in_group = threadIdx.x % LANES % 4;
    for (int c = 0; c < 4; ++c) {
        const int row = c < 2 ? group : group + 8, column = in_group * 2 + (c & 1);
        for (int k = 0; k < 32; ++k) {
            const int a_index = (k % 4) + (row >= 8 ? 4 : 0) + (k >= 16 ? 8 : 0), a_lane = row % 8 * 4 + k % 16 / 4;
            const int b_index = (k % 4) + (k >= 16 ? 4 : 0), b_lane = column * 4 + k % 16 / 4;
            sums[c] += code_in(warp.words[turn][a_lane][a_index / 4], a_index % 4) *
                       code_in(warp.words[turn][b_lane][4 + b_index / 4], b_index % 4);
        }
    }
}
#else
// PTX ISA, "Matrix Fragments for mma.m8n8k16", .s8
//   a_i (i of 4): row groupID, column threadID_in_group * 4 + i
//   b_i (i of 4): row threadID_in_group * 4 + i, column groupID
//   c_i (i of 2): row groupID, column threadID_in_group * 2 + i
static void mma_8x8x16(int& sum0, int& sum1, unsigned a, unsigned b) {
    const unsigned words[2] = {a, b};
    int turn;
    Warp& warp = bring(turn, words, 2);
    const int group = threadIdx.x % LANES >> 2, in_group = threadIdx.x % LANES % 4;
    int* sums[2] = {&sum0, &sum1};
    for (int c = 0; c < 2; ++c)
        for (int k = 0; k < 16; ++k)
            *sums[c] += code_in(warp.words[turn][group * 4 + k / 4][0], k % 4) *
                        code_in(warp.words[turn][(in_group * 2 + c) * 4 + k / 4][1], k % 4);
}
#endif

static unsigned exchange(unsigned value, int bits) {
    int turn;
    Warp& warp = bring(turn, &value, 1);
    return warp.words[turn][threadIdx.x % LANES ^ bits][0];
}

static unsigned float_bits(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
static float bits_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static float square_root(float value) { return std::sqrt(value); }
static float round_half_even(float value) { return std::nearbyint(value); }
static float half_to_float(unsigned short bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return value;
}
static unsigned short float_to_half(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    unsigned short bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}
