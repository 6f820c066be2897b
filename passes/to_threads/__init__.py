"""From programs on whole blocks to programs of a block's threads (GPU targets)."""
