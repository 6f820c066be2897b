"""The suites as they are measured on GPUs: the sizes and dtypes that models have there. Each module
has ``suite(device, floats)``."""
