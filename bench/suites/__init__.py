"""Problems, by suite. What a provider makes of them lies in ``bench.providers``."""
