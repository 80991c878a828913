// A cluster: lanes, their feeding, and what they share (rtl/cluster.py, copier.py, banks.py).
#pragma once

#include "fetch_serial.hpp"
#include "results.hpp"

namespace maskwork {

constexpr int COPY_LATENCY = 4;     // rtl/copier.py
constexpr uint32_t LOW_WATER = 24;       // rtl/cluster.py

// What pending RUNs still need of a cluster's banks, as the sequencer asks for it.
struct Busy {
    bool a[2], b[2], c[2], p[2];
};

struct Cluster : Results {
    Totals* totals;
    SerialFetch fetch;

    // activation buffer, C masks
    Banks activations{std::make_shared<Activations>(), std::make_shared<Activations>()};
    std::vector<uint32_t> c_masks[2];

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
    Item current, made;
    int32_t address = 0, left = 0;
    uint32_t current_rings = 0;         // that the current item goes to
    Delay<Copied, 4> copied;            // at(2): the word at the lanes
    Time copied_until = LONG_AGO;       // words are on their way up to this cycle
    int copying[2] = {};
    Copied leaves_copier;               // in this cycle

    // scan of the rings
    int ring_shift = 0;                 // divisions would be most of a cycle's work
    Time began = 0;                     // cycle of the first ring
    uint32_t room = 0, ring_space = ~0u;
    uint32_t sampled[2] = {};           // words in the rings looked at one and two cycles ago
    uint32_t scan_mask = 0, usable = 0; // of a ring's words
    uint32_t fits = 0, low = 0;
    int fitting_words = 0, fitting = 2; // of a row, from which these follow in so many cycles

    // banks
    int waiting_a[2] = {}, waiting_b[2] = {}, waiting_c[2] = {};
    bool was_active = false;
    uint32_t pending = 0;               // rings: a row was announced and has not started
    bool loading = false;
    uint32_t run_spaces = ~0u;          // registers between the RUN FIFO and the sequencer; bit n: n + 1 steps ago

    // registers between the rest and the cluster
    Time comes_at = NEVER;
    Run coming{};

    void create(const Config& c, Totals& t, int n, std::span<Lane> its_lanes, Front& its_front, int its_first,
                Time now) {
        config = &c;
        totals = &t;
        number = n;
        lanes = its_lanes;
        front = &its_front;
        first = its_first;
        lanes_mask = ((Lanes{1} << lanes.size()) - 1) << first;
        began = now;
        for (size_t lane = 0; lane < lanes.size(); ++lane) {
            lanes[lane].create(c, t, static_cast<int>(lane), shared, now);
        }
        ring_shift = log2_of(c.rings);
        const int rings = c.lanes_per_cluster << ring_shift;
        scan_mask = static_cast<uint32_t>(rings - 1);
        usable = static_cast<uint32_t>((c.fifo_depth >> ring_shift) - (rings + COPY_LATENCY + 4 + 2 * c.lane_hops()));
        fetch.create(c);
        post.create(c);
        leaving.stages = c.hop_stages;
        late.on = c.lane_hops();
        for (Lane& lane : lanes) lane.scrub_count = -c.lane_hops();     // their reset is late
    }

    void accept(const Run& run) {
        fetch.accept(run);
        calm = false;
        ++waiting_a[run.fields[A_BANK]];
        ++waiting_b[run.fields[B_BANK]];
        if (run.fields[USE_C]) ++waiting_c[run.fields[C_BANK]];
    }

    bool beat_ends() const { return leaving.last(post); }       // at the collector
    bool lanes_use(int bank) const { return late.on ? late.used[bank] : shared.bank_rows[bank] != 0; }
    bool draining() const { return late.on ? late.draining : shared.undrained != 0; }
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

    [[gnu::noinline]] void set_outer(Time now, Reason reason) {
        const Reason next = late(late.outer, reason);
        if (next == shared.outer) return;
        for (Lane& lane : lanes) {
            if (lane.reason == OUTER) lane.account(now);
        }
        shared.outer = next;
    }

    // Which ring is looked at in a cycle, the same one of every cluster, and which one what is found is of.
    struct Look {
        unsigned lane, ring;
        uint32_t place;     // as a bit
    };
    Look look_at(Time now) const {
        const auto scan = static_cast<unsigned>(now - began) & scan_mask;
        const unsigned shown = (scan + late.on) & scan_mask;
        return {shown >> ring_shift, shown & ((1u << ring_shift) - 1), 1u << ((scan - 2) & scan_mask)};
    }

    // One ring is looked at in every cycle; what follows from that shows three cycles later.
    void look_at_ring(const Look& look, bool scrubs) {
        // (no branches here and in the like: they would be a matter of luck)
        const auto has_room = static_cast<uint32_t>((sampled[1] <= low) & !scrubs);
        const auto has_space = static_cast<uint32_t>(sampled[1] <= usable);
        room = (room & ~look.place) | (-has_room & look.place);
        ring_space = (ring_space & ~look.place) | (-has_space & look.place);
        sampled[1] = sampled[0];
        const Lane& lane = lanes[look.lane];
        sampled[0] = lane.written[look.ring] - lane.taken[look.ring];
    }

    // What a row needs follows from its words some cycles later.
    void fit(int row_words) {
        if (row_words != fitting_words) {
            fitting_words = row_words;
            fitting = 2;
        }
        if (fitting) {
            --fitting;
            const auto words = static_cast<uint32_t>(row_words);
            low = std::min(fits, LOW_WATER);
            fits = words >= usable ? 0 : usable - words;
        }
    }

    // Whether a cycle like the last ones changes nothing, but for rings that have not been looked at since.
    bool rests(Time now) const {
        return !late.on && config->lut_ram && comes_at == NEVER && idle(now) && !shared.drains &&
               shared.drain_at == NEVER && !granted && !requests && post.rests(now) &&
               fetch.rests(items_space, room & ~pending);
    }
    // A cluster at rest for longer than all rings are looked at sleeps until a RUN comes or a load begins or ends.
    static constexpr int SLEEPS_AFTER = MAX_LANES * MAX_RINGS + 8;
    int rested = 0;
    bool asleep = false, loading_at_last = false;
    [[gnu::noinline]] void try_to_sleep(Time now, bool load) {
        rested = rests(now) ? rested + 1 : 0;
        asleep = rested > SLEEPS_AFTER;
        loading_at_last = load;
    }
    bool sleeps(bool load) {
        asleep = comes_at == NEVER && load == loading_at_last && fetch.steady;
        rested = 0;
        return asleep;
    }

    // One cycle, up to what the fronts of the lanes do; whether there is anything behind that.
    [[gnu::always_inline]] inline bool step(Time now, bool load, uint64_t leaves, const Look& look) {
        const Reason outer = was_active ? DISPATCH : load ? LOAD : IDLE;
        if (outer != shared.outer || late.on) set_outer(now, outer);
        was_active = fetch.active() ||
                     (late.on ? working() : (shared.bank_rows[0] | shared.bank_rows[1] | shared.undrained) != 0);
        const int old_row_words = fetch.row_words;
        bool scrubs = lanes[0].columns.state == D_SCRUB;
        if (late.on) [[unlikely]] {
            leaves = static_cast<uint64_t>(leaving.step(post, leaves >> number & 1)) << number;
            for (int bank = 0; bank < 2; ++bank) late.used[bank] = shared.bank_rows[bank] != 0;
            late.draining = shared.undrained != 0;
            scrubs = late(late.scrubs, scrubs);
        }
        // what lanes and their cluster know a cycle late moves on in every cycle, even if nobody does anything
        const bool beat_leaves = leaves >> number & 1;
        bool rows_alone = false;
        if (late.on) [[unlikely]] step_results<true>(now, beat_leaves);
        else if (anything(now)) step_results<false>(now, beat_leaves);
        else if (!post.reads()) rows_alone = true;
        else if (!post.valid | beat_leaves) read(beat_leaves);
        const uint32_t offered = room & ~pending;
        const bool rests = config->lut_ram && fetch.rests(items_space, offered);
        const bool makes = !config->lut_ram ? fetch.step_serial(items_space, offered, activations, c_masks, made)
                                            : !rests && fetch.step(items_space, offered, activations, c_masks, made);
        if (makes || held || items_level) {
            step_copier(now, makes);
            rows_alone = false;
            rested = 0;
        } else {
            rows_alone &= items_space & rests & (copied_until < now);
            items_valid = false;
            items_space = true;
            leaves_copier.lanes = 0;
            if (!was_active) try_to_sleep(now, load);
            else rested = 0;
        }
        look_at_ring(look, scrubs);
        if (late.on) [[unlikely]] sampled[0] = late(late.sampled, sampled[0]);
        fit(old_row_words);
        calm = rows_alone & was_active & !late.on & !fitting;
        calm_load = load;
        return late.on | (copied_until >= now) | (fetch.coming != 0) | fetch.taken | (shared.drained_lane >= 0);
    }

    // Rows in the lanes go on by themselves, and nothing changes here but the rings.
    bool calm = false, calm_load = false;
    bool stays_calm(Time now, bool load) const {
        return calm && (shared.drain_at > now) & (load == calm_load) & ((room & ~pending) == fetch.last_room);
    }

    // The copier, and the queue before it, which an item enters if fetch has made one.
    [[gnu::noinline]] void step_copier(Time now, bool makes) {
        const bool fires = held && (ring_space & current_rings) == current_rings;
        const bool ends = current.raw || left == 1;
        const bool takes_item = !held || (fires && ends);
        leaves_copier.lanes = 0;
        if (fires) {
            leaves_copier.lanes = current.lanes;
            leaves_copier.ring = current.ring;
            if (current.raw) {
                leaves_copier.word = current.word;
            } else {
                const auto& words = activations[current.bank]->words;
                Word& leaving = leaves_copier.word = {words[static_cast<size_t>(address)], nullptr};
                const auto k = static_cast<uint16_t>((current.k + leaving.number * CHUNK) & (config->k_depth - 1));
                leaving.number = leaving.kind == Kind::HEAD ? k : leaving.number;
                copying[current.bank] -= ends;
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
                for (uint32_t bits = current.lanes; bits; bits &= bits - 1) {
                    current_rings |= 1u << ((std::countr_zero(bits) << ring_shift) + current.ring);
                }
            }
        } else if (fires) {
            ++address;
            --left;
        }
        items_valid = items_level > popped;
        items_space = items_level <= ITEM_QUEUE - ITEM_MARGIN;
        items_head += popped;
        items_level -= popped;
        if (makes) items[(items_head + static_cast<unsigned>(items_level++)) % ITEM_QUEUE] = made;
    }

    [[gnu::noinline]] uint32_t started() const {
        const int rings = config->rings;
        uint32_t result = 0;
        for (int ring = 0; ring < rings; ++ring) {
            Lanes bits = (front->started[ring] & lanes_mask) >> first;
            for (; bits; bits &= bits - 1) {
                result |= 1u << (std::countr_zero(bits) * rings + ring);
            }
        }
        return result;
    }

    [[gnu::noinline]] void retire_rows(Time now) {
        shared.retire_at = NEVER;
        for (size_t n = 0; n < lanes.size(); ++n) {
            const Lanes bit = Lanes{1} << (first + static_cast<int>(n));
            if (lanes[n].retire_at <= now && lanes[n].retire(now)) front->retired(bit);
            shared.retire_at = std::min(shared.retire_at, lanes[n].retire_at);
        }
    }

    // Rows that have started in the lanes, and those whose sums stay that may leave them.
    void rows_move_on(Time now) {
        if (!late.on && (front->any_started & lanes_mask)) pending &= ~started();
        if (shared.retire_at <= now) {
            retire_rows(now);
            calm = false;
        }
    }

    // The rest of a cycle, behind that of the lanes' fronts.
    [[gnu::always_inline]] inline void step_behind(Time now) {
        if (late.on) [[unlikely]] pending &= ~late(late.started, started());
        if (shared.drained_lane >= 0) {
            Lane& lane = lanes[static_cast<size_t>(shared.drained_lane)];
            lane.owed[lane.drain_row.slot] = 0;
            shared.drained_lane = -1;
            front->awake = true;
        }
        if (copied_until >= now) {
            const Copied arriving = copied.at(2 + late.on);
            copied.push(leaves_copier);
            for (unsigned bits = arriving.lanes; bits; bits &= bits - 1) {
                front->write(first + std::countr_zero(bits), arriving.ring, arriving.word);
            }
        }
        if (fetch.coming) {
            pending |= fetch.coming;
            shared.bank_rows[fetch.field(B_BANK)] += std::popcount(fetch.coming);
        }
        if (fetch.taken) {
            --waiting_a[fetch.field(A_BANK)];
            --waiting_b[fetch.field(B_BANK)];
            if (fetch.field(USE_C)) --waiting_c[fetch.field(C_BANK)];
        }
    }
};

}  // namespace maskwork
