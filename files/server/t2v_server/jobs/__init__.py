"""Jobs: the record of one generation, the queue it waits in, and whether any can be taken."""
