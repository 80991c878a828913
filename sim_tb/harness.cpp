// Drives a verilated accelerator from whole buffers: beats in, beats out, with optional pseudo-random back-pressure and
// a check of the stream contract. Built with the model into one shared library; verilator.py loads it. The Verilog bench
// of icarus.py makes the same draws at the same cycles, so both simulators see the same run.

#include "Vmodel.h"
#include "verilated.h"
#ifdef MW_TRACE
#include "verilated_vcd_c.h"
#endif

#include <cstdint>
#include <cstring>
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

constexpr int WORDS = MW_STREAM_WORDS;

enum Status { STOPPED, QUIET, OUTPUT_FULL, BUDGET, STUCK, VIOLATION, FATAL };

struct Options {
    uint64_t idle_limit;    // cycles without a transfer that end a run of which all that was asked for is done
    uint64_t stuck_limit;   // cycles without a transfer that end any other
    uint64_t stop_count;    // reply packets that end the run; 0: it ends when it is quiet
    uint32_t in_threshold;  // a new beat is held back when a draw is below this
    uint32_t out_threshold;
    uint32_t in_seed;  // not 0
    uint32_t out_seed;
    uint8_t stop_kinds[32];    // bitmap: kinds of the packets that count...
    uint8_t stop_opcodes[32];  // ... as do ERROR replies about these opcodes
};

struct Stats {
    uint64_t cycle;  // since creation
    uint64_t first_in;
    uint64_t last_out;
    uint64_t beats_in;
    uint64_t beats_out;
    uint64_t in_waits;   // cycles in which the accelerator refused a beat
    uint64_t out_waits;  // cycles in which it waited for ready
};

// Part of the simulation that waveforms show, in beats counted since its beginning.
struct Window {
    uint64_t first_in;  // from the cycle that takes this beat...
    uint64_t last_out;  // ... until this one has left
    uint64_t after;     // and so many cycles more
};

struct Beat {
    uint32_t data[WORDS];
    uint8_t last;
    bool operator==(const Beat& other) const {
        return last == other.last && !std::memcmp(data, other.data, sizeof data);
    }
};

inline void put(QData& port, const uint32_t* data, uint8_t last) {
    port = static_cast<QData>(data[0]) | static_cast<QData>(last) << 32;
}
template <std::size_t N>
inline void put(VlWide<N>& port, const uint32_t* data, uint8_t last) {
    for (std::size_t word = 0; word + 1 < N; ++word) port[word] = data[word];
    port[N - 1] = last;
}
inline void get(const QData& port, Beat& beat) {
    beat.data[0] = static_cast<uint32_t>(port);
    beat.last = static_cast<uint8_t>(port >> 32);
}
template <std::size_t N>
inline void get(const VlWide<N>& port, Beat& beat) {
    for (std::size_t word = 0; word + 1 < N; ++word) beat.data[word] = port[word];
    beat.last = static_cast<uint8_t>(port[N - 1]);
}

inline bool in_bitmap(const uint8_t* bitmap, uint32_t bit) { return bitmap[(bit & 0xff) >> 3] >> (bit & 7) & 1; }

inline uint32_t draw(uint32_t& state) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

struct Bench {
    VerilatedContext context;
    std::unique_ptr<Vmodel> model;
#ifdef MW_TRACE
    VerilatedVcdC trace;
    bool tracing = false;
#endif
    Window window{0, UINT64_MAX, 0};
    bool in_window = true;  // what moves now is shown
    bool closing = false;   // the window's last beat has left
    uint64_t all_in = 0;    // beats since creation
    uint64_t all_out = 0;
    Options options{};
    Stats stats{};
    std::string message;
    const uint32_t* words = nullptr;
    const uint8_t* lasts = nullptr;
    uint64_t beats = 0;
    uint64_t idle = 0;
    uint64_t stops = 0;
    bool offered = false;   // a beat is on i, not taken yet
    bool held = false;      // a beat was on o, not taken
    bool at_start = true;   // the next beat on o begins a packet
    bool stopping = false;  // the packet on o counts for stop_count
    Beat previous{};

    Bench(const char* trace_path, const Window* shown) {
        if (shown) {
            window = *shown;
            in_window = false;
        }
        context.fatalOnError(false);
        context.traceEverOn(trace_path != nullptr);
        model.reset(new Vmodel(&context, "top"));
#ifdef MW_TRACE
        if (trace_path) {
            model->trace(&trace, 99);
            trace.open(trace_path);
            tracing = true;
        }
#endif
        model->clk = 0;
        model->rst = 0;
        model->i___05Fvalid = 0;
        model->o___05Fready = 0;
        settle();
    }

    ~Bench() {
#ifdef MW_TRACE
        if (tracing) trace.close();
#endif
        model->final();
    }

    void settle() { model->eval(); }

    void dump() {
#ifdef MW_TRACE
        if (tracing && in_window) trace.dump(context.time());
#endif
    }

    // Called before and after the edge of every cycle of a run.
    void open_window(bool taken) {
        if (taken && all_in == window.first_in) in_window = true;
        all_in += taken;
    }

    void close_window(bool sent) {
        if (sent && all_out == window.last_out) closing = true;
        if (closing && !window.after--) in_window = closing = false;
        all_out += sent;
    }

    void edge() {
        dump();
        context.timeInc(1);
        model->clk = 1;
        model->eval();
        dump();
        context.timeInc(1);
        model->clk = 0;
        ++stats.cycle;
    }

    void reset(int cycles) {
        model->i___05Fvalid = 0;
        model->o___05Fready = 0;
        model->rst = 1;
        for (int cycle = 0; cycle < cycles; ++cycle) {
            settle();
            edge();
        }
        model->rst = 0;
        settle();
        offered = held = false;
        at_start = true;
    }

    void start(const uint32_t* new_words, const uint8_t* new_lasts, uint64_t new_beats, const Options& new_options) {
        words = new_words;
        lasts = new_lasts;
        beats = new_beats;
        options = new_options;
        stats.beats_in = stats.beats_out = stats.in_waits = stats.out_waits = 0;
        stats.first_in = stats.last_out = stats.cycle;
        idle = stops = 0;
    }

    Status violation(const char* text) {
        message = text;
        return VIOLATION;
    }

    Status run(uint32_t* out, uint8_t* out_last, uint64_t capacity, uint64_t* written, uint64_t budget) {
        uint64_t count = 0;
        const uint64_t end = stats.cycle + budget;
        *written = 0;
        while (true) {
            if (count == capacity) return OUTPUT_FULL;
            if (stats.cycle == end) return BUDGET;
            const bool done = stats.beats_in == beats && !options.stop_count;
            if (idle >= (done ? options.idle_limit : options.stuck_limit)) return done ? QUIET : STUCK;

            if (options.in_threshold) {
                const bool hold = draw(options.in_seed) < options.in_threshold;
                if (!offered) offered = stats.beats_in < beats && !hold;
            } else {
                offered = stats.beats_in < beats;
            }
            const bool ready = !options.out_threshold || draw(options.out_seed) >= options.out_threshold;
            model->i___05Fvalid = offered;
            if (offered) put(model->i___05Fpayload, words + stats.beats_in * WORDS, lasts[stats.beats_in]);
            model->o___05Fready = ready;
            settle();
            const bool taken = offered && model->i___05Fready;
            const bool valid = model->o___05Fvalid;
            Beat beat{};
            if (valid) get(model->o___05Fpayload, beat);
            if (held && !valid) return violation("o: valid fell before the transfer");
            if (held && !(beat == previous)) return violation("o: payload changed before the transfer");
            if (!ready) {
                model->o___05Fready = 1;
                settle();
                if (static_cast<bool>(model->o___05Fvalid) != valid) return violation("o: valid depends on ready");
                model->o___05Fready = 0;
                settle();
            }
            open_window(taken);
            edge();
            close_window(valid && ready);

            ++idle;
            held = valid && !ready;
            previous = beat;
            if (held) ++stats.out_waits;
            if (held) idle = 0;
            if (offered && !taken) ++stats.in_waits;
            if (taken) {
                if (stats.beats_in == 0) stats.first_in = stats.cycle;
                ++stats.beats_in;
                offered = false;
                idle = 0;
            }
            if (valid && ready) {
                std::memcpy(out + count * WORDS, beat.data, sizeof beat.data);
                out_last[count] = beat.last;
                *written = ++count;
                ++stats.beats_out;
                stats.last_out = stats.cycle;
                idle = 0;
                if (at_start) {
                    const uint32_t head = beat.data[0];
                    stopping = in_bitmap(options.stop_kinds, head)
                               || ((head & 0xff) == MW_ERROR && in_bitmap(options.stop_opcodes, head >> 16));
                }
                at_start = beat.last;
                if (beat.last && stopping) ++stops;
            }
            if (options.stop_count && stops >= options.stop_count && stats.beats_in == beats && at_start) {
                return STOPPED;
            }
        }
    }
};

}  // namespace

MW_API void* mw_create(const char* trace_path, const Window* window) {
    try {
        return new Bench(trace_path, window);
    } catch (const std::exception&) { return nullptr; }
}

MW_API void mw_destroy(void* handle) {
    try {
        delete static_cast<Bench*>(handle);
    } catch (const std::exception&) {}
}

MW_API int mw_reset(void* handle, int cycles) {
    auto* bench = static_cast<Bench*>(handle);
    try {
        bench->reset(cycles);
    } catch (const std::exception& error) {
        bench->message = error.what();
        return FATAL;
    }
    return STOPPED;
}

MW_API void mw_start(void* handle, const uint32_t* words, const uint8_t* lasts, uint64_t beats,
                     const Options* options) {
    static_cast<Bench*>(handle)->start(words, lasts, beats, *options);
}

MW_API int mw_run(void* handle, uint32_t* out, uint8_t* out_last, uint64_t capacity, uint64_t* written,
                  uint64_t budget) {
    auto* bench = static_cast<Bench*>(handle);
    Verilated::threadContextp(&bench->context);
    try {
        return bench->run(out, out_last, capacity, written, budget);
    } catch (const std::exception& error) {
        bench->message = error.what();
        return FATAL;
    }
}

MW_API void mw_stats(void* handle, Stats* stats) { *stats = static_cast<Bench*>(handle)->stats; }

MW_API const char* mw_message(void* handle) { return static_cast<Bench*>(handle)->message.c_str(); }
