// int8 linear layers on tensor cores: rows rounded to int8 (after RMSNorm, after a residual), and the product of
// two int8 matrices with the scales in its epilogue. Knows the hardware through intrinsics.cuh alone, so that the
// tests run this very file on a CPU. ELEMENT_FLOAT16, ELEMENT_BFLOAT16 or ELEMENT_FLOAT32 says what activations are.
// Legend: T tokens, N outputs, K inputs, D width of a row.

#if defined(ELEMENT_FLOAT16)
using Element = unsigned short;
__device__ inline float to_float(Element bits) { return half_to_float(bits); }
__device__ inline Element to_element(float value) { return float_to_half(value); }
#elif defined(ELEMENT_BFLOAT16)
using Element = unsigned short;
__device__ inline float to_float(Element bits) { return bits_float(static_cast<unsigned>(bits) << 16); }
// Half to even; a NaN stays one, quiet.
__device__ inline Element to_element(float value) {
    const unsigned bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<Element>((bits >> 16) | 0x40u);
    return static_cast<Element>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#else
using Element = float;
__device__ inline float to_float(Element value) { return value; }
__device__ inline Element to_element(float value) { return value; }
#endif

constexpr int WARP_SIZE = 32;

// ---- The product -----------------------------------------------------------------------------------------------
// A block computes TILE_T x TILE_N outputs, its warps 2 x 4 parts of 64 x 32 of them, over steps of TILE_K bytes of
// both operands' rows. While a step is multiplied, the next ones are copied into the other stages. sm75 has neither
// cp.async nor the larger MMA: copies pass through registers, and four MMAs do the work of one.

#define HAS_ASYNC_COPIES (COMPUTES_AS >= 800)
constexpr int NUM_STAGES = HAS_ASYNC_COPIES ? 3 : 2;

constexpr int TILE_T = 128, TILE_N = 128, TILE_K = 64;
constexpr int WARPS_N = 4;
constexpr int WARP_T = 64, WARP_N = 32;
constexpr int GEMM_THREADS = WARP_SIZE * (TILE_T / WARP_T) * WARPS_N;

constexpr int MMA_T = 16, MMA_N = 8, MMA_K = 32;
constexpr int SUMS_T = WARP_T / MMA_T, SUMS_N = WARP_N / MMA_N;

constexpr int CHUNK = 16;
constexpr int ROW_CHUNKS = TILE_K / CHUNK;
constexpr int STAGE_BYTES = (TILE_T + TILE_N) * TILE_K;
constexpr int THREAD_CHUNKS = STAGE_BYTES / CHUNK / GEMM_THREADS;
constexpr int COPIED_ROWS = GEMM_THREADS / ROW_CHUNKS;

// Blocks that run at the same time share rows of both operands in the L2 cache: tiles go down GROUP_TILES of them
// before the next column. Source: Triton's tutorial "Matrix Multiplication", "L2 cache optimizations".
constexpr int GROUP_TILES = 8;

// Where a chunk of a row lies in a stage. Two rows fill the 32 banks, so chunks of a pair of rows change places with
// those of the next three: eight rows' same chunks, which load_matrices reads at once, are in different banks. Every
// eight rows lie alike, so that an offset in one of them serves for others: an address a thread, not one a load.
__device__ inline int chunk_offset(int row, int chunk) {
    return row * TILE_K + ((chunk ^ (row >> 1)) % ROW_CHUNKS) * CHUNK;
}

// Sixteen bytes, as copies move them.
struct alignas(CHUNK) Chunk {
    unsigned words[CHUNK / 4];
};

// Begins the copy of a chunk to shared memory; zeros instead where `inside` is false.
__device__ inline void begin_copy(Chunk& held, void* shared, const void* global, bool inside) {
#if HAS_ASYNC_COPIES
    copy_async(shared, global, inside ? CHUNK : 0);
#else
    held = inside ? *static_cast<const Chunk*>(global) : Chunk{};
#endif
}

// Ends a copy that passes through a register.
__device__ inline void finish_copy(const Chunk& held, void* shared) {
#if !HAS_ASYNC_COPIES
    *static_cast<Chunk*>(shared) = held;
#endif
}

__device__ inline void multiply_16x8x32(int (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if HAS_ASYNC_COPIES
    mma_16x8x32(sums, a, b0, b1);
#else
    mma_8x8x16(sums[0], sums[1], a[0], b0);
    mma_8x8x16(sums[2], sums[3], a[1], b0);
    mma_8x8x16(sums[0], sums[1], a[2], b1);
    mma_8x8x16(sums[2], sums[3], a[3], b1);
#endif
}

// Rows of both operands that a block reads: x's are rows 0 to TILE_T - 1 of a stage, the weight's lie below them.
struct Operands {
    const signed char* tokens;
    const signed char* outputs;
    int num_tokens, num_outputs, num_inputs;
};

__device__ inline void begin_step(const Operands& from, int step, char* stage, Chunk (&held)[THREAD_CHUNKS]) {
    const int first_row = threadIdx.x / ROW_CHUNKS, chunk = threadIdx.x % ROW_CHUNKS;
    const int column = step * TILE_K + chunk * CHUNK;
    char* first = stage + chunk_offset(first_row, chunk);
#pragma unroll
    for (int number = 0; number < THREAD_CHUNKS; ++number) {
        const int row = first_row + number * COPIED_ROWS;
        const bool is_token = number < THREAD_CHUNKS * TILE_T / (TILE_T + TILE_N);
        const int operand_row = is_token ? row : row - TILE_T;
        const bool inside =
            operand_row < (is_token ? from.num_tokens : from.num_outputs) && column < from.num_inputs;
        const unsigned place = inside ? operand_row * from.num_inputs + column : 0;
        const signed char* codes = is_token ? from.tokens : from.outputs;
        begin_copy(held[number], first + number * COPIED_ROWS * TILE_K, codes + place, inside);
    }
}

// What was begun since the last call is a step, also when it was nothing.
__device__ inline void close_step() {
#if HAS_ASYNC_COPIES
    commit_copies();
#endif
}

// Waits for all steps that were begun but the newest NUM_STAGES - 2.
__device__ inline void await_step() {
#if HAS_ASYNC_COPIES
    await_copies<NUM_STAGES - 2>();
#endif
}

__device__ inline void finish_step(char* stage, const Chunk (&held)[THREAD_CHUNKS]) {
    char* first = stage + chunk_offset(threadIdx.x / ROW_CHUNKS, threadIdx.x % ROW_CHUNKS);
#pragma unroll
    for (int number = 0; number < THREAD_CHUNKS; ++number)
        finish_copy(held[number], first + number * COPIED_ROWS * TILE_K);
}

__device__ inline void multiply_step(const char* stage, int (&sums)[SUMS_T][SUMS_N][4]) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int warp_token = warp / WARPS_N * WARP_T, warp_output = TILE_T + warp % WARPS_N * WARP_N;
#pragma unroll
    for (int first = 0; first < ROW_CHUNKS; first += MMA_K / CHUNK) {
        // Matrices: both chunks of rows 0 to 7, both of rows 8 to 15, which are the next MMA's.
        const int b_offset = chunk_offset(warp_output + lane % 8 + lane / 16 * 8, first + lane / 8 % 2);
        unsigned b[SUMS_N / 2][4];
#pragma unroll
        for (int j = 0; j < SUMS_N / 2; ++j) load_matrices(b[j], stage + b_offset + j * 2 * MMA_N * TILE_K);
        // Matrices: rows 0 to 7 and 8 to 15 of the first chunk, the same of the second.
        const int a_offset = chunk_offset(warp_token + lane % 16, first + lane / 16);
#pragma unroll
        for (int i = 0; i < SUMS_T; ++i) {
            unsigned a[4];
            load_matrices(a, stage + a_offset + i * MMA_T * TILE_K);
#pragma unroll
            for (int j = 0; j < SUMS_N; ++j)
                multiply_16x8x32(sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
}

// Two outputs of a token that are neighbours: they are written at once.
struct alignas(2 * sizeof(Element)) Pair {
    Element values[2];
};

// output_TN = codes_TK codes_NK^T * scale_T * scale_N + bias_N + addend_TN, in float32, rounded once.
// K and N are multiples of 16, codes begin at multiples of 16 bytes; bias and addend may be null, and the addend
// may be the output. Launched with GEMM_THREADS threads and a block for every tile.
extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 2)
    int8_gemm(const signed char* codes_TK, const float* scale_T, const signed char* codes_NK, const float* scale_N,
              const Element* bias_N, const Element* addend_TN, Element* output_TN, int num_tokens, int num_outputs,
              int num_inputs) {
    alignas(CHUNK) __shared__ char stages[NUM_STAGES][STAGE_BYTES];

    const int tiles_T = (num_tokens + TILE_T - 1) / TILE_T, tiles_N = (num_outputs + TILE_N - 1) / TILE_N;
    const int group = blockIdx.x / (GROUP_TILES * tiles_N), in_group = blockIdx.x % (GROUP_TILES * tiles_N);
    const int tiles_left = tiles_T - group * GROUP_TILES;
    const int group_size = tiles_left < GROUP_TILES ? tiles_left : GROUP_TILES;
    const int tile_T = group * GROUP_TILES + in_group % group_size, tile_N = in_group / group_size;
    const int block_token = tile_T * TILE_T, block_output = tile_N * TILE_N;
    const Operands from{codes_TK + static_cast<long long>(block_token) * num_inputs,
                        codes_NK + static_cast<long long>(block_output) * num_inputs, num_tokens - block_token,
                        num_outputs - block_output, num_inputs};

    const int num_steps = (num_inputs + TILE_K - 1) / TILE_K;
    Chunk held[THREAD_CHUNKS];
    for (int step = 0; step < NUM_STAGES - 1; ++step) {
        if (step < num_steps) {
            begin_step(from, step, stages[step], held);
            finish_step(stages[step], held);
        }
        close_step();
    }
    int sums[SUMS_T][SUMS_N][4] = {};
    for (int step = 0; step < num_steps; ++step) {
        // After it this step's chunks are there for all threads, and none still reads the step before.
        await_step();
        __syncthreads();
        const int ahead = step + NUM_STAGES - 1;
        if (ahead < num_steps) begin_step(from, ahead, stages[ahead % NUM_STAGES], held);
        close_step();
        multiply_step(stages[step % NUM_STAGES], sums);
        if (ahead < num_steps) finish_step(stages[ahead % NUM_STAGES], held);
    }

    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int first_token = block_token + warp / WARPS_N * WARP_T + lane / 4;
    const int first_output = block_output + warp % WARPS_N * WARP_N + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < SUMS_N; ++j) {
        const int output = first_output + j * MMA_N;
        if (output >= num_outputs) continue;
        const float scales[2] = {scale_N[output], scale_N[output + 1]};
        const float biases[2] = {bias_N ? to_float(bias_N[output]) : 0.0f,
                                 bias_N ? to_float(bias_N[output + 1]) : 0.0f};
#pragma unroll
        for (int i = 0; i < SUMS_T; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int token = first_token + i * MMA_T + half * 8;
                if (token >= num_tokens) continue;
                const long long place = static_cast<long long>(token) * num_outputs + output;
                Pair added{}, result;
                if (addend_TN) added = *reinterpret_cast<const Pair*>(addend_TN + place);
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    float value = static_cast<float>(sums[i][j][half * 2 + k]) * scale_T[token] * scales[k];
                    value += biases[k];
                    result.values[k] = to_element(addend_TN ? value + to_float(added.values[k]) : value);
                }
                *reinterpret_cast<Pair*>(output_TN + place) = result;
            }
    }
}

// ---- Rows to int8 ----------------------------------------------------------------------------------------------
// A block rounds one row; a thread has the same elements in every pass, so that it reads what it wrote itself. The
// row comes from memory once and from the caches then.

constexpr int ROW_THREADS = 256;
constexpr int ROW_WARPS = ROW_THREADS / WARP_SIZE;
constexpr int QUAD = 4;
constexpr float CODE_MAX = 127.0f;
constexpr float SMALLEST_SCALE = 1.17549435e-38f;

struct alignas(QUAD * sizeof(Element)) Quad {
    Element values[QUAD];
};
struct alignas(QUAD) QuadCodes {
    signed char values[QUAD];
};

struct Sum {
    __device__ unsigned operator()(unsigned one, unsigned other) const {
        return float_bits(bits_float(one) + bits_float(other));
    }
};
struct Largest {
    __device__ unsigned operator()(unsigned one, unsigned other) const { return one > other ? one : other; }
};

// Of all threads' words; every thread gets the same.
template <typename Combine>
__device__ unsigned combine_all(unsigned word, Combine combine, unsigned (&of_warps)[ROW_WARPS]) {
    for (int lanes = WARP_SIZE / 2; lanes > 0; lanes /= 2) word = combine(word, exchange(word, lanes));
    if (threadIdx.x % WARP_SIZE == 0) of_warps[threadIdx.x / WARP_SIZE] = word;
    __syncthreads();
    word = of_warps[0];
    for (int warp = 1; warp < ROW_WARPS; ++warp) word = combine(word, of_warps[warp]);
    return word;
}

// What is rounded: the row, or its RMSNorm, which Llama rounds before the weight and after it.
struct Row {
    const Element* values;
    const Element* weight_D;
    float over_rms;

    __device__ Quad at(int column) const {
        Quad quad = *reinterpret_cast<const Quad*>(values + column);
        if (!weight_D) return quad;
        const Quad weight = *reinterpret_cast<const Quad*>(weight_D + column);
        for (int i = 0; i < QUAD; ++i) {
            const Element normed = to_element(to_float(quad.values[i]) * over_rms);
            quad.values[i] = to_element(to_float(normed) * to_float(weight.values[i]));
        }
        return quad;
    }
};

// Codes -127..127, half to even, and the scale absmax / 127 of each row of x_TD, or of its RMSNorm where weight_D is
// not null. residual_TD, where not null, is added first, and the rounded sum is left in sum_TD. normed_TD, where not
// null, gets what was rounded. Columns where is_skipped_D is not 0 get code 0 and count for no scale. A row of zeros
// has scale 1; one with a NaN or infinity has such a scale. D is a multiple of 4. A block of ROW_THREADS a row.
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    quantize_rows(const Element* x_TD, const Element* residual_TD, const Element* weight_D,
                  const unsigned char* is_skipped_D, Element* sum_TD, Element* normed_TD, signed char* codes_TD,
                  float* scale_T, int width, float epsilon) {
    __shared__ unsigned warp_sums[ROW_WARPS], warp_maxima[ROW_WARPS];
    const long long first = static_cast<long long>(blockIdx.x) * width;

    if (residual_TD) {
        for (int column = threadIdx.x * QUAD; column < width; column += ROW_THREADS * QUAD) {
            Quad quad = *reinterpret_cast<const Quad*>(x_TD + first + column);
            const Quad other = *reinterpret_cast<const Quad*>(residual_TD + first + column);
            for (int i = 0; i < QUAD; ++i)
                quad.values[i] = to_element(to_float(quad.values[i]) + to_float(other.values[i]));
            *reinterpret_cast<Quad*>(sum_TD + first + column) = quad;
        }
    }
    Row row{(residual_TD ? sum_TD : x_TD) + first, nullptr, 1.0f};
    if (weight_D) {
        float squares = 0.0f;
        for (int column = threadIdx.x * QUAD; column < width; column += ROW_THREADS * QUAD) {
            const Quad quad = row.at(column);
            for (int i = 0; i < QUAD; ++i) squares += to_float(quad.values[i]) * to_float(quad.values[i]);
        }
        squares = bits_float(combine_all(float_bits(squares), Sum(), warp_sums));
        row.weight_D = weight_D;
        row.over_rms = 1.0f / square_root(squares / static_cast<float>(width) + epsilon);
    }

    // As bits without their sign, floats are ordered as integers are, with NaN above infinity.
    unsigned largest = 0;
    for (int column = threadIdx.x * QUAD; column < width; column += ROW_THREADS * QUAD) {
        const Quad quad = row.at(column);
        if (normed_TD) *reinterpret_cast<Quad*>(normed_TD + first + column) = quad;
        for (int i = 0; i < QUAD; ++i)
            if (!is_skipped_D || !is_skipped_D[column + i])
                largest = Largest()(largest, float_bits(to_float(quad.values[i])) & 0x7fffffffu);
    }
    largest = combine_all(largest, Largest(), warp_maxima);
    float scale = bits_float(largest) / CODE_MAX;
    if (scale < SMALLEST_SCALE) scale = largest ? SMALLEST_SCALE : 1.0f;
    if (threadIdx.x == 0) scale_T[blockIdx.x] = scale;

    for (int column = threadIdx.x * QUAD; column < width; column += ROW_THREADS * QUAD) {
        const Quad quad = row.at(column);
        QuadCodes codes;
        for (int i = 0; i < QUAD; ++i) {
            const bool is_skipped = is_skipped_D && is_skipped_D[column + i];
            const float code = is_skipped ? 0.0f : round_half_even(to_float(quad.values[i]) / scale);
            codes.values[i] = static_cast<signed char>(static_cast<int>(code));
        }
        *reinterpret_cast<QuadCodes*>(codes_TD + first + column) = codes;
    }
}
