"""Run directory of one experiment: its files, record, lock and networks."""
