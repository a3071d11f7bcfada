"""Tests of the lab as a user has it: ``make up`` and what follows."""

import signal

# What a shell starts in the background ignores Ctrl-C, and so would the programs started here.
signal.signal(signal.SIGINT, signal.default_int_handler)
