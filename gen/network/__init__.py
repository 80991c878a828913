"""The compiler: quantised ONNX networks in, programs for the accelerator out."""
