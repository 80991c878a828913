// What becomes of a cluster's finished rows: its lanes' drains, their arbiter, post-processing.
#pragma once

#include <span>

#include "hop.hpp"

namespace maskwork {

struct Results {
    const Config* config;
    int number = 0;
    std::span<Lane> lanes;
    Front* front = nullptr;             // of the lanes, its first one is number `first` there
    int first = 0;
    Lanes lanes_mask = 0;               // there
    Shared shared;
    Post post;
    uint64_t* beats_wait = nullptr;     // of all clusters: a beat waits at the collector

    // registers between the rest and the cluster
    Late late;
    Leaving leaving;

    // arbiter of post-processing
    uint32_t granted = 0, last_granted = 0;
    uint32_t requests = 0;              // lanes whose drains do nothing but ask
    uint32_t ahead = 0;                 // lanes whose drains' next cycles are over
    PostWord word;
    bool word_valid = false;

    // Whether drains or post-processing do anything in a cycle.
    bool anything(Time now) const {
        if ((shared.drains != 0) | (shared.drain_at <= now)) return true;
        return requests | ahead | granted | word_valid || now < post.rests_from;
    }

    // Beats leave post-processing.
    void read(bool beat_leaves) {
        post.read(beat_leaves);
        show_beat();
    }
    void show_beat() {
        *beats_wait = (*beats_wait & ~(uint64_t{1} << number)) | static_cast<uint64_t>(leaving.valid(post)) << number;
    }

    // Drains, their arbiter, post-processing.
    template <bool is_late>
    [[gnu::noinline]] void step_results(Time now, bool beat_leaves) {
        uint32_t asking = 0;
        PostWord drained;
        const bool rows_space = Late::pass<is_late>(late.space, post.space);
        const uint32_t grants = Late::pass<is_late>(late.granted, granted);
        if (rows_space && (grants & requests)) wake_drains(grants);
        const uint32_t stopped = ahead ? step_ahead(now, rows_space, asking, drained) : 0;
        if (shared.drains || shared.drain_at <= now) step_drains(now, rows_space, grants, asking, drained);
        shared.drains |= stopped;
        asking |= requests;
        if (word_valid || now < post.rests_from) {
            post.step(now, word_valid ? &word : nullptr, beat_leaves);
        } else if (post.reads()) {
            post.read(beat_leaves);
        }
        show_beat();
        word = Late::pass<is_late>(late.drained, drained);
        word_valid = word.kind != PostKind::NONE;
        asking = Late::pass<is_late>(late.asking, asking);
        if (!(granted & asking)) {
            const uint32_t fair = asking & ~last_granted, choice = fair ? fair : asking;
            granted = choice & (~choice + 1);
            if (choice) last_granted = granted | (granted - 1);
        }
    }

    // Post-processing takes the row of a drain that has waited.
    void wake_drains(uint32_t grants) {
        shared.drains |= grants & requests;
        requests &= ~grants;
    }

    // Drains that are ahead: what one of them gives post-processing, and which of them are so no more.
    uint32_t step_ahead(Time now, bool rows_space, uint32_t& asking, PostWord& drained) {
        uint32_t stopped = 0;
        for (uint32_t bits = ahead; bits; bits &= bits - 1) {
            const int n = std::countr_zero(bits);
            Lane& lane = lanes[static_cast<size_t>(n)];
            if (lane.ahead.until == now) {
                end_ahead(lane, now);
                ahead &= ~(1u << n);
                continue;
            }
            const PostWord left = ahead_word(lane, now);
            if (left.kind != PostKind::NONE) drained = left;
            if (!lane.drain_row.final) continue;
            asking |= 1u << n;
            if (rows_space) continue;
            interrupt_ahead(lane, now);
            stopped |= 1u << n;
            shared.drains_at[static_cast<size_t>(n)] = NEVER;       // this cycle is over, and the next one is its own
            // what was to come later may come earlier
            front->retired(Lanes{1} << (first + n));
            lane.retire_from(now + 1);
        }
        ahead &= ~stopped;
        return stopped;
    }

    // The drains of the lanes: which of them ask for post-processing, and what one of them gives it.
    void step_drains(Time now, bool rows_space, uint32_t grants, uint32_t& asking, PostWord& drained) {
        uint32_t steps = shared.drains;
        if (shared.drain_at <= now) {
            shared.drain_at = NEVER;
            for (size_t n = 0; n < lanes.size(); ++n) {
                Time& its_time = shared.drains_at[n];
                if (its_time <= now && (ahead >> n & 1)) {
                    its_time = lanes[n].ahead.until;
                } else if (its_time <= now) {
                    steps |= 1u << n;
                    its_time = NEVER;
                }
                shared.drain_at = std::min(shared.drain_at, its_time);
            }
        }
        shared.drains = steps;
        for (; steps; steps &= steps - 1) {
            const int n = std::countr_zero(steps);
            Lane& lane = lanes[static_cast<size_t>(n)];
            const bool was_active = lane.active;
            const DrainOut out = step_drain(lane, now, rows_space, grants >> n & 1);
            asking |= static_cast<uint32_t>(out.request) << n;
            requests |= static_cast<uint32_t>(out.waits) << n;
            if (out.word.kind != PostKind::NONE) drained = out.word;
            if (out.releases | (lane.active != was_active)) [[unlikely]] {
                const Lanes bit = Lanes{1} << (first + n);
                if (out.releases) front->release(bit, lane.drain_context);
                if (lane.active != was_active) front->drain(bit, lane.active);
            }
            ahead |= static_cast<uint32_t>(out.ahead) << n;
            if (lane.drain_again != now + 1) {
                shared.drains &= ~(1u << n);
                lane.wake_drain(lane.drain_again);
            }
        }
    }
};

}  // namespace maskwork
