"""What running a network takes: multiply-accumulates, time and memory (Table 5 and `clearsr bench`)."""
