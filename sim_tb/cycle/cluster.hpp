// A cluster: lanes, their feeding, and what they share (rtl/cluster.py, copier.py, banks.py).
#pragma once

#include "fetch_serial.hpp"
#include "hop.hpp"

namespace maskwork {

constexpr int COPY_LATENCY = 4;     // rtl/copier.py
constexpr int LOW_WATER = 24;       // rtl/cluster.py

// What pending RUNs still need of a cluster's banks, as the sequencer asks for it.
struct Busy {
    bool a[2], b[2], c[2], p[2];
};

struct Cluster {
    const Config* config;
    Totals* totals;
    int number = 0;
    std::vector<Lane> lanes;
    std::array<Times, MAX_LANES> times;
    SerialFetch fetch;
    Post post;

    // activation buffer, its directory, C masks
    std::vector<Word> a_words[2];
    std::vector<Segment> directory[2];
    std::vector<uint32_t> c_masks[2];
    int32_t segment_begin = 0;

    // items on their way to the copier
    Item items[ITEM_QUEUE];
    unsigned items_head = 0;
    int items_level = 0;
    bool items_space = true;
    bool items_valid = false;           // block RAM shows an entry a cycle later

    // copier
    struct Copied {
        uint8_t lanes = 0, ring = 0;
        Word word{};
    };
    bool held = false;
    Item current;
    int32_t address = 0, left = 0;
    uint32_t current_rings = 0;         // that the current item goes to
    Delay<Copied, 4> copied;            // at(2): the word at the lanes
    Time copied_until = LONG_AGO;       // words are on their way up to this cycle
    int copying[2] = {};

    // scan of the rings
    int ring_shift = 0;                 // divisions would be most of a cycle's work
    Time began = 0;                     // cycle of the first ring
    uint32_t room = 0, ring_space = ~0u;
    uint32_t sampled[2] = {};           // words in the rings looked at one and two cycles ago
    int fits = 0, low = 0;

    // arbiter of post-processing
    uint32_t granted = 0, last_granted = 0;
    PostWord word;
    bool word_valid = false;

    // banks
    int bank_rows[2] = {};              // rows in the lanes
    int waiting_a[2] = {}, waiting_b[2] = {}, waiting_c[2] = {};
    bool running = false;
    uint32_t pending = 0;               // rings: a row was announced and has not started
    Reason outer = IDLE;
    bool loading = false;
    uint32_t run_spaces = ~0u;          // registers between the RUN FIFO and the sequencer; bit n: n + 1 steps ago

    // registers between the rest and the cluster
    Leaving leaving;
    Late late;
    Run coming{};
    Time comes_at = NEVER;

    void create(const Config& c, Totals& t, int n) {
        config = &c;
        totals = &t;
        number = n;
        lanes.resize(static_cast<size_t>(c.lanes_per_cluster));
        for (int lane = 0; lane < c.lanes_per_cluster; ++lane) lanes[static_cast<size_t>(lane)].create(c, t, lane, times[static_cast<size_t>(lane)], bank_rows);
        ring_shift = log2_of(c.rings);
        fetch.create(c);
        post.create(c);
        leaving.stages = c.hop_stages;
        late.on = c.lane_hops();
        for (Lane& lane : lanes) lane.scrub_count = -c.lane_hops();     // their reset is late
    }

    void accept(const Run& run) {
        fetch.accept(run);
        ++waiting_a[run.fields[A_BANK]];
        ++waiting_b[run.fields[B_BANK]];
        if (run.fields[USE_C]) ++waiting_c[run.fields[C_BANK]];
    }

    bool beat_waits() const { return leaving.valid(post); }     // at the collector
    bool beat_ends() const { return leaving.last(post); }
    bool lanes_use(int bank) const { return late.on ? late.used[bank] : bank_rows[bank] != 0; }
    bool draining() const { return late.on ? late.draining : lanes_drain(); }
    bool lanes_drain() const {
        for (const Lane& lane : lanes) {
            if (lane.undrained) return true;
        }
        return false;
    }
    bool working() const { return lanes_use(0) || lanes_use(1) || draining(); }
    bool post_busy() const { return post.waits() || word_valid || post.busy() || draining(); }

    Busy busy() const {
        Busy result;
        for (int bank = 0; bank < 2; ++bank) {
            const bool weights = waiting_b[bank] || lanes_use(bank);
            result.a[bank] = waiting_a[bank] || copying[bank];
            result.b[bank] = weights;
            result.c[bank] = waiting_c[bank] != 0;
            result.p[bank] = weights || post_busy();
        }
        return result;
    }

    bool items_shown() const { return config->lut_ram ? items_level > 0 : items_valid; }
    bool copier_busy(Time now) const { return held || copied_until >= now; }
    bool idle(Time now) const {
        return !fetch.active() && !items_shown() && !copier_busy(now) && !working() && post.idle() && !word_valid &&
               leaving.empty() && !waiting_a[0] && !waiting_a[1] && !copying[0] && !copying[1];
    }

    void set_outer(Time now, bool load) {
        const Reason next = late(late.outer, load && !running ? LOAD : running ? DISPATCH : IDLE);
        if (next == outer) return;
        for (Lane& lane : lanes) {
            if (lane.reason == OUTER) lane.account(now, outer);
        }
        outer = next;
    }

    // One ring is looked at in every cycle; what follows from that shows three cycles later.
    void look_at_ring(Time now, int row_words, bool scrubs) {
        const int count = config->lanes_per_cluster << ring_shift;
        const int usable = (config->fifo_depth >> ring_shift) - (count + COPY_LATENCY + 4 + 2 * late.on);
        const auto scan = static_cast<unsigned>(now - began) & static_cast<unsigned>(count - 1);
        const uint32_t bit = 1u << ((scan - 2) & static_cast<unsigned>(count - 1));
        room = sampled[1] <= static_cast<uint32_t>(low) && !scrubs ? room | bit : room & ~bit;
        ring_space = static_cast<int>(sampled[1]) <= usable ? ring_space | bit : ring_space & ~bit;
        sampled[1] = sampled[0];
        const unsigned shown = (scan + late.on) & static_cast<unsigned>(count - 1);
        const Lane& lane = lanes[shown >> ring_shift];
        const unsigned ring = shown & ((1u << ring_shift) - 1);
        sampled[0] = late(late.sampled, lane.written[ring] - lane.taken[ring]);
        low = std::min(fits, LOW_WATER);
        fits = row_words >= usable ? 0 : usable - row_words;
    }

    void step(Time now, bool load, bool beat_leaves) {
        const auto number_of_lanes = static_cast<size_t>(config->lanes_per_cluster);
        set_outer(now, load);
        beat_leaves = leaving.step(post, beat_leaves);
        const bool active = fetch.active(), was_working = working();
        for (int bank = 0; bank < 2; ++bank) late.used[bank] = bank_rows[bank] != 0;
        late.draining = lanes_drain();
        const int old_row_words = fetch.row_words;
        // ---- drains, and the arbiter
        uint32_t release[MAX_LANES], asking = 0;
        PostWord drained;
        const bool rows_space = late(late.space, post.space);
        const bool scrubs = late(late.scrubs, lanes[0].drain_state == Lane::D_SCRUB);
        const uint32_t grants = late(late.granted, granted);
        for (size_t n = 0; n < number_of_lanes; ++n) {
            release[n] = 0;
            if (times[n].drain_at > now) continue;
            const DrainOut out = step_drain(lanes[n], now, rows_space, grants >> n & 1, outer);
            release[n] = out.release;
            asking |= static_cast<uint32_t>(out.request) << n;
            if (out.word.kind != PostKind::NONE) drained = out.word;
        }
        if (word_valid || !post.rests(now)) post.step(now, word_valid ? &word : nullptr, beat_leaves);
        word = late(late.drained, drained);
        word_valid = word.kind != PostKind::NONE;
        asking = late(late.asking, asking);
        if (!(granted & asking)) {
            const uint32_t fair = asking & ~last_granted, choice = fair ? fair : asking;
            granted = choice & (~choice + 1);
            if (choice) last_granted = granted | (granted - 1);
        }

        // ---- fetch
        const int rings = config->rings;
        Item made;
        const uint32_t offered = room & ~pending;
        const bool makes = config->lut_ram
            ? !fetch.rests(items_space, offered) && fetch.step(items_space, offered, directory, c_masks, made)
            : fetch.step_serial(items_space, offered, directory, c_masks, made);

        // ---- copier
        const bool fires = held && (ring_space & current_rings) == current_rings;
        const bool ends = current.raw || left == 1;
        const bool takes_item = !held || (fires && ends);
        Copied out;
        if (held && fires) {
            out.lanes = current.lanes;
            out.ring = current.ring;
            if (current.raw) {
                out.word = current.word;
            } else {
                out.word = a_words[current.bank][static_cast<size_t>(address)];
                if (out.word.kind == Kind::HEAD) {
                    out.word.number = static_cast<uint16_t>((current.k + out.word.number * CHUNK) & (config->k_depth - 1));
                }
                if (ends) --copying[current.bank];
            }
            copied_until = now + 3 + late.on;
        }
        if (makes && !made.raw) ++copying[made.bank];
        const bool popped = takes_item && items_shown();
        if (takes_item) {
            held = popped;
            if (popped) {
                current = items[items_head % ITEM_QUEUE];
                address = current.start;
                left = current.words;
                current_rings = 0;
                for (int n = 0; n < config->lanes_per_cluster; ++n) {
                    if (current.lanes >> n & 1) current_rings |= 1u << (n * rings + current.ring);
                }
            }
        } else if (fires) {
            ++address;
            --left;
        }
        items_valid = items_level > popped;
        items_space = items_level <= ITEM_QUEUE - ITEM_MARGIN;
        if (popped) ++items_head;
        items_level -= popped;
        if (makes) items[(items_head + static_cast<unsigned>(items_level++)) % ITEM_QUEUE] = made;

        look_at_ring(now, old_row_words, scrubs);

        // ---- lanes
        uint32_t starting = 0;
        for (size_t n = 0; n < number_of_lanes; ++n) {
            if (times[n].sleep_until > now && !release[n]) continue;
            Lane& lane = lanes[n];
            if (rings == 2) lane.step<2>(now, release[n], outer);
            else lane.step<4>(now, release[n], outer);
            if (lane.started >= 0) starting |= 1u << (static_cast<int>(n) * rings + lane.started);
        }
        pending &= ~late(late.started, starting);
        if (config->psum_in_pe) {
            for (size_t n = 0; n < number_of_lanes; ++n) {
                if (times[n].retire_at <= now) lanes[n].retire(now);
                if (lanes[n].drained_slot >= 0) {
                    lanes[n].owed[static_cast<size_t>(lanes[n].drained_slot)] = 0;
                    lanes[n].drained_slot = -1;
                    times[n].sleep_until = 0;
                }
            }
        }
        if (copied_until >= now) {
            const Copied arriving = copied.at(2 + late.on);
            copied.push(out);
            for (size_t n = 0; n < number_of_lanes; ++n) {
                if (arriving.lanes >> n & 1) lanes[n].write(arriving.ring, arriving.word);
            }
        }
        for (uint32_t bits = fetch.coming; bits; bits &= bits - 1) {
            const int n = std::countr_zero(bits);
            pending |= 1u << n;
            ++bank_rows[fetch.field(B_BANK)];
        }
        if (fetch.taken) {
            --waiting_a[fetch.field(A_BANK)];
            --waiting_b[fetch.field(B_BANK)];
            if (fetch.field(USE_C)) --waiting_c[fetch.field(C_BANK)];
        }
        running = active || was_working;
    }
};

}  // namespace maskwork
