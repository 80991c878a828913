// The whole accelerator: what connects sequencer, loader, clusters and collector (rtl/accelerator.py, collector.py).
//
// In every cycle the clusters step first, then the loader, then the sequencer and the collector: what one of them does
// reaches the others through registers, so it may be seen a cycle later only.
#pragma once

#include "loader.hpp"
#include "masks.hpp"
#include "vector.hpp"

namespace maskwork {

constexpr int SETTLE = 7;           // rtl/sequencer.py
constexpr int CHECKED = 2;
constexpr int FILLED = 3;
constexpr int COUNTERS_IN_REPLY = 12;
constexpr Time QUIET = 65;          // cycles after the last one in which a beat moved, before the end is looked for

enum Op { BEGIN = 1, IDENTIFY = 2, ECHO = 3, SYNC = 4, ABORT = 5, READ_COUNTERS = 6, LOAD_A = 16, LOAD_B, LOAD_C, LOAD_P,
          RUN = 32, VECTOR = 48, MASK = 49 };

struct Result {
    int64_t reasons[REASONS];       // PE-cycles: fetch, imbalance, drain, load, dispatch; idle is the rest
    int64_t multiplies, lookups, cycles, words_in, words_out, compute_cycles;
    int64_t total_cycles;           // from the first beat to the last reply
    int64_t beats_in, beats_out;
    int64_t tokens;
};

struct Model {
    Config config;
    Totals totals;
    std::vector<Lane> lanes;
    std::vector<Front> fronts;          // of so many lanes each as are in it
    std::vector<Cluster> clusters;
    Loader loader;
    Vector vector;
    Masks masks;

    const uint32_t* words = nullptr;
    const uint8_t* lasts = nullptr;
    int64_t beats = 0, offered = 0;     // beats that are inside, or were
    int entry = 0;                      // of them, in the input's buffer

    enum State : uint8_t { HEADER, OPCODE, WORD, CHECK, STARTING, LOADING, LOADED, COUNTERS, REPLY, STREAM, STREAMED };
    State state = HEADER;
    uint32_t header[32] = {};
    int number = 0, position = 0, left = 0, settle = 0, reply_word = 0, reply_words = 0;
    bool header_ends = false, is_run = false, packet_ended = false, run_space = true;
    uint32_t word = 0;
    int reply = 0;
    bool counting = false, stopping = false;
    uint32_t busy_line = 0, idle_line = 0;      // bit n: n + 1 steps ago
    uint32_t load_line = 0;             // bit n: n steps ago
    int64_t results_given = 0;
    Time loaded_at = NEVER;             // while LOADING: the load ends, if that is known

    // packer and collector
    bool packer_full = false, packer_last = false;
    int packer_position = 0;
    uint64_t granted = 0, served = 0, beats_wait = 0;     // beats_wait: of clusters, at the collector
    bool leaving = false;               // a beat is in the output's register
    bool leaving_synced = false, packer_synced = false;

    Result result{};
    Time now = 0, last_out = -1, moved_at = -1, last_cycle = NEVER;
    Time near_at = 0;                   // see Pes::bring_near
    int64_t counted_beats_in = 0, counted_beats_out = 0;
    bool finished = false, token_seen = false;
    Time since = 1;

    Time reset_at = NEVER;
    const uint32_t* results = nullptr;

    Model(const Config& c, const uint32_t* bitmaps) : config(c), results(bitmaps) {
        reset();
        loader.create(config, clusters);
        vector.create(config);
        masks.create(config);
    }

    // What BEGIN does to the array.
    void reset() {
        const auto count = static_cast<size_t>(config.lanes), each = static_cast<size_t>(config.lanes_per_cluster);
        lanes = std::vector<Lane>(count);
        fronts = std::vector<Front>((count + MAX_FRONT - 1) / MAX_FRONT);
        for (size_t n = 0; n < fronts.size(); ++n) {
            const size_t first = n * MAX_FRONT;
            fronts[n].create(config, &lanes[first], static_cast<int>(std::min<size_t>(count - first, MAX_FRONT)));
        }
        clusters = std::vector<Cluster>(static_cast<size_t>(config.clusters()));
        for (size_t n = 0; n < clusters.size(); ++n) {
            Cluster& cluster = clusters[n];
            const size_t first = n * each;
            cluster.create(config, totals, static_cast<int>(n), {&lanes[first], each}, fronts[first / MAX_FRONT],
                           static_cast<int>(first % MAX_FRONT), now);
            cluster.beats_wait = &beats_wait;
        }
        for (Lane& lane : lanes) {
            lane.results = results;
            lane.idle_since = now;
        }
        granted = served = beats_wait = 0;
    }

    const uint32_t* beat_at_entry() const { return words + (offered - entry) * config.stream_words; }
    bool last_at_entry() const { return lasts[offered - entry] != 0; }

    [[noreturn]] void illegal(const char* what) {
        throw std::runtime_error(std::string("the program is not legal: ") + what + " (packet that ends at beat " +
                                 std::to_string(offered - entry) + ")");
    }

    void run(const uint32_t* new_words, const uint8_t* new_lasts, int64_t new_beats, Time limit) {
        words = new_words;
        lasts = new_lasts;
        beats = new_beats;
        last_cycle = limit;
        while (true) {
            step();
            if (offered == beats && !entry && now - moved_at > QUIET && everything_rests()) break;
            if (now > limit) throw std::runtime_error("the program did not end within " + std::to_string(limit) + " cycles");
        }
        finish();
    }

    bool everything_rests() {
        if (state != HEADER || packer_full || leaving) return false;
        for (Cluster& cluster : clusters) {
            if (!cluster.idle(now)) return false;
        }
        return true;
    }

    void finish() {
        result.total_cycles = last_out + 1;
        if (!frozen) freeze(result.total_cycles);
    }

    // The counters as they stand once `cycles` cycles have been counted.
    void freeze(Time cycles) {
        frozen = true;
        result.cycles = cycles;
        result.words_in = counted_beats_in;
        result.words_out = counted_beats_out;
        result.multiplies = totals.multiplies;
        result.tokens = totals.tokens;
        for (Lane& lane : lanes) lane.account(cycles);
        int64_t charged = totals.multiplies + totals.stolen;
        for (int n = 0; n < REASONS; ++n) {
            result.reasons[n] = totals.reasons[n];
            charged += totals.reasons[n];
        }
        result.reasons[DRAIN] += totals.stolen;
        result.lookups = cycles * config.lanes * config.pes - charged;
    }
    bool frozen = false;

    // The loader, and the input, in a cycle; whether the load has ended the cycle before.
    bool step_loader(Time cycle) {
        const bool ended = loader.done, has_beat = entry > 0;
        const bool pop = loader.step(has_beat ? beat_at_entry() : nullptr, has_beat && last_at_entry());
        move_input(cycle, pop);
        return ended;
    }

    // A beat is taken, or not; another one comes.
    void move_input(Time cycle, bool pop) {
        const bool push = offered < beats && entry < 2;
        entry += push - pop;
        offered += push;
        counted_beats_in += pop && !frozen;
        moved_at = push | pop ? cycle : moved_at;
    }

    // Nothing outside of it changes what a load does, nor uses what it writes: all of it may be done at its start.
    void load_ahead() {
        Time cycle = now;
        if (loader.load.kind == LoadKind::A) cycle = load_most(loader.a);
        while (!step_loader(cycle) && cycle <= last_cycle) ++cycle;
        loaded_at = cycle;
    }

    // All cycles but the last, in copies of what changes: it need not be kept in memory from one cycle to the next.
    template <typename Part>
    [[gnu::noinline]] Time load_most(Part& loaders) {
        Part part = std::move(loaders);
        Gearbox gearbox = loader.gearbox;
        int held = entry;
        int64_t come = offered, taken = 0;
        bool done = false, ended = loader.ended;
        Time cycle = now;
        for (; !done && cycle <= last_cycle; ++cycle) {
            const int64_t beat = come - held;
            const bool has_beat = held > 0, push = come < beats && held < 2;
            const bool wants = gearbox.step(config, part, has_beat ? words + beat * config.stream_words : nullptr,
                                            has_beat || ended, done);
            const bool pop = wants && has_beat && !ended;
            if (pop) ended = lasts[beat] != 0;
            held += push - pop;
            come += push;
            taken += pop;
            if (push | pop) moved_at = cycle;
        }
        loaders = std::move(part);
        loader.gearbox = gearbox;
        loader.busy = !done;
        loader.done = done;
        loader.ended = ended;
        entry = held;
        offered = come;
        if (!frozen) counted_beats_in += taken;
        return cycle;
    }

    // Nothing happens before the load ends: the cycles from the next one on are over at once.
    void pass_time() {
        const Time last = std::min(loaded_at, near_at) - 1;
        if (loaded_at == NEVER || last <= now) return;
        if (!frozen && started) since += last - now;
        now = last;
    }

    // One cycle.
    void step() {
        if (now == reset_at) reset();
        if (now >= near_at) [[unlikely]] {
            for (Lane& lane : lanes) lane.bring_near(now);
            near_at = now + ROUND;
        }
        load_line = load_line << 1 | (state == LOADING || state == LOADED);
        const bool loading = load_line >> config.hop_stages & 1;
        // ---- collector: what leaves in this cycle
        uint64_t valid = packer_full;
        valid |= beats_wait << 1;
        const uint64_t leaves = valid & granted;
        bool leaves_last = false, leaves_synced = false;
        if (leaves) {
            const int source = std::countr_zero(leaves);
            leaves_last = source ? clusters[static_cast<size_t>(source - 1)].beat_ends() : packer_last;
            leaves_synced = source == 0 && packer_synced;
        }
        if (!granted || (leaves && leaves_last)) {
            const uint64_t requests = valid & ~granted, fair = requests & ~served, choice = fair ? fair : requests;
            granted = choice & (~choice + 1);
            if (choice) served = granted | (granted - 1);
        }
        // ---- output: the beat in the register is sent
        const bool sent = leaving;
        bool synced = false;
        if (sent) {
            last_out = now;
            ++result.beats_out;
            synced = leaving_synced;
            moved_at = std::max(moved_at, now);
            if (!frozen) ++counted_beats_out;
        }
        leaving = leaves != 0;
        leaving_synced = leaves_synced;

        totals.token = totals.finished = false;
        bool quiet = true;              // everybody sleeps
        uint32_t behind = 0;            // clusters with something to do behind the fronts
        const Cluster::Look look = clusters[0].look_at(now);
        for (Cluster& cluster : clusters) {
            if (cluster.asleep && cluster.sleeps(loading)) continue;
            quiet = false;
            if (cluster.stays_calm(now, loading)) {
                cluster.look_at_ring(look, false);
                continue;
            }
            behind |= static_cast<uint32_t>(cluster.step(now, loading, leaves >> 1, look)) << cluster.number;
        }
        bool all_behind = totals.retire_at <= now;
        for (Front& front : fronts) {
            if (front.rests(now)) continue;
            quiet = false;
            front.step(now);
            all_behind |= front.any_started != 0;
        }
        if (all_behind) rows_move_on();
        for (; behind; behind &= behind - 1) clusters[static_cast<size_t>(std::countr_zero(behind))].step_behind(now);
        if (!frozen) count_compute();

        const bool had_packer = packer_full;
        if (packer_full && leaves & 1) packer_full = false;
        if (state == LOADING) {
            // the beats of a load are counted up to the end of a program, if it is still on its way
            if (loaded_at == NEVER && stopping && step_loader(now)) loaded_at = now;
            if (loaded_at == NEVER && !stopping) load_ahead();
            if (loaded_at == now) {
                state = LOADED;
                settle = 0;
            } else if (quiet && !leaving && !packer_full && (load_line & 7) == 7) {
                pass_time();
            }
        } else {
            bool pop = false;
            step_sequencer(entry > 0, had_packer, pop);
            move_input(now, pop);
        }
        if (synced) {
            if (counting && !frozen) freeze(now + 1);
            counting = stopping = false;
        }
        ++now;
    }

    // Rows have started in lanes, or may leave them.
    void rows_move_on() {
        for (Cluster& cluster : clusters) {
            if (!cluster.asleep) cluster.rows_move_on(now);
        }
        if (totals.retire_at > now) return;
        totals.retire_at = NEVER;
        for (const Cluster& cluster : clusters) totals.retire_at = std::min(totals.retire_at, cluster.shared.retire_at);
    }

    void count_compute() {
        if (totals.finished) {
            if (started) result.compute_cycles += since + 1;
            since = 0;
        } else {
            ++since;
        }
        if (!started) since = 1;
        if (totals.token) started = true;
    }
    bool started = false;

    void answer(int kind, int count);
    void take_beat(bool& pop);
    void load_word(bool ends, bool& pop);
    bool is_stream() const { return (header[0] & 0xff) == VECTOR || (header[0] & 0xff) == MASK; }
    bool streams() const { return reply == VECTOR || reply == MASK; }
    void give_word(bool last);
    void step_sequencer(bool has_beat, bool packer_was_full, bool& pop);
    bool needed_busy() const;
    void check(bool busy, bool all_idle);
    void start_load();
    void start_run();
};

}  // namespace maskwork
