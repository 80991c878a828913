// Drives a verilated board (fpga/system.py) through its UART: bytes in, bytes out, many cycles a call. Built with the
// model into one shared library; virtual.py loads it.

#include "Vmodel.h"
#include "verilated.h"

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#define MW_API extern "C" __attribute__((visibility("default")))

// The model must never end the process that loaded it.
void vl_finish(const char*, int, const char* where) { throw std::runtime_error(std::string("$finish in ") + where); }
void vl_stop(const char*, int, const char* where) {
    throw std::runtime_error(std::string("assertion failed in ") + where);
}
void vl_fatal(const char*, int, const char*, const char* message) { throw std::runtime_error(message); }

namespace {

struct Board {
    VerilatedContext context;
    std::unique_ptr<Vmodel> model;
    std::string message;
    uint64_t cycles = 0;
    const int bit;      // cycles a bit
    int out_bits = 0;   // of the byte on rx, still to come, the one on the line included
    int out_left = 0;   // cycles of the bit on the line
    unsigned out = 0;   // those bits
    int in_bits = -1;   // of the byte on tx, sampled so far, the start bit included; -1: the line is idle
    int in_left = 0;    // cycles until the next sample
    unsigned in = 0;
    uint64_t silent = 0;  // cycles since tx sent

    explicit Board(int cycles_per_bit) : bit(cycles_per_bit) {
        context.fatalOnError(false);
        model.reset(new Vmodel(&context, "top"));
        model->clk = 0;
        model->rst = 1;
        model->rx = 1;
        for (int n = 0; n < 4; ++n) cycle();
        model->rst = 0;
    }

    ~Board() { model->final(); }

    void cycle() {
        model->eval();
        context.timeInc(1);
        model->clk = 1;
        model->eval();
        context.timeInc(1);
        model->clk = 0;
        ++cycles;
    }

    // Returns bytes taken from `data`; the caller has room for cycles / (9 * bit) + 2 bytes.
    uint64_t run(const uint8_t* data, uint64_t count, uint8_t* result, uint64_t* written, uint64_t budget) {
        uint64_t used = 0, got = 0;
        for (uint64_t n = 0; n < budget; ++n) {
            if (out_left) --out_left;
            if (!out_left && out_bits) {
                --out_bits;
                out >>= 1;
                out_left = out_bits ? bit : 0;
            }
            if (!out_bits && used < count) {
                out = 0x200u | static_cast<unsigned>(data[used++]) << 1;
                out_bits = 10;
                out_left = bit;
            }
            model->rx = out_bits ? out & 1 : 1;
            cycle();
            const bool level = model->tx;
            ++silent;
            if (in_bits < 0) {
                if (!level) {
                    in_bits = 0;
                    in_left = bit / 2;
                    in = 0;
                }
            } else if (--in_left == 0) {
                in_left = bit;
                in |= static_cast<unsigned>(level) << in_bits++;
                silent = 0;
                if (in_bits == 1 && level) in_bits = -1;  // no start bit: a glitch
                if (in_bits == 10) {
                    if (level) result[got++] = static_cast<uint8_t>(in >> 1);
                    in_bits = -1;
                }
            }
            // the answer is complete and nothing waits: hand it over
            if (got && used == count && !out_bits && silent > 30u * bit) break;
        }
        *written = got;
        return used;
    }
};

}  // namespace

MW_API void* mw_board_create(int cycles_per_bit) {
    try {
        return new Board(cycles_per_bit);
    } catch (const std::exception&) { return nullptr; }
}

MW_API void mw_board_destroy(void* handle) {
    try {
        delete static_cast<Board*>(handle);
    } catch (const std::exception&) {}
}

// Returns whether the simulation goes on; if not, mw_board_message says why.
MW_API int mw_board_run(void* handle, const uint8_t* data, uint64_t count, uint64_t* used, uint8_t* result,
                        uint64_t* written, uint64_t budget) {
    auto* board = static_cast<Board*>(handle);
    Verilated::threadContextp(&board->context);
    *used = *written = 0;
    try {
        *used = board->run(data, count, result, written, budget);
    } catch (const std::exception& error) {
        board->message = error.what();
        return 0;
    }
    return 1;
}

MW_API uint64_t mw_board_cycles(void* handle) { return static_cast<Board*>(handle)->cycles; }

MW_API const char* mw_board_message(void* handle) { return static_cast<Board*>(handle)->message.c_str(); }
