"""One module for each kind of request; its ``answer`` gives what the page shows, as plain data."""
