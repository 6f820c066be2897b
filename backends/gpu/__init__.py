"""What every back end for GPUs needs: reading machine code without a GPU."""
