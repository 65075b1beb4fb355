"""What reproduces the paper: Tables 1 to 8, Figures 1 to 10, and the counts and times behind Table 5."""
