"""What a run found: the document, its file, and how it looks on a terminal, in Markdown, on a
page."""
