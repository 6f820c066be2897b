"""The suites as they are measured on GPUs: the sizes and dtypes that models have there. Each module
has ``problems(device, floats, quick)`` and ``smallest(device, floats, section)``."""
