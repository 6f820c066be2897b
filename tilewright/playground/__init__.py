"""``tilewright playground``: a local page on which a program is edited and seen at every stage.

serve.py     the HTTP server: who may ask, what a request may look like
children.py  a process for each request, with limits; results are kept
work.py      what such a process does: a request in, an answer as JSON out
page.py      the page, put together from the files in page/
"""
