"""Compare finished reports: across targets, runs and settings, saying a tie where it is one."""
