"""What `clearsr bench` measures: speed, memory, throughput and work, as ratios within one run."""
