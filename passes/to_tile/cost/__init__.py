"""What a schedule costs: instructions and bytes in closed form, priced for a machine, ranked."""
