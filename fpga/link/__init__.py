"""Link between a host and a board: UART hardware, protocol, driver and virtual board."""
