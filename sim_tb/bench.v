// Bench of icarus.py: runs whole files of beats through an accelerator, with the same pseudo-random back-pressure, at
// the same cycles, and the same check of the stream contract as harness.cpp. Commands come on standard input, a line
// each: `0 N` resets for N cycles, `1 ...` runs in.hex and writes out.hex; end of input ends the simulation.
`timescale 1ns/1ps

module maskwork_bench;
  localparam BEAT = `BEAT_BITS;
  localparam STDIN = 32'h8000_0000;
  localparam STOPPED = 0, QUIET = 1, BUDGET = 3, STUCK = 4, VIOLATION = 5;

  reg clk = 0, rst = 0, i_valid = 0, o_ready = 0;
  reg [BEAT-1:0] i_payload = 0;
  wire i_ready, o_valid;
  wire [BEAT-1:0] o_payload;

  `TOP dut (
    .clk(clk), .rst(rst), .i__payload(i_payload), .i__valid(i_valid), .i__ready(i_ready), .o__payload(o_payload),
    .o__valid(o_valid), .o__ready(o_ready)
  );

  reg [63:0] cycle, first_in, last_out, beats, beats_in, beats_out, in_waits, out_waits;
  reg [63:0] max_cycles, idle_limit, stuck_limit, stop_count, idle, stops, started;
  reg [31:0] in_threshold, out_threshold, in_seed, out_seed;
  reg [255:0] stop_kinds, stop_opcodes;
  reg offered, held, at_start, stopping, running, done, hold, ready, taken, valid;
  reg [BEAT-1:0] beat, previous;
  // waveforms: all of them, or (as in harness.cpp) those of a window; beats are counted since the beginning
  reg [63:0] window_first_in, window_last_out, window_after, all_in, all_out;
  reg tracing, windowed, in_window, closing;
  reg [8*48-1:0] message;
  integer command, count, fields, input_file, output_file, status;

  function [31:0] draw(input [31:0] state);
    begin
      draw = state ^ (state << 13);
      draw = draw ^ (draw >> 17);
      draw = draw ^ (draw << 5);
    end
  endfunction

  task edges;
    begin
      #1 clk = 1;
      #1 clk = 0;
      cycle = cycle + 1;
    end
  endtask

  task stop(input integer why);
    begin
      status = why;
      running = 0;
    end
  endtask

  task reset;
    begin
      i_valid = 0;
      o_ready = 0;
      rst = 1;
      repeat (count) edges;
      rst = 0;
      #1;
      offered = 0;
      held = 0;
      at_start = 1;
      $display("maskwork reset");
    end
  endtask

  task show;
    begin
      $dumpfile("trace.vcd");
      $dumpvars(0, dut);
      in_window = 1;
    end
  endtask

  // before and after the edge of every cycle of a run
  task open_window;
    begin
      if (windowed && taken && all_in == window_first_in) show;
      all_in = all_in + taken;
    end
  endtask

  task close_window;
    begin
      if (in_window && valid && ready && all_out == window_last_out) closing = 1;
      if (closing) begin
        if (window_after == 0) begin
          $dumpoff;
          closing = 0;
          in_window = 0;
        end
        window_after = window_after - 1;
      end
      all_out = all_out + (valid && ready);
    end
  endtask

  // inputs of a cycle, then everything that is seen before its edge
  task drive;
    begin
      hold = 0;
      ready = 1;
      if (in_threshold != 0) begin
        in_seed = draw(in_seed);
        hold = in_seed < in_threshold;
      end
      if (out_threshold != 0) begin
        out_seed = draw(out_seed);
        ready = out_seed >= out_threshold;
      end
      if (!offered && beats_in < beats && !hold) begin
        fields = $fscanf(input_file, "%h", i_payload);
        offered = 1;
      end
      i_valid = offered;
      o_ready = ready;
      #1;
      taken = offered && i_ready;
      valid = o_valid;
      beat = o_payload;
      if (i_ready === 1'bx) message = "i: ready is X";
      if (o_valid === 1'bx) message = "o: valid is X";
      if (valid && ^beat === 1'bx) message = "o: payload holds X";
      if (held && !valid) message = "o: valid fell before the transfer";
      else if (held && beat !== previous) message = "o: payload changed before the transfer";
      else if (!ready) begin
        o_ready = 1;
        #1;
        if (o_valid !== valid) message = "o: valid depends on ready";
        o_ready = 0;
        #1;
      end
    end
  endtask

  task account;
    begin
      idle = idle + 1;
      held = valid && !ready;
      previous = beat;
      if (held) begin
        out_waits = out_waits + 1;
        idle = 0;
      end
      if (offered && !taken) in_waits = in_waits + 1;
      if (taken) begin
        if (beats_in == 0) first_in = cycle;
        beats_in = beats_in + 1;
        offered = 0;
        idle = 0;
      end
      if (valid && ready) begin
        $fdisplay(output_file, "%h", beat);
        beats_out = beats_out + 1;
        last_out = cycle;
        idle = 0;
        if (at_start) stopping = stop_kinds[beat[7:0]] || (beat[7:0] == `ERROR_KIND && stop_opcodes[beat[23:16]]);
        at_start = beat[BEAT-1];
        if (at_start && stopping) stops = stops + 1;
      end
      if (stop_count != 0 && stops >= stop_count && beats_in == beats && at_start) stop(STOPPED);
    end
  endtask

  task run;
    begin
      fields = $fscanf(STDIN, "%d %d %d %d %d %d %d %d %d %h %h", beats, max_cycles, idle_limit, stuck_limit, stop_count,
                       in_threshold, out_threshold, in_seed, out_seed, stop_kinds, stop_opcodes);
      input_file = $fopen("in.hex", "r");
      output_file = $fopen("out.hex", "w");
      started = cycle;
      first_in = cycle;
      last_out = cycle;
      beats_in = 0;
      beats_out = 0;
      in_waits = 0;
      out_waits = 0;
      idle = 0;
      stops = 0;
      message = "";
      running = 1;
      while (running) begin
        done = beats_in == beats && stop_count == 0;
        if (cycle - started >= max_cycles) stop(BUDGET);
        else if (idle >= (done ? idle_limit : stuck_limit)) stop(done ? QUIET : STUCK);
        else begin
          drive;
          if (message != 0) stop(VIOLATION);
          else begin
            open_window;
            edges;
            close_window;
            account;
          end
        end
      end
      $fclose(input_file);
      $fclose(output_file);
      $display("maskwork %0d %0d %0d %0d %0d %0d %0d:%0s", status, first_in, last_out, beats_in, beats_out, in_waits,
               out_waits, message);
    end
  endtask

  initial begin
    all_in = 0;
    all_out = 0;
    in_window = 0;
    closing = 0;
    tracing = $test$plusargs("trace");
    windowed = $value$plusargs("first_in=%d", window_first_in);
    fields = $value$plusargs("last_out=%d", window_last_out);
    fields = $value$plusargs("after=%d", window_after);
    if (tracing && !windowed) show;
    cycle = 0;
    command = 0;
    while (command == 0 || command == 1) begin
      command = 2;
      fields = $fscanf(STDIN, "%d", command);
      if (command == 0) begin
        fields = $fscanf(STDIN, "%d", count);
        reset;
      end else if (command == 1) run;
      $fflush;
    end
    $finish(0);
  end
endmodule
