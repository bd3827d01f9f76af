// What the tests call, after kernels.cu: a whole launch, with operands that end where memory does, so that a read or
// write beyond them ends the process.

#include <sys/mman.h>
#include <unistd.h>

// A copy that is followed by memory that nobody may touch.
class Guarded {
   public:
    Guarded(const void* source, size_t num_bytes) : num_bytes_(num_bytes) {
        if (!source) return;
        const size_t page = sysconf(_SC_PAGESIZE);
        mapped_ = (num_bytes + page - 1) / page * page + page;
        void* pages = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) std::abort();
        start_ = static_cast<char*>(pages);
        if (mprotect(start_ + mapped_ - page, page, PROT_NONE)) std::abort();
        data_ = start_ + mapped_ - page - num_bytes;
        std::memcpy(data_, source, num_bytes);
    }
    ~Guarded() {
        if (start_) munmap(start_, mapped_);
    }
    Guarded(const Guarded&) = delete;
    template <typename Value>
    Value* as() const {
        return reinterpret_cast<Value*>(data_);
    }
    void give(void* target) const {
        if (target) std::memcpy(target, data_, num_bytes_);
    }

   private:
    size_t num_bytes_, mapped_ = 0;
    char *start_ = nullptr, *data_ = nullptr;
};

extern "C" void run_int8_gemm(const void* codes_TK, const void* scale_T, const void* codes_NK, const void* scale_N,
                              const void* bias_N, void* output_TN, int adds, int num_tokens, int num_outputs,
                              int num_inputs, unsigned seed) {
    const size_t tokens = num_tokens, outputs = num_outputs, inputs = num_inputs;
    Guarded x(codes_TK, tokens * inputs), x_scale(scale_T, tokens * 4), w(codes_NK, outputs * inputs);
    Guarded w_scale(scale_N, outputs * 4), bias(bias_N, outputs * sizeof(Element));
    Guarded output(output_TN, tokens * outputs * sizeof(Element));
    const unsigned num_tiles = (num_tokens + TILE_T - 1) / TILE_T * ((num_outputs + TILE_N - 1) / TILE_N);
    launch(num_tiles, GEMM_THREADS, seed, [&] {
        int8_gemm(x.as<signed char>(), x_scale.as<float>(), w.as<signed char>(), w_scale.as<float>(),
                  bias.as<Element>(), adds ? output.as<Element>() : nullptr, output.as<Element>(), num_tokens,
                  num_outputs, num_inputs);
    });
    output.give(output_TN);
}

extern "C" void run_quantize_rows(const void* x_TD, const void* residual_TD, const void* weight_D,
                                  const void* is_skipped_D, void* sum_TD, void* normed_TD, void* codes_TD,
                                  void* scale_T, int num_tokens, int width, float epsilon, unsigned seed) {
    const size_t row_bytes = width * sizeof(Element), bytes = num_tokens * row_bytes;
    Guarded x(x_TD, bytes), residual(residual_TD, bytes), weight(weight_D, row_bytes), skipped(is_skipped_D, width);
    Guarded sum(sum_TD, bytes), normed(normed_TD, bytes), codes(codes_TD, size_t(num_tokens) * width);
    Guarded scale(scale_T, num_tokens * 4);
    launch(num_tokens, ROW_THREADS, seed, [&] {
        quantize_rows(x.as<Element>(), residual.as<Element>(), weight.as<Element>(), skipped.as<unsigned char>(),
                      sum.as<Element>(), normed.as<Element>(), codes.as<signed char>(), scale.as<float>(), width,
                      epsilon);
    });
    sum.give(sum_TD);
    normed.give(normed_TD);
    codes.give(codes_TD);
    scale.give(scale_T);
}

// Since the library was loaded: matrices of which rows met in a bank.
extern "C" int count_bank_conflicts() { return num_conflicts; }
