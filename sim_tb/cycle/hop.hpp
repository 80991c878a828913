// What lies between a cluster and the rest of the accelerator (rtl/hop.py): `hop_stages` registers each way.
#pragma once

#include "post.hpp"

namespace maskwork {

// A cluster's last buffers before the collector.
struct Leaving {
    struct Skid {
        int held = 0;
        bool last[2] = {};
    };
    Skid skids[2];
    int stages = 0;

    bool empty() const { return !skids[0].held && !skids[1].held; }
    bool valid(const Post& post) const { return stages ? skids[stages - 1].held > 0 : post.valid; }
    bool last(const Post& post) const { return stages ? skids[stages - 1].last[0] : post.last; }

    // One cycle, with stages; `leaves`: the collector takes the beat at the end. Whether post-processing's is taken.
    bool step(const Post& post, bool leaves) {
        const bool enters = post.valid && skids[0].held < 2, entering = post.last;
        const bool moves = stages > 1 && skids[0].held > 0 && skids[1].held < 2, moving = skids[0].last[0];
        if (stages > 1) {
            update(skids[1], leaves, moves, moving);
            update(skids[0], moves, enters, entering);
        } else {
            update(skids[0], leaves, enters, entering);
        }
        return enters;
    }

    static void update(Skid& skid, bool pop, bool push, bool last) {
        if (pop) {
            skid.last[0] = skid.last[1];
            --skid.held;
        }
        if (push) skid.last[skid.held++] = last;
    }
};

// What lanes and their cluster know of each other a cycle late, with `lane_hops`.
struct Late {
    bool on = false;
    bool used[2] = {}, draining = false;        // rows in the lanes, and of those that wait for their drain
    bool space = true, scrubs = true;
    uint32_t granted = 0, asking = 0, started = 0, sampled = 0;
    PostWord drained;
    Reason outer = IDLE;

    // `value` as it was a cycle before, or as it is.
    template <bool is_on, typename T>
    static T pass(T& before, const T& value) {
        if constexpr (is_on) return std::exchange(before, value);
        else return value;
    }
    template <typename T>
    T operator()(T& before, const T& value) const {
        return on ? pass<true>(before, value) : value;
    }
};

}  // namespace maskwork
